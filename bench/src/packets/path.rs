//! The paths: connections opened through the programs themselves, and of each the packet to be measured.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use quilla_abi::counter::path;
use quilla_abi::flow::FlowKey;
use quilla_abi::program::{FROM_OVERLAY, FROM_POD, FROM_UPLINK, TO_POD, TO_UPLINK};
use quilla_ebpf_core::{V4, V6};
use quilla_tests::packet::{Packet, decode, tcp};

use super::rig::{Rig, Step, alternate};
use super::world::{Addresses, NEXT_HOP, OVERLAY, PODS, PORTS, UPLINK, UPLINK_MAC};

/// A packet of an established connection at a hook, and how it leaves.
pub(super) struct Path {
    pub(super) name: &'static str,
    pub(super) step: Step,
    /// A row of `forwards`.
    pub(super) exit: u32,
}

impl Path {
    pub(super) fn family(&self) -> &'static str {
        if self.step.packet().source().is_ipv4() { "4" } else { "6" }
    }

    /// A test run has no tunnel metadata; only programs loaded for tracing take the far end from elsewhere.
    pub(super) fn needs_trace(&self) -> bool {
        self.step.program == FROM_OVERLAY
    }
}

/// Opens the connections, and makes every packet one that can be sent again as the program leaves it.
pub(super) fn establish(rig: &mut Rig, at: &Addresses) -> Result<Vec<Path>> {
    let [a, b] = at.pods;
    let [port, target] = PORTS;
    let mut paths = Vec::new();
    let mut add = |name, step: &Step, exit| paths.push(Path { name, step: step.clone(), exit });

    let there = from_pod(0, (a, 40_001), (b, port));
    connect(rig, &there, |client| Ok(from_pod(1, (b, port), client)))?;
    add("Pod → Pod, same node", &there, path::LOCAL_POD);

    let there = from_pod(0, (a, 40_002), (at.service, port));
    let back = connect(rig, &there, |client| Ok(from_pod(1, (b, target), client)))?;
    for step in [&there, &back] {
        repeatable(rig, step, None)?;
    }
    add("Pod → ClusterIP, same node", &there, path::LOCAL_POD);
    add("reply of the ClusterIP", &back, path::LOCAL_POD);

    let there = from_pod(0, (a, 40_003), (at.remote, port));
    let overlay = |to| Step::new(FROM_OVERLAY, OVERLAY, Packet::tcp((at.remote, port), to));
    let back = connect(rig, &there, |client| Ok(overlay(client)))?;
    add("Pod → Pod of another node", &there, path::OVERLAY);
    add("overlay → Pod", &back, path::LOCAL_POD);

    let there = from_pod(0, (a, 40_004), (at.world[0], port));
    let uplink = |from, to| from_world(Packet::tcp((from, port), to));
    let back = connect(rig, &there, |client| Ok(uplink(at.world[0], client)))?;
    repeatable(rig, &there, None)?;
    // Only what is addressed to the node is looked up there: so that it stays that way, the source changes instead.
    let node = back.packet().destination();
    let other = uplink(at.world[1], SocketAddr::new(node.ip(), node.port() ^ 1));
    repeatable(rig, &back, Some(&other))?;
    add("Pod → world, masqueraded", &there, path::UPLINK);
    add("world → Pod, reply at the uplink", &back, path::LOCAL_POD);

    let there = Step::new(TO_POD, PODS[0].0, Packet::tcp((at.host, 40_005), (a, port)));
    connect(rig, &there, |client| Ok(from_pod(0, (a, port), client)))?;
    add("host → Pod", &there, path::LOCAL_POD);

    let foreign = from_world(Packet::tcp((at.world[0], 40_006), (at.host, 22)));
    add("uplink in, not ours", &foreign, path::PASSED);
    let own = Step::new(TO_UPLINK, UPLINK, Packet::tcp((at.host, 40_007), (at.world[0], 22)));
    add("uplink out, the host's own", &own, path::PASSED);
    Ok(paths)
}

pub(super) fn from_pod(
    pod: usize,
    source: (IpAddr, u16),
    destination: impl quilla_tests::packet::Endpoint,
) -> Step {
    const GATEWAY: [u8; 6] = [2, 0, 0, 0, 2, 1];
    let (device, mac) = PODS[pod];
    Step::new(FROM_POD, device, Packet::tcp(source, destination).macs(mac, GATEWAY))
}

/// A frame for the uplink's own Ethernet address: others are let go at once.
pub(super) fn from_world(packet: Packet) -> Step {
    Step::new(FROM_UPLINK, UPLINK, packet.macs(NEXT_HOP, UPLINK_MAC))
}

/// Shakes hands; `back` makes the answers' packet from the address that the server sees.
fn connect(rig: &mut Rig, there: &Step, back: impl FnOnce(SocketAddr) -> Result<Step>) -> Result<Step> {
    let first = decode(rig.run(there, &there.flags(tcp::SYN), 1)?.packet);
    let field =
        |names: [&str; 2]| names.iter().find_map(|name| first.get(name)).context("a field of the packet");
    let client =
        SocketAddr::new(field(["ipv4.src", "ipv6.src"])?.parse()?, field(["tcp.sport"; 2])?.parse()?);
    let back = back(client)?;
    rig.run(&back, &back.flags(tcp::SYN | tcp::ACK), 1)?;
    rig.run(there, &there.frame(), 1)?;
    Ok(back)
}

/// Lets the step's packet be translated to and fro; see [`alternate`].
fn repeatable(rig: &Rig, step: &Step, other: Option<&Step>) -> Result<()> {
    let maps = rig.maps();
    if step.packet().source().is_ipv4() {
        let key = |step: &Step| -> FlowKey<[u8; 4]> { step.key(v4) };
        alternate::<V4>(&maps.flows_v4, key(step), other.map(key))
    } else {
        let key = |step: &Step| -> FlowKey<[u8; 16]> { step.key(v6) };
        alternate::<V6>(&maps.flows_v6, key(step), other.map(key))
    }
}

pub(super) fn v4(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(v4) => v4.octets(),
        IpAddr::V6(_) => unreachable!("the packet is IPv4"),
    }
}

pub(super) fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(_) => unreachable!("the packet is IPv6"),
    }
}

/// Fails unless the packet, after one run and after two, leaves as it should with right checksums.
pub(super) fn check(rig: &mut Rig, path: &Path) -> Result<()> {
    let frame = path.step.frame();
    for times in [1, 2] {
        let before = rig.forwarded(path.exit)?;
        let left = decode(rig.run(&path.step, &frame, times)?.packet);
        let forwarded = rig.forwarded(path.exit)? - before;
        ensure!(forwarded == u64::from(times), "{forwarded} of {times} packets were forwarded:\n{left}");
        if let Some((name, value)) = left.fields().find(|(_, value)| value.contains("wrong")) {
            bail!("after {times} runs {name} is {value}:\n{left}");
        }
    }
    Ok(())
}
