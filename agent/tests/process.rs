//! The agent as a process, in namespaces of its own: it starts without an apiserver from the last-known snapshot, its
//! self-test passes through the kernel, a kill changes nothing, and the next run takes over. Needs root.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use quilla_agent::last_known;
use quilla_model::{Node, ObjectName, Protocol, Service, ServicePort, ServiceType, Snapshot, TrafficPolicy};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);

/// A machine with one uplink: namespaces held by a sleeping process, a control group, a directory.
struct Machine {
    holder: Child,
    cgroup: PathBuf,
    directory: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        let directory =
            tempfile::Builder::new().prefix("quilla-agent-").tempdir().expect("temporary directory");
        let holder = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "sleep", "300"])
            .spawn()
            .expect("unshare");
        let machine = Self { holder, cgroup: new_cgroup(), directory };
        let own = fs::read_link("/proc/self/ns/net").expect("own namespace");
        let theirs = format!("/proc/{}/ns/net", machine.holder.id());
        eventually("namespaces of the machine", || {
            fs::read_link(&theirs).ok().filter(|theirs| *theirs != own).map(drop)
        });
        for directory in ["bpf", "state", "run"] {
            fs::create_dir(machine.path(directory)).expect("make directory");
        }
        let kubeconfig = "{apiVersion: v1, kind: Config, current-context: x, \
            clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], \
            users: [{name: u, user: {}}], contexts: [{name: x, context: {cluster: c, user: u}}]}";
        fs::write(machine.path("kubeconfig"), kubeconfig).expect("write kubeconfig");
        let script = "ip link set lo up && ip link add eth0 type veth peer name far && ip link set eth0 up && \
            ip link set far up && ip address add 192.0.2.1/24 dev eth0 && mount -t bpf bpf \"$0\"";
        let set_up = machine.inside("sh").arg("-c").arg(script).arg(machine.path("bpf")).status();
        assert!(set_up.expect("set the machine up").success(), "set the machine up");
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--net", "--mount", program]);
        command
    }

    fn start_agent(&self) -> Agent {
        Agent(self.agent("4096").spawn().expect("start the agent"))
    }

    fn agent(&self, flow_capacity: &str) -> Command {
        let mut command = self.inside(env!("CARGO_BIN_EXE_quilla-agent"));
        command.args(["--node-name", "here", "--uplink", "eth0"]).env("QUILLA_METRICS", "127.0.0.1:9469");
        command.arg("--kubeconfig").arg(self.path("kubeconfig")).arg("--cgroup").arg(&self.cgroup);
        command.arg("--bpffs").arg(self.path("bpf")).arg("--flow-capacity").arg(flow_capacity);
        command.arg("--state-dir").arg(self.path("state")).arg("--run-dir").arg(self.path("run"));
        command.stdout(Stdio::null()).env("QUILLA_LOG", "error,kube_client=off");
        command
    }

    fn ask(&self, query: &str) -> Option<Vec<Value>> {
        let mut stream = UnixStream::connect(self.path("run").join("admin.sock")).ok()?;
        writeln!(stream, "{{\"query\": \"{query}\"}}").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str::<Value>(&answer).ok()?["rows"].as_array().cloned()
    }

    fn wait_ready(&self) {
        eventually("the self-test passes", || {
            self.ask("status").filter(|rows| rows[0][1] == Value::Bool(true)).map(drop)
        });
    }

    fn links(&self) -> Vec<String> {
        self.pinned("links")
    }

    /// Names of the pinned links or maps, seen from outside.
    fn pinned(&self, kind: &str) -> Vec<String> {
        let inside = self.path("bpf").join("quilla").join(kind);
        let outside = Path::new("/proc").join(self.holder.id().to_string()).join("root");
        let outside = outside.join(inside.strip_prefix("/").expect("absolute"));
        let entries = fs::read_dir(outside).expect("list links");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("link").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
        // Links to the group's sockets die with the file system that pins them.
        eventually("the control group can be removed", || fs::remove_dir(&self.cgroup).ok());
    }
}

/// Killed when a test fails.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn new_cgroup() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("read mounts");
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = lines.find(|fields| fields.get(2) == Some(&"cgroup2")).expect("a cgroup2 file system");
    let path = Path::new(mount[1]).join(format!("quilla-agent-test-{}", std::process::id()));
    fs::create_dir(&path).expect("make a control group");
    path
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn snapshot() -> Snapshot {
    let name = ObjectName::new("shop", "web");
    let service = Service {
        name: name.clone(),
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![[10, 96, 0, 10].into()],
        ports: vec![ServicePort { name: String::new(), port: 80, protocol: Protocol::Tcp, node_port: None }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        health_check_node_port: None,
    };
    let node = |name: &str, host: u8| Node {
        name: name.into(),
        addresses: vec![[192, 0, 2, host].into()],
        pod_cidrs: vec![format!("10.244.{host}.0/24").parse().unwrap()],
        zone: None,
    };
    let nodes = [node("here", 1), node("there", 2)];
    Snapshot {
        services: [(name, Arc::new(service))].into(),
        nodes: nodes.map(|node| (node.name.clone(), Arc::new(node))).into(),
        ..Snapshot::default()
    }
}

#[test]
fn without_an_apiserver_the_last_known_snapshot_is_served_and_a_kill_changes_nothing() {
    let machine = Machine::new();
    last_known::store(&last_known::path(&machine.path("state")), &snapshot()).expect("store snapshot");

    let agent = machine.start_agent();
    machine.wait_ready();
    let services = machine.ask("services").expect("services");
    assert!(services.iter().any(|row| row[0] == "shop/web" && row[2] == "10.96.0.10:80"), "{services:?}");
    assert_eq!(machine.ask("nodes").expect("nodes")[0][0], "there");
    let links = machine.links();
    assert!(links.iter().any(|link| link == "from_uplink-eth0"), "{links:?}");
    assert!(links.iter().any(|link| link == "sock_connect4-cgroup"), "{links:?}");

    let maps = machine.pinned("maps");
    let mut intruder = machine.agent("8192");
    let intruder = intruder.args(["--metrics", "127.0.0.1:9470"]).output().expect("start a second agent");
    let complaint = String::from_utf8_lossy(&intruder.stderr).into_owned();
    assert!(!intruder.status.success() && complaint.contains("in use by another agent"), "{complaint}");
    assert_eq!(machine.pinned("maps"), maps, "a second agent moves no map of the first");

    drop(agent);
    assert_eq!(machine.links(), links, "kill -9 detaches nothing");
    let _agent = machine.start_agent();
    machine.wait_ready();
    assert_eq!(machine.links(), links, "the next run takes over");
}
