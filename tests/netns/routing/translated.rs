//! A node that has not got the address by which others know it, as behind a translation.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quilla_tests::command::Run;
use quilla_tests::eventually;
use quilla_tests::netns::run_inside;
use quilla_tests::pod::Pod;

use super::{prepare, restart};
use crate::lifecycle::{announce, knows};
use crate::mtu::{has_mtu, largest};

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
    // It answers when the round that heard of the address has given the Pods their MTU.
    knows(cluster.node("node-b"), "node-a", Some(ELSEWHERE))?;
    has_mtu(cluster.node("node-b"), &far, 1500)?;
    gets_there(&near, &far, 1430 - 28).context("IPv4 in a tunnel, in packets that fit")?;
    eventually::succeeds("IPv6 goes plainly, in packets that fit", || {
        let to = far.address(true).to_string();
        near.command("ping").args(["-c1", "-W1", "-Mdo", "-s", "1382", &to]).text()
    })?;
    cluster.node("node-a").netns().ip(&format!("addr add {ELSEWHERE}/24 dev eth0"))?;
    has_mtu(cluster.node("node-a"), &near, 1500).context("the address is there")?;
    largest(&near, &far, false, 1500).context("IPv4 goes plainly")?;
    cluster.stop()
}

/// Sends datagrams of IPv4 until one arrives, whole: answers would go to an address that nobody has.
fn gets_there(from: &Pod, to: &Pod, bytes: usize) -> Result<()> {
    let bound = |pod: &Pod| {
        let address: IpAddr = pod.address(false);
        run_inside(pod.netns(), || UdpSocket::bind((address, 0)))?.context("bind")
    };
    let (sender, receiver) = (bound(from)?, bound(to)?);
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    eventually::succeeds(&format!("{bytes} bytes get there"), || {
        sender.send_to(&vec![b'.'; bytes], receiver.local_addr()?)?;
        let received = receiver.recv(&mut [0; 2048])?;
        ensure!(received == bytes, "{received} bytes arrived");
        Ok(())
    })
}
