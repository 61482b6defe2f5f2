//! Endpoints that come, go and flap, and a Service that changes its type, under flows that must not notice.
//!
//! The truth about a change is what the kernel's maps say: `observe` reads who may get new connections from the moment
//! on at which a client can find out. `write` makes the changes, `judge` compares both with what clients met.

mod judge;
mod observe;
mod write;

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::{binary, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::clients::{EXTERNAL, parse};

/// The Service's name and port.
const NAME: &str = "churn";
const PORT: u16 = 80;
/// Where the Pods serve.
const TARGET: u16 = 8080;
/// How long, if nobody says otherwise.
const SECONDS: u64 = 60;
/// Long flows and new connections a second: the sums of three clients.
const LONG: usize = 500;
const RATE: usize = 500;

/// What happens to a Pod's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Nothing.
    Steady,
    /// Ready and not ready in turn; it keeps its flows.
    Flapping,
    /// Ends gracefully, goes and comes again; joins when the long flows stand.
    Leaving,
}

/// One endpoint of one family, in a slice of its own.
#[derive(Clone, Debug)]
struct Endpoint {
    pod: String,
    node: String,
    address: IpAddr,
    life: Life,
}

impl Endpoint {
    fn slice(&self) -> String {
        format!("{}-{}", self.pod, if self.address.is_ipv6() { "v6" } else { "v4" })
    }
}

/// Nanoseconds since 1970, as `quilla-load` counts.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// S17, S50, S10, E17: 100 endpoint changes and 2 type changes a second, for `QUILLA_CHURN_SECONDS`, under 500 long flows
/// and 500 new connections a second, by ClusterIP at the socket and per packet and from outside. No long flow breaks, no
/// connection is lost, and none goes to an endpoint after its leaving was published.
pub(crate) fn endpoints_come_and_go_under_load() -> Result<()> {
    let seconds = match std::env::var("QUILLA_CHURN_SECONDS") {
        Ok(text) => text.parse().context("QUILLA_CHURN_SECONDS")?,
        Err(_) => SECONDS,
    };
    let cluster = Cluster::builder("churn").nodes(2).start()?;
    let endpoints = pods(&cluster)?;
    let frontends = service(&cluster, &endpoints)?;
    let observer = observe::Observer::start(cluster.node("node-a").bpffs(), &frontends)?;
    let stable = endpoints.iter().filter(|one| one.life != Life::Leaving).count();
    eventually::becomes(
        "the first endpoints are published",
        || observer.members(),
        |found| *found == 2 * stable,
    )?;

    let mut loads = Vec::new();
    let hooked = cluster.pod("node-a", "hooked").start()?;
    let packets = cluster.pod("node-a", "packets").start()?;
    let (cluster_ips, external) = frontends.split_at(2);
    for (place, targets) in [
        (hooked.command("env"), cluster_ips),
        (packets.command_without_hooks("env"), cluster_ips),
        (cluster.outside().command("env"), external),
    ] {
        loads.push(Load::start(place, targets)?);
    }
    for load in &loads {
        load.established()?;
    }
    let changes = write::churn(&cluster, &endpoints, seconds)?;
    let mut connections = Vec::new();
    for load in loads {
        connections.extend(load.stop()?);
    }
    let observations = observer.stop()?;
    let report = judge::judge(&endpoints, &changes, &observations, &connections)?;
    println!("{report}");
    let asked = usize::try_from(seconds)? * write::RATE;
    ensure!(changes.len() >= asked / 2, "only {} changes were made of {asked} asked for", changes.len());
    cluster.stop()
}

/// Two Pods that stay, four that flap, six that leave, over both nodes.
fn pods(cluster: &Cluster) -> Result<Vec<Endpoint>> {
    let lives = [(Life::Steady, "steady", 2), (Life::Flapping, "flapping", 4), (Life::Leaving, "leaving", 6)];
    let mut names = Vec::new();
    for (life, name, count) in lives {
        for number in 0..count {
            let node = ["node-a", "node-b"][number % 2];
            names.push((cluster.pod(node, &format!("{name}-{number}")).create()?, node, life));
        }
    }
    let mut endpoints = Vec::new();
    for (name, node, life) in names {
        for address in cluster.wait_pod(&name)?.addresses() {
            endpoints.push(Endpoint { pod: name.clone(), node: node.to_owned(), address: *address, life });
        }
    }
    Ok(endpoints)
}

/// The Service and its slices; its frontends: ClusterIPs, then external addresses, which stay whatever its type.
fn service(cluster: &Cluster, endpoints: &[Endpoint]) -> Result<Vec<SocketAddr>> {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": {
        "ipFamilyPolicy": "RequireDualStack", "externalIPs": EXTERNAL,
        "ports": [{"port": PORT, "targetPort": TARGET}]}});
    let slices = endpoints.iter().map(|endpoint| {
        let step = if endpoint.life == Life::Leaving { write::Step::Gone } else { write::Step::Ready };
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": endpoint.slice(), "labels": {"kubernetes.io/service-name": NAME}},
            "addressType": if endpoint.address.is_ipv6() { "IPv6" } else { "IPv4" },
            "ports": [{"name": "", "port": TARGET, "protocol": "TCP"}], "endpoints": step.endpoints(endpoint)})
    });
    let items: Vec<Value> = std::iter::once(service).chain(slices).collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    let external = parse(EXTERNAL)?;
    for address in external {
        cluster.route(address, "node-a")?;
    }
    let spec = &cluster.get(&["service", NAME])?["spec"];
    let ip = |index: usize| -> Result<IpAddr> {
        Ok(spec["clusterIPs"][index].as_str().context("two ClusterIPs")?.parse()?)
    };
    let all = [ip(0)?, ip(1)?].into_iter().chain(external);
    Ok(all.map(|address| SocketAddr::new(address, PORT)).collect())
}

/// A new connection as a client met it.
#[derive(Clone, Debug)]
struct Connection {
    begun: u64,
    target: SocketAddr,
    server: String,
}

/// A running `quilla-load` and what it tells.
struct Load {
    child: Child,
    first: mpsc::Receiver<String>,
    reader: JoinHandle<Result<Vec<Connection>>>,
    complaints: JoinHandle<String>,
}

impl Load {
    fn start(mut place: Command, targets: &[SocketAddr]) -> Result<Self> {
        place.arg(binary::path("quilla-load")?).args(["--tell", "--pause-milliseconds", "200"]);
        place.args(["--long", &(LONG / 3 + 1).to_string(), "--rate", &(RATE / 3 + 1).to_string()]);
        place.args(["--seconds", "3600"]);
        for target in targets {
            place.args(["--target", &target.to_string()]);
        }
        let spawned = place.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.context("start the load")?;
        let (told, said) = (child.stdout.take().context("output")?, child.stderr.take().context("errors")?);
        let (sender, first) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut lines = BufReader::new(told).lines();
            if let Some(line) = lines.next() {
                // Nobody waits for it when the test has failed already.
                drop(sender.send(line.context("read")?));
            }
            let told = lines.map_while(Result::ok).filter(|line| !line.starts_with('{'));
            told.map(|line| connection(&line)).collect()
        });
        let complaints = thread::spawn(move || std::io::read_to_string(said).unwrap_or_default());
        Ok(Self { child, first, reader, complaints })
    }

    fn established(&self) -> Result<()> {
        let line = self.first.recv_timeout(eventually::PATIENCE).context("the long flows do not stand")?;
        ensure!(line == "established", "{line}");
        Ok(())
    }

    /// Ends it; an error if it lost anything, or had ended before.
    fn stop(mut self) -> Result<Vec<Connection>> {
        let stopped = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let status = self.child.wait().context("wait for the load")?;
        let connections = self.reader.join().expect("reading does not panic");
        let said = self.complaints.join().expect("reading does not panic");
        stopped.context("the load is still running")?;
        ensure!(status.success(), "the load ended with {status}: {said}");
        connections
    }
}

fn connection(line: &str) -> Result<Connection> {
    let mut words = line.split(' ');
    let mut word = || words.next().with_context(|| format!("not a connection: {line}"));
    let (begun, target, server) = (word()?.parse()?, word()?.parse()?, word()?.to_owned());
    Ok(Connection { begun, target, server })
}
