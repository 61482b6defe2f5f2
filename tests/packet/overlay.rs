//! Direct encapsulation: the outer bytes that leave by the uplink, and what becomes of those that come in by it.
//!
//! Each story is told for both families inside and for both underneath. Segmentation and checksums that are left to a
//! device are shown in namespaces (`tests/netns/overlay.rs`), because a test run's packet has neither.

mod answers;
mod device;
mod hostile;
mod narrow;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::Result;
use quilla_abi::config::{Config, flag};
use quilla_abi::counter::{helper, path};
use quilla_abi::{epoch, node};
use quilla_tests::command::Run;
use quilla_tests::packet::{Fault, Packet, tcp};

pub(crate) use answers::{answers, ends, errors, too_big};
pub(crate) use device::both_ends_choose_the_device_s_family;
pub(crate) use hostile::{from_nobody, malformed, not_ours};
pub(crate) use narrow::{
    another_node_in_the_slot_is_another_way, routers_say_what_fits, routes_say_what_fits,
};

use crate::rig::{
    Family, Hook, OTHER_VTEP, REDIRECT, Rig, SLOT, Seen, UPLINK, VTEP, Who, from_a, from_b, namespace, v4, v6,
};

const VNI: u32 = 7;
const PORT: u16 = 8472;
/// The other node's Ethernet address on the underlay.
const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 9, 9];
/// The uplink's.
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];
/// An outer source port of somebody else's.
const OUTER: u16 = 50_000;

/// What is underneath.
#[derive(Clone, Copy)]
struct Under {
    family: Family,
}

impl Under {
    fn ends(self) -> (IpAddr, IpAddr) {
        (self.family.ip(Who::Host), self.family.ip(Who::OtherNode))
    }

    /// What the other node sends.
    fn frame(self, inner: &Packet) -> Packet {
        let (here, there) = self.ends();
        let inner = inner.clone().macs(OTHER_VTEP, VTEP);
        Self::outer(&Packet::vxlan((there, OUTER), (here, PORT), VNI, &inner))
    }

    /// As a tunnel writes it.
    fn outer(packet: &Packet) -> Packet {
        packet.clone().macs(NEXT_HOP, OWN_MAC).identification(0).fault(Fault::NoUdpChecksum)
    }

    /// The packet leaves for the other node in headers of ours. The outer source port.
    #[track_caller]
    fn left(self, seen: &Seen, inner: &Packet) -> u16 {
        let at = if self.family == Family::V4 { 34 } else { 54 };
        let port = u16::from_be_bytes([seen.frame()[at], seen.frame()[at + 1]]);
        assert!((0x8000..0xc000).contains(&port), "outer source port {port}");
        let (here, there) = self.ends();
        let inner = inner.clone().macs(VTEP, OTHER_VTEP);
        let outer = Packet::vxlan((here, port), (there, PORT), VNI, &inner);
        let outer = Self::outer(&outer).macs(OWN_MAC, NEXT_HOP);
        seen.went(path::OVERLAY, REDIRECT, UPLINK, &outer);
        port
    }
}

/// Tells a story in all four combinations, with direct encapsulation on and the way to the other node known.
fn tell(
    name: &str,
    count_helpers: bool,
    story: impl Fn(&mut Rig, Family, Under) -> Result<()> + Sync,
) -> Result<()> {
    let netns = namespace(name)?;
    netns.run(|| {
        for under in Family::BOTH {
            for family in Family::BOTH {
                let mut rig = Rig::load(&format!("{name}-{family:?}-{under:?}"), count_helpers)?;
                let under = prepare(&rig, under)?;
                story(&mut rig, family, under)?;
            }
        }
        Ok(())
    })?
}

fn prepare(rig: &Rig, family: Family) -> Result<Under> {
    rig.datapath.maps().config.set(0, &direct(Rig::config()))?;
    let mut row = rig.datapath.maps().nodes.get(SLOT)?.expect("the other node");
    row.flags = if family == Family::V4 { node::flag::IPV4 } else { node::flag::IPV6 };
    rig.datapath.maps().nodes.set(SLOT, &row)?;
    rig.bump(epoch::NODES + SLOT)?;
    let (device, address) = (format!("d{UPLINK}"), family.ip(Who::OtherNode).to_string());
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    Command::new("ip").args(["link", "set", &device, "address", &text(OWN_MAC)]).text()?;
    let neighbour =
        ["neigh", "replace", &address, "lladdr", &text(NEXT_HOP), "dev", &device, "nud", "permanent"];
    Command::new("ip").args(neighbour).text()?;
    Ok(Under { family })
}

/// The row with direct encapsulation on.
fn direct(config: Config) -> Config {
    Config {
        flags: config.flags | flag::DIRECT | flag::OPEN,
        tunnel_ipv4: v4(Family::V4.ip(Who::Host)),
        tunnel_ipv6: v6(Family::V6.ip(Who::Host)),
        ..config
    }
}

/// E20: both directions of flows that either side began, and of a Service; all packets of a flow have one port.
pub(crate) fn both_ways() -> Result<()> {
    tell("direct", false, |rig, family, under| {
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        let sent = Packet::udp(a, remote).payload(b"out");
        let first = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        assert!(first.slow());
        let port = under.left(&first, &sent.clone().ttl(63));
        let second = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        assert!(!second.slow());
        assert_eq!(under.left(&second, &sent.ttl(63)), port, "one flow, one port");
        let answer = Packet::udp(remote, a).payload(b"in");
        let seen = rig.run(Hook::FromUplink, &under.frame(&answer));
        assert!(!seen.slow());
        seen.to_pod_a(&answer.ttl(63));

        let b = family.at(Who::PodB, 80);
        let begun = Packet::tcp(remote, b).flags(tcp::SYN);
        rig.run(Hook::FromUplink, &under.frame(&begun)).to_pod_b(&begun.ttl(63));
        let answer = Packet::tcp(b, remote).flags(tcp::SYN | tcp::ACK);
        let seen = rig.run(Hook::FromPodB, &from_b(answer.clone()));
        assert!(!seen.slow());
        under.left(&seen, &answer.ttl(63));

        let (client, frontend) = (family.at(Who::PodA, 41_000), family.at(Who::Service(15), 80));
        let backend = family.at(Who::Remote, 8080);
        let sent = Packet::tcp(client, frontend).flags(tcp::SYN);
        let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        under.left(&seen, &sent.between(client, backend).ttl(63));
        let answer = Packet::tcp(backend, client).flags(tcp::SYN | tcp::ACK);
        let seen = rig.run(Hook::FromUplink, &under.frame(&answer));
        seen.to_pod_a(&answer.between(frontend, client).ttl(63));
        // By the device: the same flow, the same way.
        if under.family == Family::V4 {
            let late = Packet::tcp(backend, client).macs(OTHER_VTEP, VTEP);
            let seen = rig.run(crate::rig::FROM_OTHER_NODE, &late);
            assert!(!seen.slow());
            seen.to_pod_a(&late.between(frontend, client).ttl(63));
        }
        Ok(())
    })
}

/// Promise 1: an established packet costs one lookup in the flow table, and one helper call per header that comes or goes.
pub(crate) fn an_established_packet_costs_one_lookup() -> Result<()> {
    tell("direct-cost", true, |rig, family, under| {
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        let (frontend, backend) = (family.at(Who::Service(15), 80), family.at(Who::Remote, 8080));
        let ways = [
            ("out", Hook::FromPodA, from_a(Packet::udp(a, remote))),
            ("in", Hook::FromUplink, under.frame(&Packet::udp(remote, a))),
            ("to a Service", Hook::FromPodA, from_a(Packet::tcp(a, frontend))),
            ("its answer", Hook::FromUplink, under.frame(&Packet::tcp(backend, a))),
        ];
        let opening = from_a(Packet::tcp(a, frontend).flags(tcp::SYN));
        rig.run(Hook::FromPodA, &opening);
        for (_, hook, packet) in &ways {
            rig.run(*hook, packet);
            rig.run(*hook, packet);
        }
        for (way, hook, packet) in ways {
            let counts = rig.helpers(hook, &packet);
            check_cost(way, hook, &counts, &format!("{family:?} over {:?}", under.family));
        }
        Ok(())
    })
}

fn check_cost(way: &str, hook: Hook, counts: &BTreeMap<u32, u64>, place: &str) {
    let count = |kind| counts.get(&kind).copied().unwrap_or_default();
    println!("{place}, {way}: {counts:?}");
    assert_eq!(count(helper::LOOKUP_FLOW), 1, "{place}, {way}: {counts:?}");
    for kind in [helper::LOOKUP_HASH, helper::LOOKUP_LPM, helper::UPDATE, helper::DELETE, helper::TUNNEL] {
        assert_eq!(count(kind), 0, "{place}, {way}: {counts:?}");
    }
    assert_eq!(count(helper::PACKET), 1, "{place}, {way}: {counts:?}");
    assert_eq!(count(helper::REDIRECT), 1, "{place}, {way}: {counts:?}");
    let opened = u64::from(matches!(hook, Hook::FromUplink));
    // The sum of the whole packet is one more in IPv6.
    assert!(count(helper::CHECKSUM) <= 3 + opened, "{place}, {way}: {counts:?}");
}

/// What is not encapsulated here is the device's: other modes, no known way, no address of ours, too long to be whole.
pub(crate) fn left_to_the_device() -> Result<()> {
    tell("device", false, |rig, family, under| {
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        let sent = Packet::udp(a, remote);
        let whole = direct(Rig::config());
        let off = Config { flags: whole.flags & !flag::DIRECT, ..whole };
        let sums = Config { flags: whole.flags | flag::TUNNEL_CHECKSUM, ..whole };
        let nameless = Config { tunnel_ipv4: [0; 4], tunnel_ipv6: [0; 16], ..whole };
        for config in [off, sums, nameless] {
            rig.datapath.maps().config.set(0, &config)?;
            rig.run(Hook::FromPodA, &from_a(sent.clone())).to_other_node(&sent.clone().ttl(63));
        }
        // The other node has moved to an address that nothing leads to.
        rig.datapath.maps().config.set(0, &whole)?;
        let row = rig.datapath.maps().nodes.get(SLOT)?.expect("the other node");
        let moved = node::Node { ipv4: [127, 0, 0, 9], ipv6: v6("::1".parse()?), ..row };
        rig.datapath.maps().nodes.set(SLOT, &moved)?;
        rig.bump(epoch::NODES + SLOT)?;
        rig.run(Hook::FromPodA, &from_a(sent.clone())).to_other_node(&sent.clone().ttl(63));
        rig.datapath.maps().nodes.set(SLOT, &row)?;
        rig.bump(epoch::NODES + SLOT)?;
        under.left(&rig.run(Hook::FromPodA, &from_a(sent.clone())), &sent.ttl(63));
        // E5: what may be fragmented.
        rig.datapath.maps().config.set(0, &Config { overlay_mtu: 1400, ..whole })?;
        rig.bump(epoch::NODES + SLOT)?;
        if family == Family::V4 {
            rig.bump(epoch::GLOBAL)?;
            let long = Packet::udp(a, remote).payload(&[7; 1400]).may_be_fragmented();
            rig.run(Hook::FromPodA, &from_a(long.clone())).to_other_node(&long.ttl(63));
        }
        Ok(())
    })
}

/// A tunnel runs over a family in which both ends have an address: over IPv6 if this node has no IPv4, whatever the other has.
pub(crate) fn both_ends_choose_the_family() -> Result<()> {
    tell("families", false, |rig, family, under| {
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        let mut row = rig.datapath.maps().nodes.get(SLOT)?.expect("the other node");
        row.flags = node::flag::IPV4 | node::flag::IPV6;
        rig.datapath.maps().nodes.set(SLOT, &row)?;
        rig.bump(epoch::NODES + SLOT)?;
        let mut config = direct(Rig::config());
        if under.family == Family::V6 {
            config.tunnel_ipv4 = [0; 4];
        }
        rig.datapath.maps().config.set(0, &config)?;
        let sent = Packet::udp(a, remote);
        under.left(&rig.run(Hook::FromPodA, &from_a(sent.clone())), &sent.ttl(63));
        Ok(())
    })
}

/// What is for the node itself goes to its stack by the overlay device, as if that had opened it.
pub(crate) fn to_the_stack() -> Result<()> {
    tell("direct-host", false, |rig, family, under| {
        let (remote, gateway) = (family.at(Who::Remote, 40_000), family.at(Who::Gateway, 80));
        let sent = Packet::tcp(remote, gateway).flags(tcp::SYN);
        let seen = rig.run(Hook::FromUplink, &under.frame(&sent));
        let expected = sent.clone().macs(OTHER_VTEP, VTEP);
        seen.went(path::STACK, REDIRECT, crate::rig::OVERLAY, &expected);
        assert_eq!(seen.mark(), quilla_abi::program::SENT_MARK);
        let met = rig.run(Hook::FromOverlaySent, &expected);
        met.passed();
        assert_eq!(met.mark(), 0, "the mark is between our programs");
        // The host's answer is the device's, unless it is a probe.
        let answer = Packet::tcp(gateway, remote).flags(tcp::SYN | tcp::ACK);
        let expected = answer.clone().macs(VTEP, OTHER_VTEP);
        rig.run(Hook::ToOverlay, &answer).went(path::HOST_OVERLAY, crate::rig::OK, 0, &expected);
        let mut config = direct(Rig::config());
        config.flags &= !flag::DIRECT;
        rig.datapath.maps().config.set(0, &config)?;
        rig.bump(epoch::GLOBAL)?;
        // What a probe finds out is for probes, before and after others' packets.
        let sent = Packet::tcp(family.at(Who::PodA, 40_000), family.at(Who::Remote, 80)).flags(tcp::SYN);
        for _ in 0..2 {
            under.left(&rig.run(Hook::ToOverlayProbe, &answer), &answer);
            rig.run(Hook::FromPodA, &from_a(sent.clone())).to_other_node(&sent.clone().ttl(63));
        }
        Ok(())
    })
}

/// Congestion in the tunnel reaches the receiver, and on the way in it is not forgotten (RFC 6040).
pub(crate) fn congestion() -> Result<()> {
    tell("congestion", false, |rig, family, under| {
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        for (inner, outer) in [(0, 0), (1, 1), (2, 2), (3, 2)] {
            let sent = Packet::udp(a, remote).traffic_class(inner);
            let seen = rig.run(Hook::FromPodA, &from_a(sent));
            let at = &seen.frame()[14..];
            let class = if under.family == Family::V4 { at[1] } else { at[0] << 4 | at[1] >> 4 };
            assert_eq!(class, outer, "outer class for {inner}");
        }
        rig.summed = true;
        for inner in [1, 2, 3] {
            let sent = Packet::udp(remote, a).traffic_class(inner);
            let seen = rig.run(Hook::FromUplink, &under.frame(&sent).traffic_class(3));
            seen.to_pod_a(&sent.traffic_class(3).ttl(63));
        }
        let deaf = Packet::udp(remote, a);
        let seen = rig.run(Hook::FromUplink, &under.frame(&deaf).traffic_class(3));
        assert_eq!(seen.reason, Some(quilla_abi::DropReason::BadTunnelHeader), "{seen:?}");
        Ok(())
    })
}

/// Where a frame of the other node goes at the end of this story's address.
fn at(family: Family, who: Who) -> SocketAddr {
    family.at(who, 9000)
}
