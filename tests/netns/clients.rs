//! Real clients and real servers through every kind of Service address, from a Pod, a node and the outside, over both
//! families. Each test prints what it tried and fails if a client, an address or a family was left out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::Answer;
use quilla_tests::client::{at, curl, dig, iperf3};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::eventually;
use quilla_tests::node::Node;
use quilla_tests::pod::Pod;
use quilla_tests::topology::OUTSIDE;
use quilla_tests::workload::Workload;
use serde_json::{Value, json};

/// Addresses of a load balancer, which the underlay routes to node-a.
pub(crate) const VIP: [&str; 2] = ["198.51.100.10", "2001:db8:198::10"];
/// External addresses, which the underlay routes to node-b.
pub(crate) const EXTERNAL: [&str; 2] = ["198.51.100.20", "2001:db8:198::20"];

/// The port of every Service here.
const PORT: u16 = 80;

pub(crate) fn parse(texts: [&str; 2]) -> Result<[IpAddr; 2]> {
    Ok([texts[0].parse()?, texts[1].parse()?])
}

/// A Service over `workload`, reachable in every way: ClusterIPs, node ports, a balancer's and external addresses.
pub(crate) fn expose(cluster: &Cluster, name: &str, workload: Workload, more: &Value) -> Result<Exposed> {
    let port = |protocol: &str| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT, "targetPort": workload.port()});
    let mut spec = json!({
        "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": name},
        "externalIPs": EXTERNAL, "ports": [port("TCP"), port("UDP")],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    cluster.apply(&service.to_string())?;
    let ingress = VIP.map(|ip| json!({"ip": ip}));
    let status = json!({"status": {"loadBalancer": {"ingress": ingress}}}).to_string();
    cluster.kubectl(&["patch", "service", name, "--subresource=status", "--type=merge", "-p", &status])?;
    for (address, node) in VIP.map(|ip| (ip, "node-a")).into_iter().chain(EXTERNAL.map(|ip| (ip, "node-b"))) {
        cluster.route(address.parse()?, node)?;
    }
    Exposed::of(cluster, name)
}

/// Where a Service is to be found.
pub(crate) struct Exposed {
    pub(crate) cluster_ips: [IpAddr; 2],
    /// One number for both protocols.
    pub(crate) node_port: u16,
    pub(crate) health_check: Option<u16>,
    nodes: Vec<[IpAddr; 2]>,
}

impl Exposed {
    pub(crate) fn of(cluster: &Cluster, name: &str) -> Result<Self> {
        let spec = cluster.get(&["service", name])?["spec"].take();
        let ip = |index: usize| -> Result<IpAddr> {
            Ok(spec["clusterIPs"][index].as_str().context("two ClusterIPs")?.parse()?)
        };
        let ports: Vec<_> =
            spec["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]).collect();
        ensure!(ports.windows(2).all(|pair| pair[0] == pair[1]), "node ports differ by protocol: {ports:?}");
        let number = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
        Ok(Self {
            cluster_ips: [ip(0)?, ip(1)?],
            node_port: number(ports.first().context("ports")?).context("a node port")?,
            health_check: number(&spec["healthCheckNodePort"]),
            nodes: cluster.nodes().iter().map(Node::addresses).collect(),
        })
    }

    /// What the outside can reach: node ports of every node, the balancer's and the external addresses.
    pub(crate) fn external(&self) -> Result<Vec<SocketAddr>> {
        let node_ports = self.nodes.iter().flat_map(|node| at(*node, self.node_port));
        let others = [parse(VIP)?, parse(EXTERNAL)?];
        Ok(node_ports.chain(others.into_iter().flat_map(|addresses| at(addresses, PORT))).collect())
    }

    /// All of that and the ClusterIPs.
    pub(crate) fn all(&self) -> Result<Vec<SocketAddr>> {
        Ok(at(self.cluster_ips, PORT).into_iter().chain(self.external()?).collect())
    }

    /// What an address is to its Service; `None` if it is none of its.
    fn kind(&self, to: SocketAddr) -> Option<&'static str> {
        let named = to.ip().to_string();
        let node = self.nodes.iter().position(|addresses| addresses.contains(&to.ip()));
        match node {
            Some(0) => Some("node port of node-a"),
            Some(_) => Some("node port of node-b"),
            None if self.cluster_ips.contains(&to.ip()) => Some("ClusterIP"),
            None if VIP.contains(&named.as_str()) => Some("balancer"),
            None if EXTERNAL.contains(&named.as_str()) => Some("external"),
            None => None,
        }
    }

    /// The node that takes what the outside sends to an address.
    fn receiver(&self, to: SocketAddr) -> Result<&'static str> {
        let first = VIP.contains(&to.ip().to_string().as_str()) || self.nodes[0].contains(&to.ip());
        ensure!(first || self.external()?.contains(&to), "{to} is not of the outside");
        Ok(if first { "node-a" } else { "node-b" })
    }
}

/// The client beyond the underlay.
const OUTER: &str = "the outside";

/// Makes a command where a client runs.
type Place<'a> = Box<dyn Fn(&str) -> Command + 'a>;

/// The clients inside the cluster: a Pod, with the socket hooks and without, and a node.
fn inside<'a>(cluster: &'a Cluster, pod: &'a Pod) -> Vec<(&'static str, Place<'a>)> {
    vec![
        ("a Pod", Box::new(|program: &str| pod.command(program))),
        ("a Pod without hooks", Box::new(|program: &str| pod.command_without_hooks(program))),
        ("a node", Box::new(|program: &str| cluster.node("node-a").command(program))),
    ]
}

/// What went wrong where, up to a handful: each costs the patience of a client.
#[derive(Default)]
pub(crate) struct Faults(Vec<String>);

impl Faults {
    pub(crate) fn note(&mut self, what: &str, outcome: Result<()>) -> Result<()> {
        self.0.extend(outcome.err().map(|error| format!("{what}: {error:#}")));
        ensure!(self.0.len() < 4, "after {} faults no more was tried:\n{}", self.0.len(), self.0.join("\n"));
        Ok(())
    }

    pub(crate) fn none(self) -> Result<()> {
        ensure!(self.0.is_empty(), "{} faults:\n{}", self.0.len(), self.0.join("\n"));
        Ok(())
    }
}

/// Who found what, by which protocol, at which kind of address, over which family.
#[derive(Default)]
struct Tried(BTreeMap<(&'static str, &'static str), BTreeSet<(&'static str, bool)>>);

impl Tried {
    fn note(
        &mut self,
        client: &'static str,
        how: &'static str,
        exposed: &Exposed,
        to: SocketAddr,
    ) -> Result<()> {
        let kind = exposed.kind(to).with_context(|| format!("{to} is not of the Service"))?;
        self.0.entry((client, how)).or_default().insert((kind, to.is_ipv6()));
        Ok(())
    }

    /// Prints it; fails unless each of the four clients, by each protocol, tried so many kinds of addresses over both
    /// families.
    fn conclude(&self, protocols: usize, inside: usize, outside: usize) -> Result<()> {
        for ((client, how), found) in &self.0 {
            let kinds: BTreeSet<&str> = found.iter().map(|(kind, _)| *kind).collect();
            println!("{how} from {client}, IPv4 and IPv6: {}", Vec::from_iter(kinds).join(", "));
            let expected = if *client == OUTER { outside } else { inside };
            ensure!(found.len() == 2 * expected, "{how} from {client} tried only {found:?}");
        }
        ensure!(self.0.len() == 4 * protocols, "only {:?} tried", self.0.keys());
        Ok(())
    }
}

/// Every client with every address it can reach.
fn pairs<'a>(
    cluster: &'a Cluster,
    pod: &'a Pod,
    exposed: &Exposed,
) -> Result<Vec<(&'static str, Place<'a>, Vec<SocketAddr>)>> {
    let within = exposed.all()?;
    let mut all: Vec<_> =
        inside(cluster, pod).into_iter().map(|(name, place)| (name, place, within.clone())).collect();
    all.push((OUTER, Box::new(|program: &str| cluster.outside().command(program)), exposed.external()?));
    Ok(all)
}

/// Asks nginx until every server has answered; no question goes unanswered once the first was.
pub(crate) fn curl_all(
    place: &dyn Fn(&str) -> Command,
    to: SocketAddr,
    servers: &[&str],
) -> Result<Vec<Answer>> {
    eventually::succeeds("the first answer", || curl(place, to)?.answer())?;
    let mut answers: Vec<Answer> = Vec::new();
    // Chance may leave one out; that it leaves one out 64 times in a row it may not.
    for _ in 0..64 {
        answers.push(curl(place, to)?.answer()?.answer()?);
        let seen: BTreeSet<&str> = answers.iter().map(|answer| answer.server.as_str()).collect();
        ensure!(seen.iter().all(|server| servers.contains(server)), "strangers among {seen:?}");
        if answers.len() >= 6 && seen.len() == servers.len() {
            return Ok(answers);
        }
    }
    anyhow::bail!("not every one of {servers:?} answered: {answers:?}")
}

/// S2, S3, S4, S23, S27, S30-S32, E14: curl and nginx. The outside is seen as itself where the backend is on the node
/// that received it, and as that node elsewhere; a Pod is seen as itself by ClusterIP.
pub(crate) fn curl_reaches_nginx_by_every_address() -> Result<()> {
    let cluster = Cluster::builder("clients-curl").nodes(2).start()?;
    for (node, name) in [("node-a", "web-a"), ("node-b", "web-b")] {
        cluster.pod(node, name).label("app", "web").runs(Workload::Nginx)?.start()?;
    }
    let pod = cluster.pod("node-a", "client").start()?;
    let exposed = expose(&cluster, "web", Workload::Nginx, &json!({}))?;
    cluster.wait_service("web", 2)?;
    let (mut faults, mut tried, names) = (Faults::default(), Tried::default(), ["web-a", "web-b"]);
    for (client, place, targets) in pairs(&cluster, &pod, &exposed)? {
        for to in targets {
            let outcome = curl_all(&place, to, &names).and_then(|answers| match client {
                OUTER => seen_from_outside(&cluster, &exposed, to, &answers),
                "a Pod" | "a Pod without hooks" if exposed.cluster_ips.contains(&to.ip()) => {
                    let own = pod.address(to.is_ipv6());
                    let other = answers.iter().find(|answer| answer.caller != own);
                    ensure!(other.is_none(), "{own} is seen as another: {other:?}");
                    Ok(())
                }
                _ => Ok(()),
            });
            tried.note(client, "curl", &exposed, to)?;
            faults.note(&format!("{client} to {to}"), outcome)?;
        }
    }
    faults.none()?;
    tried.conclude(1, 5, 4)?;
    cluster.stop()
}

fn seen_from_outside(cluster: &Cluster, exposed: &Exposed, to: SocketAddr, answers: &[Answer]) -> Result<()> {
    let receiver = exposed.receiver(to)?;
    let own: IpAddr = OUTSIDE[usize::from(to.is_ipv6())].parse()?;
    let of_node = addresses(cluster, receiver)?;
    for answer in answers {
        let local = answer.server.ends_with(&receiver[4..]);
        let right = if local { answer.caller == own } else { of_node.contains(&answer.caller) };
        ensure!(right, "by {receiver}, {} sees {}", answer.server, answer.caller);
    }
    Ok(())
}

/// All addresses of a node.
pub(crate) fn addresses(cluster: &Cluster, node: &str) -> Result<Vec<IpAddr>> {
    let text = cluster.node(node).netns().command("ip").args(["-json", "address", "show"]).text()?;
    let links: Value = serde_json::from_str(&text)?;
    let all = links.as_array().into_iter().flatten();
    let all = all.flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
    Ok(all.filter_map(|one| one["local"].as_str()?.parse().ok()).collect())
}

/// S2, S27: one name server behind UDP and TCP of one port number.
pub(crate) fn dig_asks_over_udp_and_tcp() -> Result<()> {
    let cluster = Cluster::builder("clients-dig").nodes(2).start()?;
    cluster.pod("node-b", "names").label("app", "dns").runs(Workload::Dns)?.start()?;
    let pod = cluster.pod("node-a", "client").start()?;
    let exposed = expose(&cluster, "dns", Workload::Dns, &json!({}))?;
    cluster.wait_service("dns", 1)?;
    let (mut faults, mut tried) = (Faults::default(), Tried::default());
    for (client, place, targets) in pairs(&cluster, &pod, &exposed)? {
        for (to, tcp) in targets.into_iter().flat_map(|to| [(to, false), (to, true)]) {
            let outcome = eventually::succeeds("the name server answers", || {
                let server = dig(&place, to, tcp)?.answer()?;
                ensure!(server == "names", "{server} answers");
                Ok(())
            });
            tried.note(client, if tcp { "dig over TCP" } else { "dig over UDP" }, &exposed, to)?;
            faults.note(&format!("{client} to {to}, TCP {tcp}"), outcome)?;
        }
    }
    faults.none()?;
    tried.conclude(2, 5, 4)?;
    cluster.stop()
}

/// E5, E14: streams at full speed and datagrams at a steady rate, with a backend on another node.
pub(crate) fn iperf3_streams_and_datagrams() -> Result<()> {
    let cluster = Cluster::builder("clients-iperf3").nodes(2).start()?;
    cluster.pod("node-b", "meter").label("app", "iperf").runs(Workload::Iperf3)?.start()?;
    let pod = cluster.pod("node-a", "client").start()?;
    let exposed = expose(&cluster, "iperf", Workload::Iperf3, &json!({}))?;
    cluster.wait_service("iperf", 1)?;
    let (mut faults, mut tried) = (Faults::default(), Tried::default());
    for (client, place, targets) in pairs(&cluster, &pod, &exposed)? {
        // A measurement takes its second: ClusterIPs from inside, a node port and the balancer's address from outside.
        let (vip, node_a) = (parse(VIP)?, cluster.node("node-a").addresses());
        let chosen = targets.into_iter().filter(|to| match client {
            OUTER => vip.contains(&to.ip()) || node_a.contains(&to.ip()),
            _ => exposed.cluster_ips.contains(&to.ip()),
        });
        for (to, udp) in chosen.flat_map(|to| [(to, false), (to, true)]) {
            // The server takes one client at a time, and is busy for a moment after each.
            let outcome = eventually::succeeds("iperf3 measures", || iperf3(&place, to, udp));
            tried.note(client, if udp { "iperf3 over UDP" } else { "iperf3 over TCP" }, &exposed, to)?;
            faults.note(&format!("{client} to {to}, UDP {udp}"), outcome.map(drop))?;
        }
    }
    faults.none()?;
    tried.conclude(2, 1, 2)?;
    cluster.stop()
}
