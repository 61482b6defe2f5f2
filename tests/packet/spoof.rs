//! E19, E20: Pods speak for themselves, nodes for their Pods.

use anyhow::Result;
use quilla_abi::DropReason;
use quilla_tests::packet::{Arp, IcmpError, Packet, tcp};

use crate::rig::{
    DEVICE_A, FROM_OTHER_NODE, HOST_MAC_A, Hook, MAC_A, MAC_B, OTHER_VTEP, SNAT_MIN, Tag, VTEP, Who, from_a,
    tell,
};

pub(crate) fn sources() -> Result<()> {
    tell("sources", |rig, family| {
        let (a, b) = (family.at(Who::PodA, 40_000), family.at(Who::PodB, 80));
        let honest = Packet::tcp(a, b).flags(tcp::SYN);
        rig.run(Hook::FromPodA, &from_a(honest.clone())).to_pod_b(&honest.clone().ttl(63));
        let later = Packet::tcp(a, b);
        // An established flow does not exempt from the check.
        for packet in [honest, later] {
            let seen = rig.run(Hook::FromPodA, &packet.clone().macs(MAC_B, HOST_MAC_A));
            seen.dropped(DropReason::SpoofedMac);
            let seen = rig.run(Hook::FromPodA, &packet.macs([0; 6], HOST_MAC_A));
            seen.dropped(DropReason::SpoofedMac);
        }
        for who in [Who::PodB, Who::Gateway, Who::Host, Who::World, Who::Service(10)] {
            let sent = from_a(Packet::udp(family.at(who, 1), b));
            rig.run(Hook::FromPodA, &sent).dropped(DropReason::SpoofedAddress);
        }
        // What the host said to the Pod is no licence to speak as the host.
        let probe = Packet::udp(family.at(Who::Gateway, 1000), a);
        rig.run(Hook::ToPodA, &probe);
        rig.run(Hook::FromPodA, &from_a(probe.clone())).dropped(DropReason::SpoofedAddress);
        rig.run(Hook::FromPodA, &probe.macs([0; 6], HOST_MAC_A)).dropped(DropReason::SpoofedMac);
        // E21: many receivers.
        let group = if a.is_ipv4() { "239.1.2.3:5" } else { "[ff05::5]:5" };
        rig.run(Hook::FromPodA, &from_a(Packet::udp(a, group))).dropped(DropReason::Multicast);
        // E19: overlay frames are made by nodes.
        for who in [Who::Host, Who::Gateway, Who::OtherNode] {
            let forged = Packet::vxlan(a, family.at(who, 8472), 7, &Packet::udp(b, a));
            rig.run(Hook::FromPodA, &from_a(forged)).dropped(DropReason::ForgedOverlay);
        }
        // E4: a Pod reports about what was sent to it, and about nothing else, to whomever.
        let (near, far) = (family.ip(Who::Host), family.ip(Who::OtherNode));
        let tunnel = Packet::udp((near, 50_000), (far, 8472));
        for (receiver, about) in [
            (Who::Host, tunnel.clone()),
            (Who::Gateway, tunnel),
            (Who::PodB, Packet::udp(family.at(Who::PodB, 9), family.at(Who::Remote, 53))),
            (Who::Remote, Packet::udp(family.at(Who::Remote, 9), family.at(Who::PodB, 53))),
        ] {
            let told =
                Packet::icmp_error(a.ip(), family.ip(receiver), IcmpError::TooBig { mtu: 600 }, &about);
            rig.run(Hook::FromPodA, &from_a(told)).dropped(DropReason::ForgedReport);
        }
        let about = Packet::udp(family.at(Who::PodB, 9), a);
        let told = Packet::icmp_error(a.ip(), family.ip(Who::PodB), IcmpError::PortUnreachable, &about);
        rig.run(Hook::FromPodA, &from_a(told.clone())).to_pod_b(&told.ttl(63));
        rig.datapath.maps().interfaces.remove(&DEVICE_A)?;
        let sent = from_a(Packet::udp(a, family.at(Who::PodB, 77)));
        rig.run(Hook::FromPodA, &sent).dropped(DropReason::UnknownInterface);
        Ok(())
    })
}

pub(crate) fn neighbours() -> Result<()> {
    tell("neighbours", |rig, family| {
        if family.ip(Who::PodA).is_ipv4() {
            let honest = [
                Arp::request(MAC_A, "10.244.1.2", "10.244.1.1"),
                Arp::reply(MAC_A, "10.244.1.2", HOST_MAC_A, "10.244.1.1"),
            ];
            for packet in honest {
                rig.run_frame(Hook::FromPodA, &packet.build()).passed();
            }
            let forged = Arp::reply(MAC_A, "10.244.1.1", HOST_MAC_A, "10.244.1.3");
            rig.run_frame(Hook::FromPodA, &forged.build()).dropped(DropReason::ForgedNeighbour);
            let mut other = Arp::request(MAC_A, "10.244.1.2", "10.244.1.1").build();
            other[22..28].copy_from_slice(&MAC_B);
            rig.run_frame(Hook::FromPodA, &other).dropped(DropReason::ForgedNeighbour);
            let mut unknown = other.clone();
            unknown[12..14].copy_from_slice(&[0x88, 0xcc]);
            rig.run_frame(Hook::FromPodA, &unknown).dropped(DropReason::UnknownEtherType);
            return Ok(());
        }
        let own = family.ip(Who::PodA);
        let all: std::net::IpAddr = "ff02::1".parse()?;
        let target = |address: std::net::IpAddr| crate::rig::v6(address).to_vec();
        let message =
            |kind, about| from_a(Packet::icmp(own, all, kind, 0, [0; 4]).payload(&target(about)).ttl(255));
        rig.run(Hook::FromPodA, &message(135, family.ip(Who::Gateway))).passed();
        rig.run(Hook::FromPodA, &message(136, own)).passed();
        rig.run(Hook::FromPodA, &message(143, own)).passed();
        for forged in [message(136, family.ip(Who::Gateway)), message(134, own), message(137, own)] {
            rig.run(Hook::FromPodA, &forged).dropped(DropReason::ForgedNeighbour);
        }
        rig.run(Hook::FromPodA, &message(135, own).ttl(64)).dropped(DropReason::ForgedNeighbour);
        let tagged = from_a(Packet::udp(family.at(Who::PodA, 1), family.at(Who::PodB, 2))).vlan(5);
        rig.run(Hook::FromPodA, &tagged).dropped(DropReason::UnknownEtherType);
        Ok(())
    })
}

/// E19: a Pod chooses no priority for what leaves its node, and is part of no VLAN, also where its flow is established; a
/// switch may give priorities.
pub(crate) fn tags() -> Result<()> {
    tell("tags", |rig, family| {
        let sent = Packet::udp(family.at(Who::PodA, SNAT_MIN + 1), family.at(Who::World, 53));
        let tagged = [Tag::Priority, Tag::Vlan];
        for slow in [true, false] {
            for tag in tagged {
                let seen = rig.run(Hook::FromPodATagged(tag), &from_a(sent.clone()));
                seen.dropped(DropReason::UnknownEtherType);
            }
            assert_eq!(rig.run(Hook::FromPodA, &from_a(sent.clone())).slow(), slow);
        }
        let arp = Arp::request(MAC_A, "10.244.1.2", "10.244.1.1").build();
        let seen = rig.run_frame(Hook::FromPodATagged(Tag::Priority), &arp);
        seen.dropped(DropReason::UnknownEtherType);
        let answer = Packet::udp(sent.destination(), family.at(Who::Host, SNAT_MIN + 1));
        let expected = answer.clone().between(sent.destination(), sent.source()).ttl(63);
        rig.run(Hook::FromUplinkTagged(Tag::Priority), &answer).to_pod_a(&expected);
        rig.run(Hook::FromUplinkTagged(Tag::Vlan), &answer).passed();
        Ok(())
    })
}

pub(crate) fn overlay() -> Result<()> {
    tell("tunnels", |rig, family| {
        let b = family.at(Who::PodB, 80);
        let inner = |who| Packet::udp(family.at(who, 40_000), b).macs(OTHER_VTEP, VTEP);
        let honest = inner(Who::Remote);
        rig.run(Hook::FromOverlay([192, 168, 77, 9]), &honest).dropped(DropReason::UnknownTunnelSource);
        rig.run(Hook::FromOverlay([0; 4]), &honest).dropped(DropReason::UnknownTunnelSource);
        for who in [Who::PodA, Who::World, Who::Service(10)] {
            rig.run(FROM_OTHER_NODE, &inner(who)).dropped(DropReason::WrongTunnelSource);
        }
        rig.run(FROM_OTHER_NODE, &honest).to_pod_b(&honest.clone().ttl(63));
        // Established, and from another node.
        rig.run(Hook::FromOverlay([192, 168, 77, 9]), &honest).dropped(DropReason::UnknownTunnelSource);
        let through = Packet::udp(family.at(Who::Remote, 1), family.at(Who::World, 2)).macs(OTHER_VTEP, VTEP);
        rig.run(FROM_OTHER_NODE, &through).dropped(DropReason::NoEndpoint);
        Ok(())
    })
}
