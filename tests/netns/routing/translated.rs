//! A node that has not got the address by which others know it, as behind a translation.

use anyhow::{Context, Result};
use quilla_tests::command::Run;
use quilla_tests::eventually;

use super::{prepare, restart};
use crate::lifecycle::announce;
use crate::mtu::has_mtu;

/// An address of the underlay that no node has.
const ELSEWHERE: &str = "192.168.77.210";

/// E5, E20: in mode native such a node sends IPv4 in tunnels over IPv6, and what they leave is its Pods' MTU, until it has
/// the address. Its neighbour's Pods go on to have the uplink's.
pub(crate) fn an_address_that_is_not_there_costs_a_tunnel() -> Result<()> {
    let mut cluster = prepare("routing-translated", 2)?;
    restart(&mut cluster, &["--routing", "native"])?;
    let pods = ["node-a", "node-b"].map(|node| cluster.pod(node, &node.replace("node", "pod")).start());
    let [near, far] = pods;
    let (near, far) = (near?, far?);
    has_mtu(cluster.node("node-a"), &near, 1500)?;
    let ends = cluster.node("node-a").addresses();
    cluster.node_mut("node-a").kill_podlet()?;
    announce(&cluster, "node-a", [ELSEWHERE, &ends[1].to_string()])?;
    has_mtu(cluster.node("node-a"), &near, 1430).context("known by another address")?;
    has_mtu(cluster.node("node-b"), &far, 1500)?;
    eventually::succeeds("IPv6 goes plainly, in packets that fit", || {
        let to = far.address(true).to_string();
        near.command("ping").args(["-c1", "-W1", "-Mdo", "-s", "1382", &to]).text()
    })?;
    cluster.node("node-a").netns().ip(&format!("addr add {ELSEWHERE}/24 dev eth0"))?;
    has_mtu(cluster.node("node-a"), &near, 1500).context("the address is there")?;
    cluster.stop()
}
