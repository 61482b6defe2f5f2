//! When the reconciler makes a round: once for many Pods that come and go together, and unasked when a backend ends.
//! Needs root.

#[path = "rounds/endpoints.rs"]
mod endpoints;
mod support;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use quilla_agent::cni::{AttachedEndpoint, Origin};
use quilla_agent::metrics::Metrics;
use quilla_agent::node::NodeSettings;
use quilla_agent::reconcile::{Command as Order, Handle, Parts, Reconciler, View, channel};
use quilla_agent::snapshot::Published;
use quilla_cni_protocol::Bandwidth;
use quilla_datapath::{Datapath, Options};
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Node, ObjectName, Protocol, Service, ServicePort, Snapshot,
};
use quilla_plan::BackendKey;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

const PODS: u8 = 60;

/// How many there were, for their names.
static MACHINES: AtomicU32 = AtomicU32::new(0);

/// A namespace with an uplink, and a control group without processes.
struct Machine {
    holder: Child,
    cgroup: PathBuf,
}

impl Machine {
    fn enter() -> Self {
        let script = "ip link add eth0 type veth peer name far && ip link set eth0 up && \
            ip address add 192.0.2.1/24 dev eth0 && echo && exec sleep 300";
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "sh", "-c", script]).stdout(std::process::Stdio::piped());
        let mut holder = unshare.spawn().expect("unshare");
        let mut word = [0];
        let mut said = holder.stdout.take().expect("standard output");
        std::io::Read::read_exact(&mut said, &mut word).expect("the machine is set up");
        let namespace = File::open(format!("/proc/{}/ns/net", holder.id())).expect("its namespace");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter");
        let mounts = fs::read_to_string("/proc/mounts").expect("read mounts");
        let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = lines.find(|fields| fields.get(2) == Some(&"cgroup2")).expect("a cgroup2 file system");
        let number = MACHINES.fetch_add(1, Ordering::Relaxed);
        let name = format!("quilla-agent-rounds-{}-{number}", std::process::id());
        let cgroup = Path::new(mount[1]).join(name);
        fs::create_dir(&cgroup).expect("make a control group");
        Self { holder, cgroup }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
        fs::remove_dir(&self.cgroup).expect("remove the control group");
    }
}

fn snapshot() -> Snapshot {
    let node = Node {
        name: "here".into(),
        addresses: vec![[192, 0, 2, 1].into()],
        pod_cidrs: vec!["10.244.1.0/24".parse().expect("a range")],
        zone: None,
        leaving: false,
    };
    Snapshot { nodes: [(node.name.clone(), Arc::new(node))].into(), ..Snapshot::default() }
}

fn endpoint(number: u8, address: u8) -> AttachedEndpoint {
    AttachedEndpoint {
        container_id: format!("c{number}"),
        ifname: "eth0".into(),
        network: "n".into(),
        netns: "/ns".into(),
        pod_namespace: "test".into(),
        pod_name: format!("pod-{number}"),
        pod_uid: None,
        host_ifname: format!("quil{number}"),
        host_ifindex: 1000 + u32::from(number),
        netns_cookie: 1,
        host_mac: [4; 6],
        pod_mac: [2; 6],
        ipv4: Some([10, 244, 1, address].into()),
        ipv6: None,
        host_ports: Vec::new(),
        bandwidth: Bandwidth::default(),
        limited_at: None,
        mtu: None,
        programs: None,
        origin: Origin::Own,
    }
}

/// Orders for all at once; whose failed.
fn all_at_once(
    runtime: &Runtime,
    handle: &Handle,
    endpoints: impl Iterator<Item = AttachedEndpoint>,
    order: fn(Box<AttachedEndpoint>, quilla_agent::reconcile::Answer) -> Order,
) -> Vec<String> {
    runtime.block_on(async {
        let mut asking = JoinSet::new();
        for endpoint in endpoints {
            let handle = handle.clone();
            asking.spawn(async move {
                let id = endpoint.container_id.clone();
                let done = handle.ask(|answer| order(Box::new(endpoint), answer)).await;
                done.err().map(|_| id)
            });
        }
        asking.join_all().await.into_iter().flatten().collect()
    })
}

fn rounds(metrics: &Metrics, datapath: &Datapath) -> u64 {
    let text = metrics.render(datapath, 0).expect("metrics");
    let line =
        text.lines().find_map(|line| line.strip_prefix("quilla_agent_reconcile_duration_seconds_count "));
    line.and_then(|count| count.parse().ok()).expect("a count of rounds")
}

/// A reconciler at work.
struct Agent {
    machine: Machine,
    directory: tempfile::TempDir,
    datapath: Arc<Datapath>,
    snapshots: watch::Sender<Option<Published>>,
    handle: Handle,
    seen: watch::Receiver<Arc<View>>,
    ended: mpsc::UnboundedReceiver<Vec<BackendKey>>,
    metrics: Arc<Metrics>,
    worker: JoinHandle<()>,
}

impl Agent {
    fn start(snapshot: Snapshot) -> Self {
        Self::start_on(Machine::enter(), &Options::default(), Some(snapshot), Vec::new())
    }

    /// One that remembers these endpoints.
    fn start_on(
        machine: Machine,
        options: &Options,
        snapshot: Option<Snapshot>,
        endpoints: Vec<AttachedEndpoint>,
    ) -> Self {
        let (directory, datapath) = support::datapath(options);
        let datapath = Arc::new(datapath);
        let published =
            snapshot.map(|snapshot| Published { snapshot: Arc::new(snapshot), ..Published::default() });
        let (snapshots, published) = watch::channel(published);
        let (view, seen) = watch::channel(Arc::new(View::default()));
        let (ended_sender, ended) = mpsc::unbounded_channel();
        let (metrics, (handle, orders)) = (Arc::new(Metrics::new()), channel());
        let parts = Parts {
            datapath: Arc::clone(&datapath),
            node: NodeSettings::new("here", &["eth0"]),
            cgroup: machine.cgroup.clone(),
            metrics: Arc::clone(&metrics),
            published,
            view,
            ended: ended_sender,
            endpoints,
            own_services: Vec::new(),
            audit_interval: Duration::from_hours(1),
        };
        let reconciler = Reconciler::new(parts).expect("reads the maps");
        let worker = thread::spawn(move || reconciler.run(&orders));
        Self { machine, directory, datapath, snapshots, handle, seen, ended, metrics, worker }
    }

    /// One round that succeeds.
    fn first_round(&mut self, runtime: &Runtime) {
        assert!(self.handle.tell(Order::SnapshotChanged));
        let first = |view: &Arc<View>| view.programmed || view.failing.is_some();
        let failing = runtime.block_on(self.seen.wait_for(first)).expect("a first round").failing.clone();
        assert_eq!(failing, None);
    }

    /// How many rounds there were.
    fn end(self) -> u64 {
        let Self { machine, directory, datapath, handle, metrics, worker, .. } = self;
        drop(handle);
        worker.join().expect("ends with the last handle");
        let rounds = rounds(&metrics, &datapath);
        drop(datapath);
        let unmounted = Command::new("umount").arg("--lazy").arg(directory.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
        drop(machine);
        rounds
    }
}

/// CNI-16, CNI-18: all that waits takes one round, one of them that cannot be effective is the only one to fail, and
/// what is answered is in the maps.
#[test]
fn who_comes_together_shares_rounds() {
    let mut agent = Agent::start(snapshot());
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let early = all_at_once(&runtime, &agent.handle, [endpoint(1, 2)].into_iter(), Order::Attach);
    assert_eq!(early, ["c1"], "the first round looks for devices, and there is none");
    agent.first_round(&runtime);

    let Agent { datapath, metrics, handle, .. } = &agent;
    let before = rounds(metrics, datapath);
    let pods = || (1..=PODS).map(|number| endpoint(number, number + 1));
    // The newer device has an address that two want.
    let failed = all_at_once(&runtime, handle, pods().chain([endpoint(0, 61)]), Order::Attach);
    assert_eq!(failed, ["c0"]);
    let came = rounds(metrics, datapath);
    assert!(came - before < u64::from(PODS) / 2, "{} rounds", came - before);
    for pod in pods() {
        let row = datapath.maps().interfaces.get(&pod.host_ifindex).expect("a map");
        assert!(row.is_some(), "{}", pod.container_id);
    }

    assert!(all_at_once(&runtime, handle, pods(), Order::Detach).is_empty());
    assert!(rounds(metrics, datapath) - came < u64::from(PODS) / 2);
    assert_eq!(datapath.maps().interfaces.len().expect("a map"), 0);
    agent.end();
}

/// A Service of one endpoint.
fn with_service(mut snapshot: Snapshot) -> Snapshot {
    let name = ObjectName::new("shop", "web");
    let service = Service {
        cluster_ips: vec![[10, 96, 0, 1].into()],
        ports: vec![ServicePort { name: "".into(), port: 80, protocol: Protocol::Tcp, node_port: None }],
        ..Service::new(name.clone())
    };
    let endpoint = Endpoint {
        address: [10, 244, 2, 2].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        pod: None,
        hints: None,
    };
    let slice = EndpointSlice {
        name: ObjectName::new("shop", "web-1"),
        service: name.clone(),
        family: Family::V4,
        ports: vec![EndpointPort { name: "".into(), port: 8080, protocol: Protocol::Tcp }],
        endpoints: vec![endpoint],
        weight: 1,
    };
    snapshot.slices.or_default(name.clone()).insert("web-1".into(), Arc::new(slice));
    snapshot.services.insert(name, Arc::new(service));
    snapshot
}

/// S45: after the last snapshot nobody asks for a round, and a backend that is in no slice ends all the same, in one.
#[test]
fn s45_a_backend_that_is_gone_ends_unasked() {
    let mut agent = Agent::start(with_service(snapshot()));
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    agent.first_round(&runtime);
    let without = Published { snapshot: Arc::new(snapshot()), ..Published::default() };
    agent.snapshots.send_replace(Some(without));
    assert!(agent.handle.tell(Order::SnapshotChanged));
    let backend = BackendKey { address: [10, 244, 2, 2].into(), port: 8080, protocol: 6 };
    assert_eq!(runtime.block_on(agent.ended.recv()), Some(vec![backend]));
    assert_eq!(
        agent.end(),
        3,
        "the first round, that of the snapshot without it, and one that nobody asked for"
    );
}
