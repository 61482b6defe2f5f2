//! Without a tunnel: packets for another node's Pods that leave as they are, and those that come so (E4, E8, E19, E20).

use std::net::SocketAddr;
use std::process::Command;

use anyhow::Result;
use quilla_abi::config::{Config, flag};
use quilla_abi::counter::{helper, path};
use quilla_abi::program::SENT_MARK;
use quilla_abi::{DropReason, epoch, node};
use quilla_tests::command::Run;
use quilla_tests::packet::{Fault, IcmpError, Packet, tcp};

use crate::answers::made;
use crate::outside::{balance, chosen_port};
use crate::rig::{
    FROM_OTHER_NODE, Family, Hook, OK, OTHER_VTEP, REDIRECT, Rig, SLOT, Seen, TCP, UPLINK, VTEP, Who, from_a,
    from_b, namespace, v4, v6,
};

/// The other node's Ethernet address on the underlay.
const THERE: [u8; 6] = [2, 0, 0, 0, 9, 9];
/// The uplink's.
const HERE: [u8; 6] = [2, 0, 0, 0, 9, 1];
/// Somebody else's.
const STRANGER: [u8; 6] = [2, 0, 0, 0, 9, 66];

const NATIVE: u16 = node::flag::NATIVE_V4 | node::flag::NATIVE_V6;

/// Tells a story with the other node reached plainly, and known as a neighbour.
fn tell(
    name: &str,
    count_helpers: bool,
    story: impl Fn(&mut Rig, Family) -> Result<()> + Sync,
) -> Result<()> {
    let netns = namespace(name)?;
    netns.run(|| {
        for family in Family::BOTH {
            let mut rig = Rig::load(&format!("{name}-{family:?}"), count_helpers)?;
            let config = Config {
                tunnel_ipv4: v4(Family::V4.ip(Who::Host)),
                tunnel_ipv6: v6(Family::V6.ip(Who::Host)),
                ..Rig::config()
            };
            rig.datapath.maps().config.set(0, &config)?;
            route(&rig, NATIVE)?;
            let (device, address) = (format!("d{UPLINK}"), family.ip(Who::OtherNode).to_string());
            let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
            Command::new("ip").args(["link", "set", &device, "address", &text(HERE)]).text()?;
            let there = text(THERE);
            let known = ["neigh", "replace", &address, "lladdr", &there, "dev", &device, "nud", "permanent"];
            Command::new("ip").args(known).text()?;
            story(&mut rig, family)?;
        }
        Ok(())
    })?
}

/// What the agent writes when the mode changes.
fn route(rig: &Rig, native: u16) -> Result<()> {
    let nodes = &rig.datapath.maps().nodes;
    let row = nodes.get(SLOT)?.expect("the other node");
    nodes.set(SLOT, &node::Node { flags: row.flags & !NATIVE | native, ..row })?;
    rig.bump(epoch::NODES + SLOT)
}

/// As the other node sends it.
fn plain(packet: &Packet) -> Packet {
    packet.clone().macs(THERE, HERE)
}

/// As the overlay device has it from the other node.
fn opened(packet: &Packet) -> Packet {
    packet.clone().macs(OTHER_VTEP, VTEP)
}

/// It leaves as it is; the kernel writes the Ethernet addresses of one packet a second.
#[track_caller]
fn left(seen: &Seen, expected: &Packet) {
    let mac = |at: usize| -> [u8; 6] { seen.frame()[at..at + 6].try_into().expect("six bytes") };
    let known = mac(6) == HERE;
    let (from, to) = if known { (HERE, THERE) } else { (mac(6), mac(0)) };
    let expected = expected.clone().macs(from, to);
    seen.went(path::NATIVE, REDIRECT, UPLINK, &expected);
    assert_eq!(seen.mark(), SENT_MARK);
}

/// Flows that either side began, datagrams, streams and echoes, and those of a Service.
pub(crate) fn both_ways() -> Result<()> {
    tell("plain", false, |rig, family| {
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        let sent = Packet::udp(a, remote).payload(b"out");
        let first = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        assert!(first.slow());
        left(&first, &sent.clone().ttl(63));
        let second = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        assert!(!second.slow() && second.frame()[..12] == [THERE, HERE].concat(), "{second:?}");
        left(&second, &sent.ttl(63));
        let answer = Packet::udp(remote, a).payload(b"in");
        let seen = rig.run(Hook::FromUplink, &plain(&answer));
        assert!(!seen.slow());
        seen.to_pod_a(&answer.ttl(63));

        let b = family.at(Who::PodB, 80);
        let begun = Packet::tcp(remote, b).flags(tcp::SYN);
        rig.run(Hook::FromUplink, &plain(&begun)).to_pod_b(&begun.ttl(63));
        let answer = Packet::tcp(b, remote).flags(tcp::SYN | tcp::ACK);
        let seen = rig.run(Hook::FromPodB, &from_b(answer.clone()));
        assert!(!seen.slow());
        left(&seen, &answer.ttl(63));

        let (a, remote) = (a.ip(), remote.ip());
        left(
            &rig.run(Hook::FromPodA, &from_a(Packet::echo_request(a, remote, 7, 1))),
            &Packet::echo_request(a, remote, 7, 1).ttl(63),
        );
        let reply = Packet::echo_reply(remote, a, 7, 1);
        rig.run(Hook::FromUplink, &plain(&reply)).to_pod_a(&reply.ttl(63));

        let (client, frontend) = (family.at(Who::PodA, 41_000), family.at(Who::Service(15), 80));
        let backend = family.at(Who::Remote, 8080);
        let sent = Packet::tcp(client, frontend).flags(tcp::SYN);
        let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        left(&seen, &sent.between(client, backend).ttl(63));
        let answer = Packet::tcp(backend, client).flags(tcp::SYN | tcp::ACK);
        rig.run(Hook::FromUplink, &plain(&answer)).to_pod_a(&answer.between(frontend, client).ttl(63));
        Ok(())
    })
}

/// A flow goes on when its path changes, there and back, whichever way the other end sends.
pub(crate) fn paths_change_under_flows() -> Result<()> {
    tell("path", false, |rig, family| {
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 80));
        rig.run(Hook::FromPodA, &from_a(Packet::tcp(a, remote).flags(tcp::SYN)));
        let answer = Packet::tcp(remote, a).flags(tcp::SYN | tcp::ACK);
        rig.run(Hook::FromUplink, &plain(&answer)).to_pod_a(&answer.ttl(63));
        let (sent, answer) = (Packet::tcp(a, remote).payload(b"ask"), Packet::tcp(remote, a).payload(b"say"));
        for native in [0, NATIVE, 0] {
            route(rig, native)?;
            for slow in [true, false] {
                let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
                assert_eq!(seen.slow(), slow);
                if native == 0 {
                    seen.to_other_node(&sent.clone().ttl(63));
                } else {
                    left(&seen, &sent.clone().ttl(63));
                }
                rig.run(Hook::FromUplink, &plain(&answer)).to_pod_a(&answer.clone().ttl(63));
                let seen = rig.run(FROM_OTHER_NODE, &opened(&answer));
                assert!(!seen.slow());
                seen.to_pod_a(&answer.clone().ttl(63));
            }
        }
        // One family alone.
        let other = if family == Family::V4 { node::flag::NATIVE_V6 } else { node::flag::NATIVE_V4 };
        route(rig, other)?;
        rig.run(Hook::FromPodA, &from_a(sent.clone())).to_other_node(&sent.ttl(63));
        Ok(())
    })
}

/// E19, E20: under the address of another node's Pod only that node speaks, also in a flow that is established, and under
/// this node's nobody.
pub(crate) fn strangers() -> Result<()> {
    tell("plain-strangers", false, |rig, family| {
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        rig.run(Hook::FromPodA, &from_a(Packet::udp(a, remote)));
        let answer = Packet::udp(remote, a);
        rig.run(Hook::FromUplink, &plain(&answer)).to_pod_a(&answer.clone().ttl(63));
        let forged = answer.clone().macs(STRANGER, HERE);
        rig.run(Hook::FromUplink, &forged).dropped(DropReason::SpoofedAddress);
        let new = Packet::tcp(family.at(Who::Remote, 1), a).flags(tcp::SYN).macs(STRANGER, HERE);
        rig.run(Hook::FromUplink, &new).dropped(DropReason::SpoofedAddress);
        for who in [Who::PodB, Who::Nobody, Who::Gateway, Who::Host] {
            let forged = plain(&Packet::udp(family.at(who, 1), a));
            rig.run(Hook::FromUplink, &forged).dropped(DropReason::SpoofedAddress);
        }
        // Also by somebody who claims to be in a tunnel without a name.
        let nobody =
            if family == Family::V4 { "0.0.0.0:50000" } else { "[::]:50000" }.parse::<SocketAddr>()?;
        let config = rig.datapath.maps().config.get(0)?.expect("a row");
        let open = Config { flags: config.flags | quilla_abi::config::flag::OPEN, ..config };
        rig.datapath.maps().config.set(0, &open)?;
        let tunnel = (family.at(Who::Host, config.overlay_port), opened(&answer));
        let forged = Packet::vxlan(nobody, tunnel.0, config.vni, &tunnel.1).fault(Fault::NoUdpChecksum);
        assert_eq!(rig.run(Hook::FromUplink, &forged).reason, Some(DropReason::UnknownTunnelSource));
        // A node that has no address of the family, and one that is gone, have no Pods of it.
        let row = rig.datapath.maps().nodes.get(SLOT)?.expect("the other node");
        let without = if family == Family::V4 { node::flag::IPV6 } else { node::flag::IPV4 };
        for flags in [without, 0] {
            rig.datapath.maps().nodes.set(SLOT, &node::Node { flags, ..row })?;
            rig.bump(epoch::NODES + SLOT)?;
            if flags != 0 {
                // Of a flow in tunnels over the other family, too.
                rig.run(Hook::FromPodA, &from_a(Packet::udp(a, remote)));
            }
            for _ in 0..2 {
                rig.run(Hook::FromUplink, &plain(&answer)).dropped(DropReason::SpoofedAddress);
            }
        }
        // Behind a router nobody can tell.
        let far = node::Node { ipv4: [198, 51, 100, 9], ipv6: v6("2001:db8:9::9".parse()?), ..row };
        rig.datapath.maps().nodes.set(SLOT, &far)?;
        rig.bump(epoch::NODES + SLOT)?;
        rig.run(Hook::FromUplink, &forged_by_a_router(&answer)).to_pod_a(&answer.ttl(63));
        Ok(())
    })
}

fn forged_by_a_router(packet: &Packet) -> Packet {
    packet.clone().macs(STRANGER, HERE)
}

/// What else comes for Pods is the host's, as ever: the world's packets, and what is no packet.
pub(crate) fn the_world_s() -> Result<()> {
    tell("plain-world", false, |rig, family| {
        let (a, world) = (family.at(Who::PodA, 80), family.at(Who::World, 4000));
        // About a packet of the node itself, on its last hop.
        let last_hop = |own| {
            let about = Packet::udp(std::net::SocketAddr::new(own, 9), world);
            Packet::icmp_error(world.ip(), own, IcmpError::PortUnreachable, &about).ttl(1)
        };
        for packet in [
            Packet::tcp(world, a).flags(tcp::SYN),
            Packet::echo_request(world.ip(), a.ip(), 1, 1),
            Packet::udp(family.at(Who::OtherNode, 5), a),
            Packet::icmp_error(world.ip(), a.ip(), IcmpError::PortUnreachable, &Packet::udp(a, world)),
            last_hop(family.ip(Who::Gateway)),
            Packet::udp(family.at(Who::Remote, 9), a).fragment(7, 1480, false).payload(&[7; 64]),
        ] {
            rig.run(Hook::FromUplink, &packet).passed();
        }
        let mut cut = Packet::tcp(family.at(Who::Remote, 9), a).build();
        cut.truncate(14 + if family == Family::V4 { 20 } else { 40 } + 7);
        rig.run_frame(Hook::FromUplink, &cut).passed();
        // What a Pod sends under its own address to the world comes back by the stack.
        rig.run(Hook::ToPodA, &Packet::tcp(world, a).flags(tcp::SYN));
        let answer = from_a(Packet::tcp(a, world).flags(tcp::SYN | tcp::ACK));
        rig.run(Hook::FromPodA, &answer).to_stack(&answer);
        rig.run(Hook::FromUplink, &Packet::tcp(world, a)).passed();
        // A Service at the gateway's address is the world's, too.
        let vip = family.at(Who::Gateway, 81);
        balance(rig, vip, TCP, &[family.at(Who::PodB, 8080)])?;
        let opening = Packet::tcp(world, vip).flags(tcp::SYN);
        for _ in 0..2 {
            let expected = opening.clone().between(world, family.at(Who::PodB, 8080)).ttl(63);
            rig.run(Hook::FromUplink, &opening).to_pod_b(&expected);
        }
        Ok(())
    })
}

/// The node itself speaks under its gateway's address; E8: what has no hops left is the stack's to answer.
pub(crate) fn to_the_stack() -> Result<()> {
    tell("plain-host", false, |rig, family| {
        let (remote, gateway) = (family.at(Who::Remote, 80), family.at(Who::Gateway, 40_000));
        let answer = plain(&Packet::tcp(remote, gateway).flags(tcp::SYN | tcp::ACK));
        for slow in [true, false] {
            let seen = rig.run(Hook::FromUplink, &answer);
            assert_eq!(seen.slow(), slow);
            seen.to_stack(&answer);
        }
        let late = plain(&Packet::udp(remote, family.at(Who::PodA, 9)).ttl(1));
        rig.run(Hook::FromUplink, &late).to_stack(&late);
        // What the stack leaves to the overlay device goes in a tunnel.
        let sent = Packet::tcp(gateway, remote).flags(tcp::SYN);
        let expected = sent.clone().macs(VTEP, OTHER_VTEP);
        rig.run(Hook::ToOverlay, &sent).went(path::HOST_OVERLAY, OK, 0, &expected);
        Ok(())
    })
}

/// E4: errors about a flow, by the node or a router behind it; answers about what is refused go back as they came.
pub(crate) fn errors_and_answers() -> Result<()> {
    tell("plain-errors", false, |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(15), 80));
        let backend = family.at(Who::Remote, 8080);
        let sent = Packet::tcp(client, frontend).flags(tcp::SYN);
        rig.run(Hook::FromPodA, &from_a(sent.clone()));
        let (inner, original) = (sent.clone().between(client, backend).ttl(63), sent.ttl(63));
        let router = if family == Family::V4 { "198.51.100.1" } else { "2001:db8:1::1" }.parse()?;
        for (reporter, known_as) in [(backend.ip(), frontend.ip()), (router, router)] {
            let error = IcmpError::TooBig { mtu: 1400 };
            let message = plain(&Packet::icmp_error(reporter, client.ip(), error, &inner));
            let expected = Packet::icmp_error(known_as, client.ip(), error, &original).ttl(63);
            rig.run(Hook::FromUplink, &message).to_pod_a(&expected);
        }
        let gone = family.at(Who::Nobody, 80);
        let late = Packet::tcp(backend, gone).sequence(7, 99);
        let reset = made(Packet::tcp(gone, backend).flags(tcp::RST).sequence(99, 0).window(0));
        let seen = rig.run(Hook::FromUplink, &plain(&late));
        seen.answered(DropReason::NoEndpoint, UPLINK, &reset.macs(HERE, THERE));
        Ok(())
    })
}

/// E14: clients in the world whose backend is on another node; E3, E5: what must be fragmented goes in a tunnel.
pub(crate) fn by_other_nodes() -> Result<()> {
    tell("plain-outside", false, |rig, family| {
        let (client, vip) = (family.at(Who::World, 999), family.at(Who::Vip(1), 80));
        let pod = family.at(Who::Remote, 8080);
        balance(rig, vip, TCP, &[pod])?;
        let opening = Packet::tcp(client, vip).flags(tcp::SYN);
        let seen = rig.run(Hook::FromUplink, &opening);
        let gateway = family.at(Who::Gateway, chosen_port(&seen));
        left(&seen, &opening.clone().between(gateway, pod).ttl(63));
        let answer = plain(&Packet::tcp(pod, gateway).flags(tcp::SYN | tcp::ACK));
        let seen = rig.run(Hook::FromUplink, &answer);
        assert!(!seen.slow());
        seen.to_world(&answer.between(vip, client).ttl(63));
        route(rig, 0)?;
        let more = opening.flags(tcp::ACK);
        rig.run(Hook::FromUplink, &more).to_other_node(&more.between(gateway, pod).ttl(63));

        route(rig, NATIVE)?;
        let config = rig.datapath.maps().config.get(0)?.expect("a row");
        rig.datapath.maps().config.set(0, &Config { overlay_mtu: 1400, ..config })?;
        rig.bump(epoch::GLOBAL)?;
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        let short = Packet::udp(a, remote).payload(&[7; 1300]);
        left(&rig.run(Hook::FromPodA, &from_a(short.clone())), &short.ttl(63));
        if family == Family::V4 {
            let long = Packet::udp(a, remote).payload(&[7; 1400]).may_be_fragmented();
            rig.run(Hook::FromPodA, &from_a(long.clone())).to_other_node(&long.ttl(63));
        }
        Ok(())
    })
}

/// E5: what a tunnel leaves of the way is no limit to plain packets, whatever was sent in one before.
pub(crate) fn as_large_as_the_uplink() -> Result<()> {
    tell("plain-large", false, |rig, family| {
        let config = rig.datapath.maps().config.get(0)?.expect("a row");
        rig.datapath
            .maps()
            .config
            .set(0, &Config { overlay_mtu: 1500, flags: config.flags | flag::DIRECT, ..config })?;
        rig.bump(epoch::GLOBAL)?;
        let (of_family, headers) =
            if family == Family::V4 { (node::flag::IPV4, 28) } else { (node::flag::IPV6, 48) };
        let row = rig.datapath.maps().nodes.get(SLOT)?.expect("the other node");
        rig.datapath.maps().nodes.set(SLOT, &node::Node { flags: of_family, ..row })?;
        rig.bump(epoch::NODES + SLOT)?;
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        let large = Packet::udp(a, remote).payload(&vec![7; 1500 - headers]);
        Command::new("ip").args(["link", "set", &format!("d{UPLINK}"), "mtu", "1500"]).text()?;
        // The first one asks the kernel, which says what is left.
        rig.run(Hook::FromPodA, &from_a(Packet::udp(a, remote)));
        assert_eq!(rig.run(Hook::FromPodA, &from_a(large.clone())).reason, Some(DropReason::TooBig));
        route(rig, NATIVE)?;
        left(&rig.run(Hook::FromPodA, &from_a(large.clone())), &large.clone().ttl(63));
        route(rig, 0)?;
        assert_eq!(rig.run(Hook::FromPodA, &from_a(large)).reason, Some(DropReason::TooBig));
        Ok(())
    })
}

/// Promise 1: one lookup in the flow table out, one in, and nothing that costs more than an array.
pub(crate) fn an_established_packet_costs_one_lookup() -> Result<()> {
    tell("plain-cost", true, |rig, family| {
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        let ways = [
            ("out", Hook::FromPodA, from_a(Packet::udp(a, remote))),
            ("in", Hook::FromUplink, plain(&Packet::udp(remote, a))),
        ];
        for (_, hook, packet) in &ways {
            rig.run(*hook, packet);
            rig.run(*hook, packet);
        }
        for (way, hook, packet) in ways {
            let counts = rig.helpers(hook, &packet);
            let count = |kind| counts.get(&kind).copied().unwrap_or_default();
            println!("{family:?} {way}: {counts:?}");
            assert_eq!((count(helper::LOOKUP_FLOW), count(helper::REDIRECT)), (1, 1), "{way}: {counts:?}");
            for kind in
                [helper::LOOKUP_HASH, helper::LOOKUP_LPM, helper::UPDATE, helper::DELETE, helper::PACKET]
            {
                assert_eq!(count(kind), 0, "{way}: {counts:?}");
            }
            assert!(count(helper::LOOKUP_ARRAY) <= 11, "{way}: {counts:?}");
        }
        Ok(())
    })
}
