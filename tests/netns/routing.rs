//! Plain routing between nodes, beside the overlay and instead of it: who reaches whom as whom in each mode, and what a change
//! of the mode does to what is under way. `node-c` is in a network of its own, behind the fabric.

mod exceptions;
mod hops;
mod translated;

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, ask, echo};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::node::Node;
use quilla_tests::pod::Pod;
use quilla_tests::{binary, eventually};
use serde_json::Value;

use crate::mtu::{has_mtu, largest};
use crate::restart;

pub(crate) use exceptions::exceptions_are_followed;
pub(crate) use hops::next_hops_are_as_the_host_has_them;
pub(crate) use translated::an_address_that_is_not_there_costs_a_tunnel;

const PORT: u16 = 8080;
/// More than any packet.
const STREAM: usize = 1 << 20;
/// The network of `node-c`: its router, and the node.
const FAR: [[&str; 2]; 2] = [["192.168.78.1", "fd78::1"], ["192.168.78.12", "fd78::12"]];

/// The agents' arguments in each mode, and how packets then get from `node-a` to the other two.
const MODES: [(&[&str], [&str; 2]); 4] = [
    (&["--routing", "overlay", "--encapsulation", "direct"], ["overlay", "overlay"]),
    (&["--routing", "overlay", "--encapsulation", "device"], ["overlay", "overlay"]),
    (&["--routing", "auto", "--encapsulation", "direct"], ["native", "overlay"]),
    (&["--routing", "native"], ["native", "native"]),
];

/// Nodes and podlets, without agents; `node-c`, if there is one, in a network of its own.
fn prepare(name: &str, nodes: u8) -> Result<Cluster> {
    let mut cluster = Cluster::builder(name).nodes(nodes).control_plane()?;
    let all: Vec<String> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
    for node in &all {
        if node == "node-c" {
            move_away(&mut cluster, node)?;
        } else {
            cluster.node_mut(node).start_podlet()?;
        }
    }
    Ok(cluster)
}

fn move_away(cluster: &mut Cluster, node: &str) -> Result<()> {
    let [router, own] = FAR;
    cluster.fabric().ip(&format!(
        "link set {node} nomaster\naddr add {}/24 dev {node}\naddr add {}/64 dev {node} nodad",
        router[0], router[1]
    ))?;
    cluster.node(node).netns().ip(&format!(
        "addr flush dev eth0\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
         route replace default via {}\nroute replace ::/0 via {}",
        own[0], own[1], router[0], router[1]
    ))?;
    let addresses = [own[0].parse()?, own[1].parse()?];
    cluster.node_mut(node).announce(&addresses)
}

/// All agents anew with these arguments, one after the other.
fn restart(cluster: &mut Cluster, arguments: &[&str]) -> Result<()> {
    let all: Vec<String> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
    for node in &all {
        cluster.node_mut(node).start_agent_with(arguments)?;
    }
    all.iter().try_for_each(|node| cluster.node_mut(node).wait_ready())
}

/// What `quilla nodes` says of another node.
fn paths(node: &Node) -> Result<Vec<(String, String)>> {
    let rows: Value = serde_json::from_str(&node.quilla(&["-o", "json", "nodes"])?)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(rows.as_array().into_iter().flatten().map(|row| (text(&row["node"]), text(&row["routing"]))).collect())
}

/// Which way packets were forwarded so far.
fn forwarded(node: &Node, path: &str) -> Result<u64> {
    let metrics = node.metrics()?;
    let name = format!("quilla_agent_forwards_total{{path=\"{path}\"}} ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&name));
    value.with_context(|| format!("no {name} in {metrics}"))?.parse().context("a number")
}

/// Lets the fabric know the way to the Pods, as a network without an overlay must.
fn teach_the_fabric(cluster: &Cluster, addresses: &[(&str, [IpAddr; 2])]) -> Result<()> {
    for (node, ends) in addresses {
        let object = cluster.get(&["node", node])?;
        for cidr in object["spec"]["podCIDRs"].as_array().into_iter().flatten() {
            let cidr = cidr.as_str().context("a range")?;
            let end = ends[usize::from(cidr.contains(':'))];
            cluster.fabric().ip(&format!("route replace {cidr} via {end}"))?;
        }
    }
    Ok(())
}

/// E4-E8, E14: Pods and hosts reach each other in each mode, over TCP and UDP, in both families: Pods of all nodes, the node its
/// own Pods as a kubelet must and those of others, Pods the processes of their own and of other nodes. Packets take the way
/// that the mode says, and `quilla nodes` says so.
pub(crate) fn everybody_reaches_everybody_in_each_mode() -> Result<()> {
    let mut cluster = prepare("routing-modes", 3)?;
    restart(&mut cluster, MODES[0].0)?;
    let [a, b] = ["node-a", "node-b"].map(|node| cluster.node(node).addresses());
    let c = [FAR[1][0].parse()?, FAR[1][1].parse()?];
    teach_the_fabric(&cluster, &[("node-a", a), ("node-b", b), ("node-c", c)])?;
    let pods = ["a", "b", "c"]
        .map(|letter| cluster.pod(&format!("node-{letter}"), &format!("pod-{letter}")).start());
    let pods = pods.into_iter().collect::<Result<Vec<_>>>()?;
    let hosts = ["a", "b", "c"].map(|letter| {
        cluster.pod(&format!("node-{letter}"), &format!("host-{letter}")).host_network().start()
    });
    let hosts = hosts.into_iter().collect::<Result<Vec<_>>>()?;
    for (arguments, expected) in MODES {
        restart(&mut cluster, arguments)?;
        let node = cluster.node("node-a");
        let said = paths(node)?;
        ensure!(said.iter().map(|(_, path)| path.as_str()).eq(expected), "{arguments:?}: {said:?}");
        let before = [forwarded(node, "native")?, forwarded(node, "overlay")?];
        matrix(&cluster, &pods, &hosts).with_context(|| format!("{arguments:?}"))?;
        let after = [forwarded(node, "native")?, forwarded(node, "overlay")?];
        let used = [after[0] > before[0], after[1] > before[1]];
        let expects = |path: &str| expected.contains(&path);
        ensure!(used == [expects("native"), expects("overlay")], "{arguments:?}: {before:?} to {after:?}");
    }
    cluster.stop()
}

fn matrix(cluster: &Cluster, pods: &[Pod], hosts: &[Pod]) -> Result<()> {
    for v6 in [false, true] {
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
            let target = SocketAddr::new(pods[to].address(v6), PORT);
            for by in By::ALL {
                for answer in ask(|program| pods[from].command(program), target, by, 1)? {
                    let known = (answer.server.as_str(), answer.caller);
                    ensure!(known == (pods[to].name(), pods[from].address(v6)), "{by:?}: {answer:?}");
                }
            }
            echo(|program| pods[from].command(program), target, By::Http, STREAM)?;
            pods[from].command("ping").args(["-c1", "-W2", &target.ip().to_string()]).text()?;
        }
        for by in [By::Http, By::Udp] {
            for to in pods {
                let target = SocketAddr::new(to.address(v6), PORT);
                let answers = ask(|program| cluster.node("node-a").command(program), target, by, 1)?;
                ensure!(answers[0].server == to.name(), "node-a to {}, {by:?}: {answers:?}", to.name());
            }
            for to in hosts {
                let target = SocketAddr::new(to.address(v6), PORT);
                for from in [&pods[0], &pods[2]] {
                    let answers = ask(|program| from.command(program), target, by, 1)?;
                    ensure!(answers[0].server == to.name(), "{} to {}: {answers:?}", from.name(), to.name());
                }
            }
        }
        let target = SocketAddr::new(pods[1].address(v6), PORT);
        echo(|program| cluster.node("node-a").command(program), target, By::Http, STREAM)?;
    }
    Ok(())
}

/// Hosts and Pods reach the Pods of both nodes, whose filters of reverse paths are strict, as some distributions have them, and
/// which are in modes of their own each.
pub(crate) fn modes_mix_behind_strict_filters() -> Result<()> {
    let mut cluster = prepare("routing-strict", 2)?;
    for node in cluster.nodes() {
        for name in ["all", "default", "eth0"] {
            node.netns().sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "1")?;
        }
    }
    restart(&mut cluster, MODES[0].0)?;
    let pods = ["node-a", "node-b"].map(|node| cluster.pod(node, &node.replace("node", "pod")).start());
    let [a, b] = pods;
    let pods = [a?, b?];
    for modes in [["overlay", "overlay"], ["native", "overlay"], ["auto", "overlay"], ["native", "native"]] {
        for (node, mode) in ["node-a", "node-b"].into_iter().zip(modes) {
            cluster.node_mut(node).start_agent_with(&["--routing", mode])?;
        }
        ["node-a", "node-b"].into_iter().try_for_each(|node| cluster.node_mut(node).wait_ready())?;
        for (node, to) in [("node-a", &pods[1]), ("node-b", &pods[0]), ("node-a", &pods[0])] {
            for v6 in [false, true] {
                let target = SocketAddr::new(to.address(v6), PORT);
                for by in [By::Http, By::Udp] {
                    ask(|program| cluster.node(node).command(program), target, by, 1)
                        .with_context(|| format!("{modes:?}: {node} to {target} {by:?}"))?;
                }
            }
        }
        for (from, to) in [(&pods[0], &pods[1]), (&pods[1], &pods[0])] {
            let target = SocketAddr::new(to.address(false), PORT);
            ask(|program| from.command(program), target, By::Http, 1)
                .with_context(|| format!("{modes:?}: {} to {}", from.name(), to.name()))?;
        }
    }
    cluster.stop()
}

/// Fifty long flows and new connections between two nodes, while one agent after the other is started in another mode, so
/// that the ends are in different ones for a while: none is broken, none lost. Pods have the uplinks' MTU while all goes
/// plainly, and what tunnels leave of it otherwise (E5).
pub(crate) fn modes_change_under_flows() -> Result<()> {
    let mut cluster = prepare("routing-changes", 2)?;
    restart(&mut cluster, MODES[0].0)?;
    let client = cluster.pod("node-a", "client").start()?;
    let server = cluster.pod("node-b", "server").start()?;
    let node = SocketAddr::new(server.address(false), PORT);
    eventually::succeeds("the server answers", || ask(|program| client.command(program), node, By::Http, 1))?;
    let targets = [false, true].map(|v6| SocketAddr::new(server.address(v6), PORT));
    let loads =
        [load(client.command("env"), &targets)?, load(cluster.node("node-a").command("env"), &targets)?];
    for (arguments, _) in MODES.iter().chain(MODES.iter().rev()).skip(1) {
        for node in ["node-a", "node-b"] {
            let node = cluster.node_mut(node);
            node.start_agent_with(arguments)?;
            node.wait_ready()?;
        }
        let mtu = if arguments.contains(&"native") { 1500 } else { 1450 };
        for (node, pod) in [("node-a", &client), ("node-b", &server)] {
            has_mtu(cluster.node(node), pod, mtu).with_context(|| format!("{arguments:?}"))?;
        }
        for v6 in [false, true] {
            largest(&client, &server, v6, mtu).with_context(|| format!("{arguments:?}"))?;
        }
    }
    for load in loads {
        println!("{} changes: {}", 2 * (2 * MODES.len() - 1), restart::finish(load)?);
    }
    cluster.stop()
}

fn load(mut place: Command, targets: &[SocketAddr]) -> Result<Child> {
    place.arg(binary::path("quilla-load")?).args(["--long", "50", "--rate", "20", "--seconds", "300"]);
    place.args(["--patience-seconds", "15"]);
    for target in targets {
        place.args(["--target", &target.to_string()]);
    }
    place.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start the load")
}

/// The host's routes to other nodes' Pods follow the mode. Flushed ones come back at once, long before an audit; somebody
/// else's are untouched, and one in the place of ours is told.
pub(crate) fn routes_are_kept_exactly() -> Result<()> {
    let mut cluster = prepare("routing-routes", 2)?;
    restart(&mut cluster, &["--audit-interval", "3600", "--routing", "overlay"])?;
    let ours = |cluster: &Cluster| -> Result<String> {
        let show = |family: &str| {
            cluster.node("node-a").command("ip").args([family, "route", "show", "proto", "81"]).text()
        };
        Ok(format!("{}{}", show("-4")?, show("-6")?))
    };
    let become_so = |cluster: &Cluster, what: &str| {
        let good = |text: &String| text.lines().count() == 2 && text.lines().all(|line| line.contains(what));
        eventually::becomes(&format!("two routes {what}"), || ours(cluster), good)
    };
    become_so(&cluster, "dev quilla_vxlan")?;
    let node_b = cluster.node("node-b").addresses();
    cluster.node("node-a").netns().ip(&format!("route add 10.99.0.0/16 via {}", node_b[0]))?;
    for (mode, how) in [("native", "via "), ("overlay", "dev quilla_vxlan"), ("native", "dev eth0")] {
        restart(&mut cluster, &["--audit-interval", "3600", "--routing", mode])?;
        let routes = become_so(&cluster, how)?;
        let by_node = node_b.iter().all(|address| routes.contains(&format!("via {address} ")));
        ensure!(by_node == (mode == "native"), "{mode}: {routes}");
        for family in ["-4", "-6"] {
            cluster.node("node-a").command("ip").args([family, "route", "flush", "proto", "81"]).text()?;
        }
        become_so(&cluster, how)?;
    }
    let foreign = cluster.node("node-a").command("ip").args(["route", "show", "10.99.0.0/16"]).text()?;
    ensure!(foreign.contains(&format!("via {}", node_b[0])), "{foreign}");
    let object = cluster.get(&["node", "node-b"])?;
    let pods = object["spec"]["podCIDRs"][0].as_str().context("a range")?.to_owned();
    cluster
        .node("node-a")
        .netns()
        .ip(&format!("route del {pods} proto 81\nroute add {pods} via {} proto bird", node_b[0]))?;
    eventually::succeeds("the other's route is told", || {
        let problems = cluster.node("node-a").quilla(&["problems"])?;
        ensure!(problems.contains(&format!("route to {pods}")), "{problems}");
        Ok(())
    })?;
    let there = cluster.node("node-a").command("ip").args(["route", "show", &pods]).text()?;
    ensure!(there.lines().count() == 1 && there.contains("proto bird"), "{there}");
    cluster.stop()
}
