//! How large a packet may be: an uplink whose MTU changes under load, and a link in the underlay that is narrower than any
//! node knows.

mod world;

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, echo};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::counters::Counters;
use quilla_tests::netns::Netns;
use quilla_tests::node::Node;
use quilla_tests::pod::Pod;
use quilla_tests::topology::FABRIC;
use quilla_tests::{binary, eventually};
use serde_json::{Value, json};

use crate::bulk::Bulk;
use crate::overlay::start;
use crate::traffic::Traffic;

pub(crate) use world::the_way_to_the_world_narrows;

const PORT: u16 = 8080;
/// Whole windows.
const STREAM: usize = 4 << 20;

/// E5: running Pods and new ones follow the uplinks' MTU up and down, with both ways to encapsulate. Streams go on, datagrams
/// that fit all the while are not lost, and nothing is dropped but what is too big.
pub(crate) fn pods_follow_the_uplink() -> Result<()> {
    for mode in ["direct", "device"] {
        let name = format!("mtu-{mode}");
        let cluster = start(&name, 2, &["--encapsulation", mode])?;
        let near = cluster.pod("node-a", "near").start()?;
        let far = cluster.pod("node-b", "far").start()?;
        let traffic = Traffic::start();
        traffic.join(&near)?;
        traffic.join(&far)?;
        traffic.flows()?;
        let before = drops(&cluster)?;
        let streams = [(&near, &far, false), (&far, &near, true)];
        let streams = streams.map(|(from, to, v6)| Bulk::start(from, to, v6));
        let streams: Vec<Bulk> = streams.into_iter().collect::<Result<_>>()?;
        for (round, mtu) in [9000, 1500, 9000, 1500].into_iter().enumerate() {
            set_underlay(&cluster, mtu)?;
            let inner = mtu - 50;
            for (node, pod) in [("node-a", &near), ("node-b", &far)] {
                has_mtu(cluster.node(node), pod, inner).with_context(|| format!("{mode}: {mtu}"))?;
            }
            streams.iter().try_for_each(Bulk::goes_on)?;
            traffic.flows()?;
            let new = cluster.pod("node-a", &format!("new-{round}")).start()?;
            has_mtu(cluster.node("node-a"), &new, inner)?;
            for v6 in [false, true] {
                largest(&near, &far, v6, inner).with_context(|| format!("{mode}: {mtu}"))?;
                largest(&new, &far, v6, inner).with_context(|| format!("{mode}: {mtu}, a new Pod"))?;
            }
        }
        for stream in streams {
            stream.finish()?;
        }
        let (sent, lost) = traffic.finish()?;
        println!("{mode}: {lost} of {sent} datagrams lost");
        ensure!(lost == 0, "{mode}: {lost} of {sent} datagrams lost, of those that always fit");
        let after = drops(&cluster)?;
        let moved = after.since(&before);
        // What the kernel of a new Pod says (MLD) before the Pod has its row is nobody's traffic.
        let expected = |name: &&str| name.contains("too_big") || name.contains("unknown_interface");
        ensure!(moved.keys().all(expected), "{mode}: dropped besides what is too big: {moved:?}");
        cluster.stop()?;
    }
    Ok(())
}

/// The largest packet that is not fragmented gets there and back; one byte more is refused to its sender.
pub(crate) fn largest(from: &Pod, to: &Pod, v6: bool, mtu: usize) -> Result<()> {
    let headers = if v6 { 48 } else { 28 };
    eventually::succeeds("the largest packet gets there", || ping(from, to.address(v6), mtu - headers))?;
    ensure!(ping(from, to.address(v6), mtu - headers + 1).is_err(), "one byte more gets there, too");
    Ok(())
}

/// One echo, whole or not at all.
fn ping(from: &Pod, to: IpAddr, bytes: usize) -> Result<()> {
    let to = to.to_string();
    from.command("ping").args(["-c1", "-W1", "-Mdo", "-s", &bytes.to_string(), &to]).text().map(drop)
}

/// The underlay first while it grows, the nodes first while it shrinks: as an operator would.
pub(crate) fn set_underlay(cluster: &Cluster, mtu: usize) -> Result<()> {
    let nodes = || cluster.nodes().iter().try_for_each(|node| set_mtu(node, "eth0", mtu));
    if mtu < 9000 {
        nodes()?;
    }
    for node in cluster.nodes() {
        cluster.fabric().ip(&format!("link set {} mtu {mtu}", node.name()))?;
    }
    cluster.fabric().ip(&format!("link set br0 mtu {mtu}"))?;
    if mtu < 9000 { Ok(()) } else { nodes() }
}

fn set_mtu(node: &Node, device: &str, mtu: usize) -> Result<()> {
    node.netns().ip(&format!("link set {device} mtu {mtu}")).map(drop)
}

/// Both sides of the Pod's interface, and the overlay device of its node.
pub(crate) fn has_mtu(node: &Node, pod: &Pod, mtu: usize) -> Result<()> {
    eventually::succeeds(&format!("{} and {} have {mtu}", node.name(), pod.name()), || {
        let inside = links(pod.command("ip"))?;
        let outside = links(node.command("ip"))?;
        let eth0 = inside.iter().find(|link| link["ifname"] == "eth0").context("eth0 of the Pod")?;
        let peer =
            outside.iter().find(|link| link["ifindex"] == eth0["link_index"]).context("the host side")?;
        let overlay = outside.iter().find(|link| link["ifname"] == "quilla_vxlan").context("the overlay")?;
        let found = [eth0, peer, overlay].map(|link| link["mtu"].clone());
        ensure!(found == [mtu, mtu, mtu].map(Value::from), "Pod, host side, overlay: {found:?}");
        Ok(())
    })
}

fn links(mut command: Command) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&command.args(["-json", "link", "show"]).text()?)?)
}

/// Packets dropped on all nodes, by node and reason.
pub(crate) fn drops(cluster: &Cluster) -> Result<Counters> {
    let mut all = Vec::new();
    for node in cluster.nodes() {
        let text = node.metrics()?;
        let lines = text.lines().filter(|line| line.starts_with("quilla_agent_drops_total"));
        for (name, value) in lines.filter_map(|line| line.rsplit_once(' ')) {
            all.push((format!("{} {name}", node.name()), value.parse()?));
        }
    }
    Ok(all.into_iter().collect())
}

/// E4, E5: a router between two nodes whose next link carries only 1400 bytes. Whoever sends more from a Pod is told what
/// fits the tunnel, in both families, over both; the first packets get lost, and no later ones.
pub(crate) fn a_narrow_link_between_nodes() -> Result<()> {
    for (over_v6, mode) in [(false, "direct"), (true, "direct"), (true, "device")] {
        let name = format!("narrow-{}-{mode}", if over_v6 { "v6" } else { "v4" });
        let mut cluster = start(&name, 2, &["--encapsulation", mode])?;
        let router = divide(&cluster, &name)?;
        if over_v6 {
            only_ipv6(&mut cluster)?;
        }
        let near = cluster.pod("node-a", "near").start()?;
        let far = cluster.pod("node-b", "far").start()?;
        let (wide, fits) = if over_v6 { (1430, 1330) } else { (1450, 1350) };
        for v6 in [false, true] {
            let routers = [cluster.fabric(), &router];
            narrow((&near, &far), routers, v6, (wide, fits))
                .with_context(|| format!("{name}, IPv6 inside: {v6}"))?;
        }
        drop(router);
        cluster.stop()?;
    }
    Ok(())
}

fn narrow(
    (near, far): (&Pod, &Pod),
    routers: [&Netns; 2],
    v6: bool,
    (wide, fits): (usize, usize),
) -> Result<()> {
    let target = SocketAddr::new(far.address(v6), PORT);
    let headers = if v6 { 48 } else { 28 };
    let whole = |bytes: usize| -> Result<String> {
        let mut ask = near.command(&binary::path("quilla-ask")?.to_string_lossy());
        ask.args(["--protocol", "udp", "--patience-seconds", "1", "--bytes", &(bytes - headers).to_string()]);
        ask.arg(target.to_string()).text()
    };
    // Of each way two: the router tells the node by the first, and the node the Pod by the second.
    let lost = (0..5).take_while(|_| whole(wide).is_err()).count();
    ensure!(lost <= 4, "{lost} datagrams lost");
    for (pod, other) in [(near, far), (far, near)] {
        let route = pod.command("ip").args(["route", "get", &other.address(v6).to_string()]).text()?;
        ensure!(route.contains(&format!("mtu {fits}")), "{} knows {route}", pod.name());
    }
    let before = routers.iter().map(|router| too_large(router)).collect::<Result<Vec<_>>>()?;
    echo(|program| near.command(program), target, By::Http, STREAM)?;
    let after = routers.iter().map(|router| too_large(router)).collect::<Result<Vec<_>>>()?;
    ensure!(before == after, "segments were too large although both ends know: {before:?}, then {after:?}");
    ping(near, far.address(v6), fits - headers)
}

/// How many packets of each family a router could not send on whole.
fn too_large(router: &Netns) -> Result<[u64; 2]> {
    let text = router.command("cat").args(["/proc/net/snmp", "/proc/net/snmp6"]).text()?;
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
    let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
    let v4 = names.zip(values).find(|(name, _)| *name == "FragFails").context("FragFails")?.1;
    let v6 = text.lines().find_map(|line| line.strip_prefix("Ip6FragFails")).context("Ip6FragFails")?;
    Ok([v4.parse()?, v6.trim().parse()?])
}

/// Puts node-b behind a router of its own, and a link of 1400 bytes between that and the underlay.
///
/// ```text
///   node-a ── 1500 ── fabric ── 1400 ── router ── 1500 ── node-b
/// ```
fn divide(cluster: &Cluster, name: &str) -> Result<Netns> {
    let router = Netns::create(&format!("{name}.router"))?;
    for sysctl in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        router.sysctl(sysctl, "1")?;
    }
    let [a, b] = ["node-a", "node-b"].map(|node| cluster.node(node));
    cluster.fabric().ip(&format!(
        "link set node-b netns {router}\n\
         link add narrow mtu 1400 type veth peer name fabric mtu 1400 netns {router}\n\
         link set narrow up\n\
         addr add 192.168.78.1/30 dev narrow\n\
         addr add fd78::1/64 dev narrow nodad",
        router = router.name()
    ))?;
    router.ip("link set fabric up\n\
         link set node-b up\n\
         addr add 192.168.78.2/30 dev fabric\n\
         addr add fd78::2/64 dev fabric nodad\n\
         addr add 192.168.77.254/32 dev node-b\n\
         addr add fd77::254/128 dev node-b nodad\n\
         route add default via 192.168.78.1\n\
         route add ::/0 via fd78::1")?;
    for (index, gateway, next) in [(0, "192.168.77.254", "192.168.78.2"), (1, "fd77::254", "fd78::2")] {
        let [from, to] = [a, b].map(|node| node.addresses()[index]);
        router.ip(&format!("route add {to} dev node-b"))?;
        cluster.fabric().ip(&format!("route add {to} via {next}"))?;
        a.netns().ip(&format!("route add {to} via {}", FABRIC[index]))?;
        b.netns().ip(&format!(
            "route add {gateway} dev eth0\n\
             route add {from} via {gateway}\n\
             route add {} via {gateway}",
            FABRIC[index]
        ))?;
        b.netns()
            .ip(&format!("route replace {} via {gateway}", if index == 0 { "default" } else { "::/0" }))?;
    }
    // It went down when it moved, and with it what was routed by it.
    for node in [a, b] {
        let addresses = [FABRIC[0], FABRIC[1]];
        for address in addresses {
            eventually::succeeds("the control plane is reached", || {
                node.command("ping").args(["-c1", "-W1", address]).text()
            })?;
        }
    }
    Ok(router)
}

/// Has the cluster know the nodes by their IPv6 addresses alone, so that tunnels run over IPv6.
fn only_ipv6(cluster: &mut Cluster) -> Result<()> {
    let nodes: Vec<(String, IpAddr)> =
        cluster.nodes().iter().map(|node| (node.name().to_owned(), node.addresses()[1])).collect();
    for (node, address) in &nodes {
        cluster.node_mut(node).announce(&[*address])?;
    }
    for (node, address) in &nodes {
        eventually::succeeds("the node is known by IPv6", || {
            let object = cluster.get(&["node", node])?;
            let expected = json!([
                {"type": "InternalIP", "address": address.to_string()},
                {"type": "Hostname", "address": node},
            ]);
            ensure!(object["status"]["addresses"] == expected, "{}", object["status"]["addresses"]);
            Ok(())
        })?;
        for other in cluster.nodes() {
            eventually::succeeds("agents know it by IPv6", || {
                let nodes = other.quilla(&["-o", "json", "nodes"])?;
                ensure!(!nodes.contains("192.168.77."), "{nodes}");
                Ok(())
            })?;
        }
    }
    Ok(())
}
