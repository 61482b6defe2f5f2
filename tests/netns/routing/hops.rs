//! Next hops of fabrics: in no network of the node, of the other family, or of no use.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, ask};
use quilla_tests::command::Run;
use quilla_tests::eventually;

use super::{PORT, forwarded, prepare, restart, teach_the_fabric};

/// A router that is in no network of the nodes, and one that is nowhere.
const ROUTERS: [&str; 2] = ["172.31.1.1", "172.31.1.2"];
/// How nodes get to each other's IPv4 addresses, and what the route to Pods then says.
const HOPS: [[&str; 2]; 2] = [
    ["via 172.31.1.1 dev eth0 onlink", "via 172.31.1.1 "],
    ["via inet6 fd77::1 dev eth0", "via inet6 fd77::1 "],
];

/// Nodes whose IPv4 addresses are behind a router that is said to be on the link, and behind one that is known by its
/// IPv6 address: Pods and hosts reach Pods of the other node, plainly. A router that cannot be used is told, and the agent
/// does everything else.
pub(crate) fn next_hops_are_as_the_host_has_them() -> Result<()> {
    let mut cluster = prepare("routing-hops", 2)?;
    let ends = ["node-a", "node-b"].map(|node| cluster.node(node).addresses());
    cluster.fabric().ip(&format!("addr add {}/32 dev br0", ROUTERS[0]))?;
    let [a, b] = [(0, 1), (1, 0)].map(|(here, there)| (["node-a", "node-b"][here], ends[there][0]));
    for (node, other) in [a, b] {
        cluster.node(node).netns().ip(&format!("route add {other}/32 {}", HOPS[0][0]))?;
    }
    restart(&mut cluster, &["--audit-interval", "1", "--routing", "native"])?;
    teach_the_fabric(&cluster, &[("node-a", ends[0]), ("node-b", ends[1])])?;
    let far = cluster.pod("node-b", "far").start()?;
    let near = cluster.pod("node-a", "near").start()?;
    let to = SocketAddr::new(far.address(false), PORT);
    let to_pods = || cluster.node("node-a").command("ip").args(["-4", "route", "show", "proto", "81"]).text();
    for [hop, said] in HOPS {
        for (node, other) in [a, b] {
            cluster.node(node).netns().ip(&format!("route replace {other}/32 {hop}"))?;
        }
        eventually::becomes(&format!("the route to Pods goes {said}"), to_pods, |text| text.contains(said))?;
        let before = forwarded(cluster.node("node-a"), "native")?;
        for by in [By::Http, By::Udp] {
            ask(|program| near.command(program), to, by, 3).with_context(|| format!("{hop}: a Pod"))?;
            ask(|program| cluster.node("node-a").command(program), to, by, 3)
                .with_context(|| format!("{hop}: a host"))?;
        }
        ensure!(forwarded(cluster.node("node-a"), "native")? > before, "{hop}: in tunnels");
    }

    let nowhere = ROUTERS[1];
    cluster.node("node-a").netns().ip(&format!(
        "route replace {}/32 via {nowhere} dev eth0 onlink\naddr add {nowhere}/32 dev eth0",
        a.1
    ))?;
    eventually::succeeds("the refusal is told", || {
        let problems = cluster.node("node-a").quilla(&["problems"])?;
        ensure!(problems.contains("which the kernel refused"), "{problems}");
        Ok(())
    })?;
    let route = to_pods()?;
    ensure!(route.lines().count() == 1 && route.contains("dev quilla_vxlan"), "{route}");
    let arguments = ["--audit-interval", "1", "--routing", "native"];
    cluster.node_mut("node-a").start_agent_with(&arguments)?;
    cluster.node_mut("node-a").wait_ready()?;
    let new = cluster.pod("node-a", "new").start()?;
    let to = SocketAddr::new(far.address(true), PORT);
    ask(|program| new.command(program), to, By::Http, 3).context("a Pod that came afterwards")?;
    cluster.stop()
}
