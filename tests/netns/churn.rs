//! Endpoints that come, go and flap, and a Service that changes its type, under flows that must not notice.
//!
//! The truth about a change is what the kernel's maps say: `observe` reads who may get new connections from the moment
//! on at which a client can find out. `write` makes the changes, `load` the connections; `judge` compares both with what
//! clients met, and `affinity` looks at those that should have come back to their server.

mod affinity;
mod judge;
mod load;
mod observe;
mod write;

use std::net::{IpAddr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use quilla_tests::client::at;
use quilla_tests::cluster::Cluster;
use quilla_tests::eventually;
use quilla_tests::node::Node;
use serde_json::{Value, json};

use crate::clients::{EXTERNAL, VIP, parse};
use load::{Connection, Load};

/// The Service that changes its type, and the one whose clients come back to their server.
const CHANGING: &str = "changing";
const STICKY: &str = "sticky";
const PORT: u16 = 80;
/// Where the Pods serve.
const TARGET: u16 = 8080;
/// How long, if nobody says otherwise.
const SECONDS: u64 = 60;
/// Changes of a type that flaps.
const FLAPS: usize = 1000;

/// What happens to a Pod's endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// Nothing.
    Steady,
    /// One Pod at a time is not ready for a while; clients that come back to it must go elsewhere.
    Resting,
    /// Ready and not ready in turn; it keeps its flows.
    Flapping,
    /// Ends gracefully, goes and comes again; joins when the long flows stand.
    Leaving,
}

/// One endpoint of one Service and one family, in a slice of its own.
#[derive(Clone, Debug)]
struct Endpoint {
    service: &'static str,
    pod: String,
    node: String,
    address: IpAddr,
    life: Life,
}

impl Endpoint {
    fn slice(&self) -> String {
        format!("{}-{}-{}", self.service, self.pod, if self.address.is_ipv6() { "v6" } else { "v4" })
    }

    fn is_behind(&self, frontend: &Frontend) -> bool {
        self.service == frontend.service && self.address.is_ipv6() == frontend.at.is_ipv6()
    }
}

/// Where clients find a Service for as long as the test runs.
#[derive(Clone, Copy, Debug)]
struct Frontend {
    service: &'static str,
    at: SocketAddr,
    /// For clients outside, or for those inside.
    external: bool,
}

/// Nanoseconds since 1970, as `quilla-load` counts.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// S17, S18, S50, S10, E17: 100 endpoint changes and 2 type changes a second, for `QUILLA_CHURN_SECONDS`, under 500 long
/// flows and 500 new connections a second, by ClusterIP at the socket and per packet and from outside, there also by a
/// node port that its Service loses with its type. No long flow breaks, no connection is lost, none goes to an endpoint
/// after its leaving was published, and clients with affinity leave their server then, and only then.
pub(crate) fn endpoints_come_and_go_under_load() -> Result<()> {
    let seconds = match std::env::var("QUILLA_CHURN_SECONDS") {
        Ok(text) => text.parse().context("QUILLA_CHURN_SECONDS")?,
        Err(_) => SECONDS,
    };
    let cluster = Cluster::builder("churn").nodes(2).start()?;
    let endpoints = pods(&cluster)?;
    let frontends = services(&cluster, &endpoints)?;
    let observer = observed(&cluster, &endpoints, &frontends)?;
    let loads = loads(&cluster, &frontends)?;
    let changes = write::churn(&cluster, &endpoints, seconds)?;
    let sent_again = loads.iter().map(Load::sent_again).sum::<Result<u64>>()?;
    let (mut connections, mut messages) = (Vec::new(), 0);
    for load in loads {
        let told = load.stop()?;
        connections.extend(told.connections);
        messages += told.messages;
    }
    let observations = observer.stop()?;
    let evidence = judge::Evidence {
        endpoints: &endpoints,
        frontends: &frontends,
        changes: &changes.endpoints,
        observations: &observations,
        connections: &connections,
    };
    println!("{}", judge::judge(&evidence)?);
    println!("{}", affinity::judge(&evidence)?);
    println!(
        "{} long flows: {messages} messages, {sent_again} segments sent again; {} changes of type in {seconds} s",
        3 * load::LONG,
        changes.types
    );
    changes.ensure_made(seconds)?;
    load::ensure_generated(connections.len(), messages, seconds)?;
    cluster.stop()
}

/// S17, S50: a Service whose type flaps 100 times a second breaks no long flow and loses no connection (bad input).
pub(crate) fn a_type_that_flaps_breaks_no_flow() -> Result<()> {
    let cluster = Cluster::builder("flap").nodes(2).start()?;
    let endpoints = pods(&cluster)?;
    let frontends = services(&cluster, &endpoints)?;
    drop(observed(&cluster, &endpoints, &frontends)?.stop()?);
    let loads = loads(&cluster, &frontends)?;
    write::flap(&cluster, FLAPS)?;
    for load in loads {
        let told = load.stop()?;
        ensure!(told.messages > 0 && !told.connections.is_empty(), "{} messages", told.messages);
    }
    cluster.stop()
}

/// Who may get new connections, once the first endpoints are published.
fn observed(cluster: &Cluster, endpoints: &[Endpoint], frontends: &[Frontend]) -> Result<observe::Observer> {
    let observer = observe::Observer::start(cluster.node("node-a").bpffs(), frontends)?;
    let stable = endpoints.iter().filter(|one| one.life != Life::Leaving).count();
    eventually::becomes(
        "the first endpoints are published",
        || observer.members(),
        |found| *found == 2 * stable,
    )?;
    Ok(observer)
}

/// The clients, once their long flows stand.
fn loads(cluster: &Cluster, frontends: &[Frontend]) -> Result<[Load; 3]> {
    let hooked = cluster.pod("node-a", "hooked").start()?;
    let packets = cluster.pod("node-a", "packets").start()?;
    let outside = cluster.outside();
    let (inside, external) = frontends.split_at(4);
    let node_ports = node_ports(cluster)?;
    let loads = [
        Load::start("hooked", |program| hooked.command(program), inside, &[])?,
        Load::start("packets", |program| packets.command_without_hooks(program), inside, &[])?,
        Load::start("outside", |program| outside.command(program), external, &node_ports)?,
    ];
    loads.iter().try_for_each(Load::established)?;
    Ok(loads)
}

/// Two Pods that stay, four that flap, six that leave, over both nodes; each with an endpoint of each family in each
/// Service. Of those that stay, the Service with affinity has one at a time, or its clients would come to rest there.
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
            let sticky = if life == Life::Steady { Life::Resting } else { life };
            for (service, life) in [(CHANGING, life), (STICKY, sticky)] {
                let (pod, node) = (name.clone(), node.to_owned());
                endpoints.push(Endpoint { service, pod, node, address: *address, life });
            }
        }
    }
    Ok(endpoints)
}

/// The Services and their slices; their frontends: ClusterIPs, then external addresses, which stay whatever the type.
fn services(cluster: &Cluster, endpoints: &[Endpoint]) -> Result<Vec<Frontend>> {
    let service = |name: &str, external: [&str; 2], kind: &str, affinity: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {
            "type": kind, "sessionAffinity": affinity, "ipFamilyPolicy": "RequireDualStack", "externalIPs": external,
            "ports": [{"port": PORT, "targetPort": TARGET}]}})
    };
    let described = [(CHANGING, EXTERNAL), (STICKY, VIP)];
    let mut items =
        vec![service(CHANGING, EXTERNAL, "NodePort", "None"), service(STICKY, VIP, "ClusterIP", "ClientIP")];
    items.extend(endpoints.iter().map(|endpoint| {
        let step = if endpoint.life == Life::Leaving { write::Step::Gone } else { write::Step::Ready };
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": endpoint.slice(), "labels": {"kubernetes.io/service-name": endpoint.service}},
            "addressType": if endpoint.address.is_ipv6() { "IPv6" } else { "IPv4" },
            "ports": [{"name": "", "port": TARGET, "protocol": "TCP"}], "endpoints": step.endpoints(endpoint)})
    }));
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string())?;
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for (service, external) in described {
        let spec = &cluster.get(&["service", service])?["spec"];
        let ips = spec["clusterIPs"].as_array().context("clusterIPs")?.iter().filter_map(Value::as_str);
        for ip in ips {
            let at = SocketAddr::new(ip.parse()?, PORT);
            inside.push(Frontend { service, at, external: false });
        }
        for address in parse(external)? {
            cluster.route(address, "node-a")?;
            outside.push(Frontend { service, at: SocketAddr::new(address, PORT), external: true });
        }
    }
    ensure!(inside.len() == 4, "two ClusterIPs each: {inside:?}");
    inside.append(&mut outside);
    Ok(inside)
}

/// Where the outside finds the changing Service on every node until its first change of type.
fn node_ports(cluster: &Cluster) -> Result<Vec<SocketAddr>> {
    let spec = &cluster.get(&["service", CHANGING])?["spec"];
    let port = spec["ports"][0]["nodePort"].as_u64().context("a node port")?;
    let port = u16::try_from(port).context("a node port")?;
    Ok(cluster.nodes().iter().map(Node::addresses).flat_map(|addresses| at(addresses, port)).collect())
}
