//! The agent as a process, in namespaces of its own: it starts without an apiserver from the last-known snapshot, its
//! self-test passes through the kernel, a kill changes nothing, and the next run takes over, whatever it finds in the
//! maps. Needs root.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use quilla_abi::Be16;
use quilla_abi::route::{RouteKey, kind};
use quilla_abi::service::{ServiceKey, scope};
use quilla_agent::last_known;
use quilla_cni_protocol::{Attachment, Request, RequestEnvelope, Response, decode, encode};
use quilla_datapath::{Datapath, Options};
use quilla_model::{Node, ObjectName, Protocol, Service, ServicePort, Snapshot};
use serde_json::{Value, json};

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
        let log = fs::File::create(self.path("log")).expect("create log");
        let mut command = self.agent("4096");
        command.env("QUILLA_LOG", "warn,kube_client=off").stderr(log);
        Agent(command.spawn().expect("start the agent"))
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
        self.answer(query)?["rows"].as_array().cloned()
    }

    /// What a column says in the first row.
    fn first(&self, query: &str, column: &str) -> Option<Value> {
        let answer = self.answer(query)?;
        let index = answer["columns"].as_array()?.iter().position(|name| name == column)?;
        Some(answer["rows"][0][index].clone())
    }

    fn answer(&self, query: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.path("run").join("admin.sock")).ok()?;
        writeln!(stream, "{{\"query\": \"{query}\"}}").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(&answer).ok()
    }

    fn wait_ready(&self) {
        eventually("the self-test passes", || {
            self.first("status", "ready").filter(|ready| *ready == Value::Bool(true)).map(drop)
        });
    }

    fn links(&self) -> Vec<String> {
        self.pinned("links")
    }

    /// The machine's BPF file system, seen from outside.
    fn bpffs(&self) -> PathBuf {
        let root = Path::new("/proc").join(self.holder.id().to_string()).join("root");
        root.join(self.path("bpf").strip_prefix("/").expect("absolute"))
    }

    /// The maps that the agent uses. Opening them attaches nothing and empties nothing.
    fn datapath(&self) -> Datapath {
        let options = Options { bpffs: self.bpffs(), flow_capacity: 4096, ..Options::default() };
        let datapath = Datapath::open(&options).expect("open the data path");
        assert!(datapath.opened().replaced.is_empty(), "{:?}", datapath.opened());
        datapath
    }

    /// What the last agent had to say.
    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).expect("read log")
    }

    /// Names of the pinned links or maps, seen from outside.
    fn pinned(&self, kind: &str) -> Vec<String> {
        let entries = fs::read_dir(self.bpffs().join("quilla").join(kind)).expect("list pins");
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
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mounts = fs::read_to_string("/proc/mounts").expect("read mounts");
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = lines.find(|fields| fields.get(2) == Some(&"cgroup2")).expect("a cgroup2 file system");
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = Path::new(mount[1]).join(format!("quilla-agent-test-{}-{number}", std::process::id()));
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
        cluster_ips: vec![[10, 96, 0, 10].into()],
        ports: vec![ServicePort { name: "".into(), port: 80, protocol: Protocol::Tcp, node_port: None }],
        ..Service::new(name.clone())
    };
    let node = |name: &str, host: u8| Node {
        name: name.into(),
        addresses: vec![[192, 0, 2, host].into()],
        pod_cidrs: vec![format!("10.244.{host}.0/24").parse().unwrap()],
        zone: None,
        leaving: false,
    };
    let nodes = [node("here", 1), node("there", 2)];
    Snapshot {
        services: [(name, Arc::new(service))].into(),
        nodes: nodes.map(|node| (node.name.clone(), Arc::new(node))).into(),
        ..Snapshot::default()
    }
}

/// The Service's row.
const WEB: ServiceKey<[u8; 4]> =
    ServiceKey { addr: [10, 96, 0, 10], port: Be16::new(80), proto: 6, scope: scope::INTERNAL };

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

/// An agent that is killed right after it programmed a Service, and started again while no apiserver answers, finds a
/// file that does not know the Service: the maps are newer, and stay.
#[test]
fn a_stored_snapshot_older_than_the_maps_takes_nothing_from_them() {
    let machine = Machine::new();
    let stored = last_known::path(&machine.path("state"));
    last_known::store(&stored, &snapshot()).expect("store snapshot");
    let agent = machine.start_agent();
    machine.wait_ready();
    drop(agent);

    let mut older = snapshot();
    older.services.clear();
    older.nodes.remove("there");
    last_known::store(&stored, &older).expect("store an older snapshot");
    let links = machine.links();
    let _agent = machine.start_agent();
    machine.wait_ready();
    let services = machine.ask("services").expect("services");
    assert!(services.iter().any(|row| row[2] == "10.96.0.10:80"), "{services:?}");
    let known = ["ipv4", "pods"].map(|column| machine.first("nodes", column).expect(column));
    assert_eq!(known, [json!("192.0.2.2"), json!(["10.244.2.0/24"])]);
    assert_eq!(machine.links(), links, "its programs took over");
    let datapath = machine.datapath();
    assert!(datapath.maps().services_v4.get(&WEB).expect("read the map").is_some());
    assert_eq!(datapath.maps().node_slots.len().expect("read the map"), 1);
}

/// Another version's map under the name of ours: the agent starts, says so, makes its own, and everything works.
#[test]
fn a_pinned_map_of_another_version_is_replaced_and_said() {
    let machine = Machine::new();
    last_known::store(&last_known::path(&machine.path("state")), &snapshot()).expect("store snapshot");
    let agent = machine.start_agent();
    machine.wait_ready();
    drop(agent);

    let maps = machine.bpffs().join("quilla/maps");
    fs::rename(maps.join("helpers"), maps.join("services_v4")).expect("put another map in the place");
    let _agent = machine.start_agent();
    machine.wait_ready();
    let log = machine.log();
    assert!(log.lines().any(|line| line.contains("moved aside") && line.contains("services_v4")), "{log}");
    let services = machine.ask("services").expect("services");
    assert!(services.iter().any(|row| row[0] == "shop/web" && row[2] == "10.96.0.10:80"), "{services:?}");
    assert!(machine.datapath().maps().services_v4.get(&WEB).expect("read the map").is_some());
    let pinned = machine.pinned("maps");
    assert!(!pinned.iter().any(|map| map.ends_with("-replaced")), "nobody uses it any more: {pinned:?}");
}

/// Somebody else's hand in the maps: the agent that runs puts them right, and says so.
#[test]
fn drift_is_repaired_by_the_audit_of_a_running_agent() {
    let machine = Machine::new();
    last_known::store(&last_known::path(&machine.path("state")), &snapshot()).expect("store snapshot");
    let mut command = machine.agent("4096");
    command.args(["--audit-interval", "1"]).env("QUILLA_LOG", "warn,kube_client=off");
    command.stderr(fs::File::create(machine.path("log")).expect("create log"));
    let _agent = Agent(command.spawn().expect("start the agent"));
    machine.wait_ready();

    let datapath = machine.datapath();
    let services = &datapath.maps().services_v4;
    let right = services.get(&WEB).expect("read the map").expect("the Service is there");
    let foreign = ServiceKey { port: Be16::new(81), ..WEB };
    assert!(services.remove(&WEB).expect("remove the row"));
    services.insert(&foreign, &right).expect("add a row");
    eventually("the audit puts both rows right", || {
        let repaired = services.get(&WEB).expect("read the map") == Some(right);
        (repaired && services.get(&foreign).expect("read the map").is_none()).then_some(())
    });
    let log = machine.log();
    assert!(log.lines().any(|line| line.contains("drift repaired") && line.contains("services_v4")), "{log}");
}

/// A plugin's side of a conversation.
struct Plugin(BufReader<UnixStream>);

impl Plugin {
    fn ask(&mut self, request: Request) -> Response {
        let line = encode(&RequestEnvelope::from(request)).expect("encode");
        self.0.get_mut().write_all(&line).expect("ask");
        let mut answer = Vec::new();
        self.0.read_until(b'\n', &mut answer).expect("hear");
        decode(&answer).expect("an answer")
    }
}

/// CNI-18: an ADD succeeds with an endpoint that is effective, or it fails and leaves nothing.
#[test]
fn an_add_whose_device_is_another_one_fails_and_is_undone() {
    let machine = Machine::new();
    last_known::store(&last_known::path(&machine.path("state")), &snapshot()).expect("store snapshot");
    let _agent = machine.start_agent();
    machine.wait_ready();
    let socket = UnixStream::connect(machine.path("run").join("cni.sock")).expect("connect");
    let mut plugin = Plugin(BufReader::new(socket));
    let attachment = Attachment { container_id: "c".into(), ifname: "eth0".into() };
    let network = "n".to_owned();
    let request = Request::Reserve {
        attachment: attachment.clone(),
        network,
        netns: "/ns".into(),
        pod: None,
        wanted: Box::default(),
    };
    let Response::Reserved(reservation) = plugin.ask(request) else { panic!("no reservation") };
    let device = reservation.host_ifname;
    let add = format!("ip link add {device} type veth peer name inner && ip -o link show {device}");
    let shown = machine.inside("sh").args(["-c", &add]).output().expect("add a device");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let ifindex: u32 = shown.split(':').next().and_then(|number| number.parse().ok()).expect("a number");

    let datapath = machine.datapath();
    let links = machine.links();
    let mut attach = |host_ifindex| {
        plugin.ask(Request::Attach { attachment: attachment.clone(), host_ifindex, netns_cookie: 1 })
    };
    let refused = attach(ifindex + 1000);
    assert!(matches!(&refused, Response::Error(error) if error.details.contains(&device)), "{refused:?}");
    assert_eq!(datapath.maps().interfaces.len().expect("read the map"), 0);
    assert_eq!(datapath.maps().endpoints_v4.len().expect("read the map"), 0);
    assert_eq!(machine.links(), links, "its programs are gone again");

    assert_eq!(attach(ifindex), Response::Done);
    assert!(datapath.maps().interfaces.get(&ifindex).expect("read the map").is_some());
    assert_eq!(datapath.maps().endpoints_v4.len().expect("read the map"), 1);
}

/// An HTTP answer from inside the machine: its status code and body.
fn get(machine: &Machine, url: &str) -> Option<(String, String)> {
    let output = machine.inside("curl").args(["-s", "-w", "\n%{http_code}", url]).output().expect("curl");
    let text = String::from_utf8(output.stdout).expect("text");
    let (body, code) = text.rsplit_once('\n')?;
    (code != "000").then(|| (code.to_owned(), body.to_owned()))
}

/// S41, S42: the ports on which a kube-proxy would be asked.
#[test]
fn s41_probes_are_answered_where_a_kube_proxy_would() {
    let machine = Machine::new();
    last_known::store(&last_known::path(&machine.path("state")), &snapshot()).expect("store snapshot");
    let _agent = machine.start_agent();
    machine.wait_ready();
    for (path, eligible) in [("healthz", true), ("livez", false)] {
        let (code, body) = get(&machine, &format!("http://192.0.2.1:10256/{path}")).expect("an answer");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((code.as_str(), &body["healthy"]), ("200", &Value::Bool(true)), "{path}: {body}");
        assert_eq!(body["status"]["IPv4"]["healthy"], true, "{body}");
        assert_eq!(body.get("nodeEligible").is_some(), eligible, "{body}");
    }
    assert_eq!(get(&machine, "http://127.0.0.1:10249/proxyMode"), Some(("200".into(), "ebpf".into())));
    let (_, metrics) = get(&machine, "http://127.0.0.1:10249/metrics").expect("an answer");
    for name in ["kubeproxy_sync_proxy_rules_duration_seconds_count ", "kubeproxy_proxy_healthz_total{"] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name} in {metrics}");
    }
    assert_eq!(machine.first("status", "ends_sockets"), Some(json!(true)), "this kernel can end sockets");
}

/// S52, E15: addresses and devices of the node that come later.
#[test]
fn s52_addresses_and_uplinks_that_come_are_used_without_a_restart() {
    let machine = Machine::new();
    last_known::store(&last_known::path(&machine.path("state")), &snapshot()).expect("store snapshot");
    let mut command = machine.agent("4096");
    let log = fs::File::create(machine.path("log")).expect("create log");
    command.args(["--uplink", "eth1"]).stderr(log);
    let _agent = Agent(command.spawn().expect("start the agent"));
    machine.wait_ready();
    let problems = machine.ask("problems").expect("problems");
    let missing = |row: &Value| row[0] == "Node here" && row[1] == "missing" && row[2] == "uplink eth1";
    assert!(problems.iter().any(missing), "{problems:?}");

    let run = |script: &str| {
        let status = machine.inside("sh").args(["-c", script]).status().expect("run a shell");
        assert!(status.success(), "{script}");
    };
    run("ip link add eth1 type veth peer name far1 && ip link set eth1 up && ip link set far1 up");
    eventually("the second uplink has its programs", || {
        machine.links().contains(&"from_uplink-eth1".to_owned()).then_some(())
    });
    eventually("nothing is missing any more", || {
        (!machine.ask("problems")?.iter().any(missing)).then_some(())
    });
    let datapath = machine.datapath();
    let maps = datapath.maps();
    let route = |address: [u8; 4]| {
        let key = RouteKey { prefix_len: 32, addr: address };
        maps.routes_v4.get(&key).expect("read the map").map(|route| route.kind)
    };
    assert_ne!(route([198, 51, 100, 7]), Some(kind::HOST));
    run("ip address add 198.51.100.7/32 dev lo");
    eventually("the address is the node's", || (route([198, 51, 100, 7]) == Some(kind::HOST)).then_some(()));
    run("ip address del 198.51.100.7/32 dev lo");
    eventually("the address is nobody's", || (route([198, 51, 100, 7]) != Some(kind::HOST)).then_some(()));

    let config = || maps.config.get(0).expect("read the map").expect("the row");
    assert_ne!(config().netns_cookie, [0, 0]);
    assert_eq!(config().overlay_mtu, 1450);
    // The other nodes are behind the first.
    run("ip link set eth1 mtu 1300 && ip link set eth0 mtu 1400");
    eventually("the overlay fits its uplink", || (config().overlay_mtu == 1350).then_some(()));
    assert_eq!(config().host_ipv4, [192, 0, 2, 1]);
    run("ip address add 203.0.113.9/24 dev eth0 && ip address del 192.0.2.1/24 dev eth0");
    eventually("masquerade follows", || (config().host_ipv4 == [203, 0, 113, 9]).then_some(()));
}

/// S38: a node whose own sockets would take ports of masquerading is told so, and how to put it right.
#[test]
fn s38_ports_shared_with_the_node_are_a_problem_until_they_are_reserved() {
    let machine = Machine::new();
    last_known::store(&last_known::path(&machine.path("state")), &snapshot()).expect("store snapshot");
    let set = |name: &str, value: &str| {
        let script = format!("echo '{value}' > /proc/sys/net/ipv4/{name}");
        assert!(machine.inside("sh").args(["-c", &script]).status().expect("run a shell").success());
    };
    set("ip_local_port_range", "1024 65535");
    let mut command = machine.agent("4096");
    command.args(["--audit-interval", "1"]);
    let _agent = Agent(command.spawn().expect("start the agent"));
    machine.wait_ready();
    let shared = || {
        let problems = machine.ask("problems").expect("problems");
        problems.iter().any(|row| row[1] == "conflict" && row[2].to_string().contains("ports 61000-65535"))
    };
    assert!(shared());
    set("ip_local_reserved_ports", "61000-65535");
    eventually("the problem is gone", || (!shared()).then_some(()));
}

/// E8: what the node itself sends to Services past its sockets is refused only while these are led there, and never in a
/// range that has the node's own network in it; what is left of an agent can be taken away.
#[test]
fn e8_the_node_is_refused_services_only_while_its_sockets_are_led() {
    let mut machine = Machine::new();
    let mut snapshot = snapshot();
    let ranges = ["10.96.0.0/16", "192.0.2.0/23"].map(|range| range.parse().expect("a range"));
    snapshot.service_cidrs.insert("kubernetes".into(), ranges.into());
    last_known::store(&last_known::path(&machine.path("state")), &snapshot).expect("store snapshot");
    let ip = |machine: &Machine, arguments: &str| {
        let output = machine.inside("ip").args(arguments.split(' ')).output().expect("run ip");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let rules = |machine: &Machine| ip(machine, "rule show priority 32000");

    ip(&machine, "rule add to 10.96.0.0/16 iif lo unreachable priority 32000 protocol 81");
    let group = std::mem::replace(&mut machine.cgroup, "/proc".into());
    let agent = machine.start_agent();
    eventually("a rule of a run before is gone", || rules(&machine).is_empty().then_some(()));
    drop(agent);

    machine.cgroup = group;
    let agent = machine.start_agent();
    machine.wait_ready();
    let found = rules(&machine);
    assert!(found.contains("10.96.0.0/16") && found.lines().count() == 1, "{found}");
    let problems = machine.ask("problems").expect("problems");
    let said =
        |row: &Value| row[0] == "Node here" && row[2].to_string().contains("rule against 192.0.2.0/23");
    assert!(problems.iter().any(said), "{problems:?}");

    drop(agent);
    assert_eq!(rules(&machine), found, "kill -9 changes nothing");
    // As docs/install.md says.
    ip(&machine, "-4 rule flush protocol 81");
    ip(&machine, "-6 rule flush protocol 81");
    assert_eq!(rules(&machine), "");
    let removed = machine.inside("rm").arg("-r").arg(machine.path("bpf").join("quilla")).status();
    assert!(removed.expect("run rm").success());
    ip(&machine, "link delete quilla_vxlan");
    assert!(!ip(&machine, "route show table all").contains("proto 81"));
}
