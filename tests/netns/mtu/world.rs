//! An uplink without nodes behind it, whose MTU changes nobody's: only what leaves by it.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::{Daemon, Run};
use quilla_tests::netns::Netns;
use quilla_tests::{binary, eventually};

use super::PORT;
use crate::bulk::Bulk;
use crate::clients::parse;

/// The node on its second uplink, and the host there.
const NODE: [&str; 2] = ["192.168.88.10", "fd88::10"];
const WORLD: [&str; 2] = ["192.168.88.1", "fd88::1"];

/// E5: streams to a host in the world, while the uplink to it becomes narrower than Pods are: they go on, in segments that
/// fit, and the Pod has learnt what does. The overlay does not get narrower.
pub(crate) fn the_way_to_the_world_narrows() -> Result<()> {
    let mut cluster = Cluster::builder("mtu-world").nodes(2).control_plane()?;
    let world = wire(&cluster)?;
    for (node, uplinks) in [("node-a", "eth1,eth0"), ("node-b", "eth0")] {
        cluster.node_mut(node).start_podlet()?;
        cluster.node_mut(node).start_agent_with(&["--uplink", uplinks])?;
    }
    for node in ["node-a", "node-b"] {
        cluster.node_mut(node).wait_ready()?;
    }
    let pod = cluster.pod("node-a", "near").start()?;
    let mut server = world.command(&binary::path("quilla-pod")?.to_string_lossy());
    let log = cluster.node("node-a").files().join("log/world.log");
    let server = Daemon::start("world", server.args(["--name", "world", "--port", &PORT.to_string()]), &log)?;
    let streams = parse(WORLD)?.map(|address| {
        let to = SocketAddr::new(address, PORT);
        eventually::succeeds("the world answers", || Bulk::to(&pod, "world", to))
    });
    let streams: Vec<Bulk> = streams.into_iter().collect::<Result<_>>()?;
    streams.iter().try_for_each(Bulk::goes_on)?;

    cluster.node("node-a").netns().ip("link set eth1 mtu 1400")?;
    world.ip("link set node-a mtu 1400")?;
    streams.iter().try_for_each(Bulk::goes_on).context("after the uplink has become narrower")?;
    for to in WORLD {
        let route = pod.command("ip").args(["route", "get", to]).text()?;
        ensure!(route.contains("mtu 1400"), "the Pod knows {route}");
    }
    super::has_mtu(cluster.node("node-a"), &pod, 1450)?;
    for stream in streams {
        stream.finish()?;
    }
    drop(server);
    cluster.stop()
}

/// Gives node-a an `eth1` to a host of the world, which knows the node's own addresses behind it. Packets are on it as
/// they would be on a wire: nobody else cuts them.
fn wire(cluster: &Cluster) -> Result<Netns> {
    let (world, node) = (Netns::create("mtu-world.second")?, cluster.node("node-a"));
    let netns = node.netns();
    world.ip(&format!(
        "link add node-a type veth peer name eth1 netns {}\nlink set node-a up",
        netns.name()
    ))?;
    netns.ip("link set eth1 mtu 1500 up")?;
    for (index, length) in [(0, 24), (1, 64)] {
        let flags = if index == 0 { "" } else { "nodad" };
        world.ip(&format!("addr add {}/{length} dev node-a {flags}", WORLD[index]))?;
        netns.ip(&format!("addr add {}/{length} dev eth1 {flags}", NODE[index]))?;
        world.ip(&format!("route add {} via {}", node.addresses()[index], NODE[index]))?;
    }
    for feature in ["tso", "gso"] {
        node.command("ethtool").args(["-K", "eth1", feature, "off"]).text()?;
        world.command("ethtool").args(["-K", "node-a", feature, "off"]).text()?;
    }
    Ok(world)
}
