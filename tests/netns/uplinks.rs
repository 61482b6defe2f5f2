//! A node with two uplinks and a client behind each. The main routing table knows one way to both clients.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result};
use quilla_tests::client::at;
use quilla_tests::cluster::Cluster;
use quilla_tests::netns::Netns;
use quilla_tests::workload::Workload;
use serde_json::json;

use crate::clients::{Exposed, curl_all, expose, parse};

/// The node and its router on the second uplink.
const NODE: [&str; 2] = ["192.168.88.10", "fd88::10"];
const ROUTER: [&str; 2] = ["192.168.88.1", "fd88::1"];
/// The client behind that router. Nobody else has a way to it.
const CLIENT: [&str; 2] = ["198.18.0.2", "2001:db8:200::2"];

/// A client: its uplink, its commands, and the node's addresses as it knows them.
type Way<'a> = (&'a str, &'a dyn Fn(&str) -> Command, [IpAddr; 2]);

/// E15: what comes in by an uplink is answered by it, wherever the backend is and the routing table points: the answer
/// that took the other one would find no way to its client.
pub(crate) fn each_uplink_answers_its_own_clients() -> Result<()> {
    let mut cluster = Cluster::builder("uplinks").nodes(2).control_plane()?;
    let second = second_uplink(&cluster)?;
    for node in ["node-a", "node-b"] {
        cluster.node_mut(node).start_podlet()?;
    }
    cluster.node_mut("node-a").start_agent_with(&[
        "--uplink",
        "eth1",
        "--node-port-addresses",
        "192.168.0.0/16,fd00::/8",
    ])?;
    cluster.node_mut("node-b").start_agent()?;
    for node in ["node-a", "node-b"] {
        cluster.node_mut(node).wait_ready()?;
    }
    for (node, name) in [("node-a", "web-a"), ("node-b", "web-b")] {
        cluster.pod(node, name).label("app", "web").runs(Workload::Nginx)?.start()?;
    }
    let Exposed { node_port, .. } = expose(&cluster, "web", Workload::Nginx, &json!({}))?;
    cluster.wait_service("web", 2)?;
    let first = |program: &str| cluster.outside().command(program);
    let other = |program: &str| second.command(program);
    let ways: [Way<'_>; 2] = [
        ("the first uplink", &first, cluster.node("node-a").addresses()),
        ("the second uplink", &other, parse(NODE)?),
    ];
    // In turn, so that neither lives on what the other taught the node.
    for _ in 0..2 {
        for (way, place, addresses) in ways {
            for to in at(addresses, node_port) {
                curl_all(&place, to, &["web-a", "web-b"]).with_context(|| format!("{to} by {way}"))?;
            }
        }
    }
    cluster.stop()
}

/// Gives node-a an `eth1` to a router of its own, which is the client, too. The default route by `eth0` is the better one.
fn second_uplink(cluster: &Cluster) -> Result<Netns> {
    let (second, node) = (Netns::create("uplinks.second")?, cluster.node("node-a").netns());
    second
        .ip(&format!("link add node-a type veth peer name eth1 netns {}\nlink set node-a up", node.name()))?;
    node.ip("link set eth1 mtu 1500 up")?;
    for (index, length) in [(0, 24), (1, 64)] {
        let flags = if index == 0 { "" } else { "nodad" };
        second.ip(&format!(
            "addr add {}/{length} dev node-a {flags}\naddr add {} dev lo {flags}",
            ROUTER[index], CLIENT[index]
        ))?;
        let any = ["0.0.0.0/0", "::/0"][index];
        second.ip(&format!("route add {any} via {} dev node-a src {}", NODE[index], CLIENT[index]))?;
        node.ip(&format!(
            "addr add {}/{length} dev eth1 {flags}\nroute add {any} via {} dev eth1 metric 4096",
            NODE[index], ROUTER[index]
        ))?;
    }
    Ok(second)
}
