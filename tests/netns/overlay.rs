//! The overlay on the wire: direct encapsulation between nodes and with the kernel's own VXLAN device, with devices that
//! segment and sum for their senders and with some that do not.

mod forged;
mod plain;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, ask, echo};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::eventually;
use quilla_tests::node::Node;
use quilla_tests::pod::Pod;
use serde_json::Value;

pub(crate) use forged::pods_reach_no_tunnel_by_any_address;
pub(crate) use plain::a_plain_vxlan_device_is_a_node;

const PORT: u16 = 8080;
/// More than any packet: whole windows, to be segmented by whoever can.
const STREAM: usize = 4 << 20;
/// What is left of 1500 over IPv4.
const MTU: usize = 1450;

/// The agents of all nodes with these arguments.
pub(crate) fn start(name: &str, nodes: u8, arguments: &[&str]) -> Result<Cluster> {
    let mut cluster = Cluster::builder(name).nodes(nodes).control_plane()?;
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.name().to_owned()).collect();
    for node in &names {
        cluster.node_mut(node).start_podlet()?;
        cluster.node_mut(node).start_agent_with(arguments)?;
    }
    for node in &names {
        cluster.node_mut(node).wait_ready()?;
    }
    Ok(cluster)
}

/// E3, E5, E7: streams, the largest datagrams and datagrams in pieces between Pods of two nodes without the overlay device: with segmentation and
/// checksums left to devices, without the first, without either. No checksum is ever wrong.
pub(crate) fn pods_of_two_nodes_need_no_device() -> Result<()> {
    let cluster = start("overlay-direct", 2, &["--encapsulation", "direct"])?;
    let near = cluster.pod("node-a", "near").start()?;
    let far = cluster.pod("node-b", "far").start()?;
    for off in [&[][..], &["tso", "gso"], &["tso", "gso", "tx", "sg"]] {
        for place in [cluster.node("node-a"), cluster.node("node-b")] {
            switch_off(|program| place.command(program), off)?;
        }
        for pod in [&near, &far] {
            switch_off(|program| pod.command(program), off)?;
        }
        let before = device_packets(&cluster)?;
        for (from, to) in [(&near, &far), (&far, &near)] {
            exchange(from, to)
                .with_context(|| format!("{} to {} without {off:?}", from.name(), to.name()))?;
        }
        ensure!(device_packets(&cluster)? == before, "the overlay device was used: {before:?} before");
    }
    for pod in [&near, &far] {
        no_wrong_checksums(|program| pod.command(program))?;
    }
    for node in cluster.nodes() {
        no_wrong_checksums(|program| node.command(program))?;
        ensure!(status(node)?["encapsulation"] == "direct", "{}", status(node)?);
    }
    // What the stack of a node sends and gets is the device's, also when it comes in by the uplink.
    for v6 in [false, true] {
        let to = SocketAddr::new(far.address(v6), PORT);
        ask(|program| cluster.node("node-a").command(program), to, By::Http, 3)?;
        echo(|program| cluster.node("node-a").command(program), to, By::Http, STREAM)?;
    }
    cluster.stop()
}

/// Nodes that encapsulate directly and nodes whose device does understand each other, and the mode changes under way.
pub(crate) fn modes_mix_and_change() -> Result<()> {
    let mut cluster = start("overlay-mixed", 2, &["--encapsulation", "direct"])?;
    let near = cluster.pod("node-a", "near").start()?;
    let far = cluster.pod("node-b", "far").start()?;
    for arguments in [
        &["--encapsulation", "device"][..],
        &["--encapsulation", "direct", "--overlay-checksum", "true"],
        &["--encapsulation", "direct"],
    ] {
        cluster.node_mut("node-b").start_agent_with(arguments)?;
        cluster.node_mut("node-b").wait_ready()?;
        for (from, to) in [(&near, &far), (&far, &near)] {
            exchange(from, to).with_context(|| format!("{} to {}: {arguments:?}", from.name(), to.name()))?;
        }
        no_wrong_checksums(|program| near.command(program))?;
        no_wrong_checksums(|program| far.command(program))?;
    }
    cluster.stop()
}

/// The agent asks another node, and goes by what arrives there. One that does not answer is named, and asked again.
pub(crate) fn the_agent_finds_out() -> Result<()> {
    let mut cluster = start("overlay-auto", 2, &["--health", "127.0.0.1:10256"])?;
    for (node, other) in [("node-a", "node-b at 10.244."), ("node-b", "node-a at 10.244.")] {
        becomes(cluster.node(node), "device", other)?;
        becomes(cluster.node(node), "device", ":10256: Connection refused")?;
    }
    for node in ["node-a", "node-b"] {
        cluster.node_mut(node).start_agent_with(&["--encapsulation", "auto"])?;
    }
    for node in cluster.nodes() {
        becomes(node, "direct", "gets what the programs encapsulate")?;
    }
    cluster.stop()?;

    // An underlay that loses what may not be fragmented.
    let mut cluster = Cluster::builder("overlay-broken").nodes(2).control_plane()?;
    let rules = "table bridge b { chain c { type filter hook forward priority 0; \
                 udp dport 8472 ip frag-off & 0x4000 != 0 drop; }; }";
    cluster.fabric().command("nft").arg(rules).text()?;
    for node in ["node-a", "node-b"] {
        cluster.node_mut(node).start_podlet()?;
        cluster.node_mut(node).start_agent_with(&["--encapsulation", "auto"])?;
    }
    for node in ["node-a", "node-b"] {
        cluster.node_mut(node).wait_ready()?;
    }
    let near = cluster.pod("node-a", "near").start()?;
    let far = cluster.pod("node-b", "far").start()?;
    for node in cluster.nodes() {
        becomes(node, "device", "gets only what the device encapsulates")?;
    }
    exchange(&near, &far)?;
    cluster.stop()
}

fn becomes(node: &Node, mode: &str, reason: &str) -> Result<()> {
    eventually::succeeds(&format!("{} is {mode}", node.name()), || {
        let status = status(node)?;
        let why = status["encapsulation_reason"].as_str().unwrap_or_default();
        ensure!(status["encapsulation"] == mode && why.contains(reason), "{status}");
        Ok(())
    })
}

fn status(node: &Node) -> Result<Value> {
    let status: Value = serde_json::from_str(&node.quilla(&["-o", "json", "status"])?)?;
    Ok(status[0].clone())
}

/// A stream, the largest datagrams that fit, echoes, as oneself.
fn exchange(from: &Pod, to: &Pod) -> Result<()> {
    for v6 in [false, true] {
        let target = SocketAddr::new(to.address(v6), PORT);
        for by in By::ALL {
            for answer in ask(|program| from.command(program), target, by, 2)? {
                ensure!(
                    answer.server == to.name() && answer.caller == from.address(v6),
                    "{by:?}: {answer:?}"
                );
            }
        }
        echo(|program| from.command(program), target, By::Http, STREAM)?;
        let headers = if v6 { 48 } else { 28 };
        echo(|program| from.command(program), target, By::Udp, MTU - headers)?;
        // In pieces.
        echo(|program| from.command(program), target, By::Udp, 4000)?;
        from.command("ping").args(["-c2", "-i0.2", "-W2", &to.address(v6).to_string()]).text()?;
    }
    Ok(())
}

fn switch_off(place: impl Fn(&str) -> std::process::Command, features: &[&str]) -> Result<()> {
    for feature in features {
        place("ethtool").args(["-K", "eth0", feature, "off"]).text()?;
    }
    Ok(())
}

/// What the overlay devices of all nodes have sent and received.
fn device_packets(cluster: &Cluster) -> Result<Vec<[u64; 2]>> {
    let packets = |node: &Node| {
        let text = node.command("ip").args(["-s", "-json", "link", "show", "quilla_vxlan"]).text()?;
        let links: Value = serde_json::from_str(&text)?;
        let count = |way: &str| links[0]["stats64"][way]["packets"].as_u64().context("no statistics");
        Ok([count("tx")?, count("rx")?])
    };
    cluster.nodes().iter().map(packets).collect()
}

/// Counters of packets whose checksum was wrong.
fn no_wrong_checksums(place: impl Fn(&str) -> std::process::Command) -> Result<()> {
    let text = place("cat").args(["/proc/net/snmp", "/proc/net/snmp6"]).text()?;
    let mut names: Vec<&str> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let wrong = match *words.as_slice() {
            [name, count] if name.ends_with("InCsumErrors") => count != "0",
            [_, first, ..] if first.parse::<i64>().is_err() => {
                names = words;
                false
            }
            _ => names.iter().zip(&words).any(|(name, count)| *name == "InCsumErrors" && *count != "0"),
        };
        ensure!(!wrong, "wrong checksums: {line}\n{text}");
    }
    Ok(())
}
