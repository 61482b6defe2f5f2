//! E21-E24: packets that are not for one receiver, have no ports or another shape, and tables that are full.

use anyhow::Result;
use quilla_abi::DropReason;
use quilla_abi::counter::path;
use quilla_tests::packet::{Packet, tcp};

use crate::rig::{DEVICE_A, FROM_OTHER_NODE, Hook, OK, OTHER_VTEP, VTEP, Who, from_a, from_b, tell};

/// E21: what a Pod sends to many stays in the Pod, nothing of the kind comes out of the overlay, and the host's own goes
/// its way.
pub(crate) fn groups() -> Result<()> {
    tell("groups", |rig, family| {
        let pod = family.at(Who::PodA, 5353);
        let groups: &[&str] = if pod.is_ipv4() {
            &["224.0.0.251:5353", "239.1.2.3:9", "255.255.255.255:67"]
        } else {
            &["[ff02::fb]:5353", "[ff05::5]:9", "[ff0e::1]:9"]
        };
        for &group in groups {
            rig.run(Hook::FromPodA, &from_a(Packet::udp(pod, group))).dropped(DropReason::Multicast);
            let remote = Packet::udp(family.at(Who::Remote, 5353), group).macs(OTHER_VTEP, VTEP);
            rig.run(FROM_OTHER_NODE, &remote).dropped(DropReason::NoEndpoint);
            let host = Packet::udp(family.at(Who::Host, 5353), group);
            for hook in [Hook::ToPodA, Hook::ToOverlay, Hook::FromUplink, Hook::ToUplink(0)] {
                rig.run(hook, &host).passed();
            }
        }
        Ok(())
    })
}

/// E22: protocols without ports go by address, both ways and across nodes; none of them is ever a Service's.
pub(crate) fn without_ports() -> Result<()> {
    const GRE: u8 = 47;
    const ESP: u8 = 50;
    const SCTP: u8 = 132;
    tell("portless", |rig, family| {
        let (a, b, remote) = (family.ip(Who::PodA), family.ip(Who::PodB), family.ip(Who::Remote));
        for protocol in [GRE, ESP, SCTP, 253] {
            // The first bytes look like the port of a Service.
            let packet =
                |from, to| Packet::protocol(from, to, protocol).payload(&[0x9c, 0x40, 0, 80, 1, 2, 3]);
            for _ in 0..2 {
                rig.run(Hook::FromPodA, &from_a(packet(a, b))).to_pod_b(&packet(a, b).ttl(63));
                rig.run(Hook::FromPodB, &from_b(packet(b, a))).to_pod_a(&packet(b, a).ttl(63));
                rig.run(Hook::FromPodA, &from_a(packet(a, remote))).to_other_node(&packet(a, remote).ttl(63));
                let answer = packet(remote, a);
                rig.run(FROM_OTHER_NODE, &answer.clone().macs(OTHER_VTEP, VTEP)).to_pod_a(&answer.ttl(63));
            }
            let service = packet(a, family.ip(Who::Service(10)));
            let seen = rig.run(Hook::FromPodA, &from_a(service));
            assert!(
                matches!(seen.reason, Some(DropReason::NotAService | DropReason::NotAServicePort)),
                "{seen:?}"
            );
        }
        Ok(())
    })
}

/// E23: tagged frames on the uplink are the host's, whatever they hold; from a Pod they are refused. Jumbo frames are
/// packets like others.
pub(crate) fn shapes() -> Result<()> {
    tell("shapes", |rig, family| {
        let (world, host) = (family.at(Who::World, 443), family.at(Who::Host, crate::rig::SNAT_MIN));
        let answer = Packet::tcp(world, host);
        for tagged in [answer.clone().vlan(7), answer.vlan(7).vlan(8)] {
            rig.run(Hook::FromUplink, &tagged).passed();
            rig.run(Hook::ToUplink(DEVICE_A), &tagged).passed();
        }
        let (a, b) = (family.at(Who::PodA, 40_000), family.at(Who::PodB, 80));
        for tagged in [Packet::udp(a, b).vlan(7), Packet::udp(a, b).vlan(7).vlan(8)] {
            rig.run(Hook::FromPodA, &from_a(tagged)).dropped(DropReason::UnknownEtherType);
        }
        // A test run takes no more than a page.
        for length in [1500, 3000] {
            let jumbo = Packet::udp(a, b).payload(&vec![0x5a; length]);
            rig.run(Hook::FromPodA, &from_a(jumbo.clone())).to_pod_b(&jumbo.ttl(63));
        }
        Ok(())
    })
}

/// E24: three times as many flows as the table has room for. Every new one is served; one whose entry was evicted in the
/// middle goes on, or is dropped for a reason that says so; and what may not be sent is refused as before.
pub(crate) fn full_flow_table() -> Result<()> {
    const FLOWS: u16 = 12_000;
    tell("full", |rig, family| {
        let frontend = family.at(Who::Service(11), 80);
        let first = Packet::tcp(family.at(Who::PodA, 1), frontend);
        rig.run(Hook::FromPodA, &from_a(first.clone().flags(tcp::SYN)));
        for port in 2..FLOWS {
            let syn = from_a(Packet::tcp(family.at(Who::PodA, port), frontend).flags(tcp::SYN));
            let served = rig.flood(Hook::FromPodA, &syn, 1)?;
            assert_eq!(served, 1, "flow {port}");
        }
        let seen = rig.run(Hook::FromPodA, &from_a(first.clone()));
        // E12: its answers' entry may be gone, too.
        assert!(matches!(seen.reason, None | Some(DropReason::NoFlow)), "{seen:?}");
        let spoofed = from_a(Packet::tcp(family.at(Who::PodB, 1), frontend).flags(tcp::SYN));
        rig.run(Hook::FromPodA, &spoofed).dropped(DropReason::SpoofedAddress);
        let probe = Packet::udp(family.at(Who::Gateway, 99), family.at(Who::PodA, 7));
        rig.run(Hook::ToPodA, &probe).went(path::LOCAL_POD, OK, 0, &probe);
        Ok(())
    })
}
