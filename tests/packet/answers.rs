//! E5, S20, S45: what senders are told about packets that are not delivered.

use anyhow::Result;
use quilla_abi::service::{Service, scope};
use quilla_abi::{DropReason, epoch};
use quilla_tests::packet::{IcmpError, Packet, tcp};

use crate::outside::balance;
use crate::rig::{
    DEVICE_A, FROM_OTHER_NODE, Family, HOST_MAC_A, Hook, MAC_A, OTHER_VTEP, OVERLAY, Rig, SNAT_MIN, TCP, UDP,
    VTEP, Who, from_a, tell,
};

/// A packet that we make.
pub(crate) fn made(packet: Packet) -> Packet {
    packet.identification(0)
}

/// On its way to Pod A.
pub(crate) fn to_a(packet: Packet) -> Packet {
    made(packet).macs(HOST_MAC_A, MAC_A)
}

/// S20: a Service without endpoints refuses connections and datagrams, at once and in its own name.
pub(crate) fn refused() -> Result<()> {
    tell("refused", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(16), 80));
        let syn =
            Packet::tcp(client, frontend).flags(tcp::SYN).tcp_options(&[2, 4, 5, 180]).sequence(u32::MAX, 0);
        let reset = Packet::tcp(frontend, client).window(0);
        rig.run(Hook::FromPodA, &from_a(syn)).answered(
            DropReason::NoBackend,
            DEVICE_A,
            &to_a(reset.clone().flags(tcp::RST | tcp::ACK).sequence(0, 0)),
        );
        let middle = Packet::tcp(client, frontend).sequence(5, 77).payload(&[1; 301]);
        rig.run(Hook::FromPodA, &from_a(middle.clone())).answered(
            DropReason::NoBackend,
            DEVICE_A,
            &to_a(reset.flags(tcp::RST).sequence(77, 0)),
        );
        rig.run(Hook::FromPodA, &from_a(middle.flags(tcp::RST))).dropped(DropReason::NoBackend);
        rig.set_service(family, 12, UDP, &[])?;
        let frontend = family.at(Who::Service(12), 53);
        for length in [0, 1, 100, 1400] {
            let datagram = Packet::udp(client, frontend).payload(&vec![7; length]);
            let seen = rig.run(Hook::FromPodA, &from_a(datagram.clone()));
            let error = error(IcmpError::PortUnreachable, &datagram);
            seen.answered(DropReason::NoBackend, DEVICE_A, &to_a(error));
        }
        Ok(())
    })
}

/// An error about a packet, in the name of whom it was for, with at most 128 bytes of it.
pub(crate) fn error(kind: IcmpError, about: &Packet) -> Packet {
    let mut embedded = about.network_layer();
    embedded.truncate(128);
    Packet::icmp_error(about.destination().ip(), about.source().ip(), kind, about).payload(&embedded)
}

/// S45: connections to an endpoint that is gone are reset, on this node and through the overlay; new ones and datagrams
/// are not answered, since the Pod may come back.
pub(crate) fn dead_connections() -> Result<()> {
    tell("dead", |rig, family| {
        let client = family.at(Who::PodA, 40_000);
        let stream = Packet::tcp(client, family.at(Who::Service(10), 80)).sequence(9, 1000);
        rig.run(Hook::FromPodA, &from_a(stream.clone().flags(tcp::SYN)));
        let id = rig.backend(family.at(Who::PodB, 8080), TCP)?;
        rig.set_service(family, 10, TCP, &[])?;
        rig.bump(if family == Family::V4 { epoch::BACKENDS_V4 } else { epoch::BACKENDS_V6 } + id)?;
        let reset = Packet::tcp(stream.destination(), client).flags(tcp::RST).sequence(1000, 0).window(0);
        rig.run(Hook::FromPodA, &from_a(stream.payload(b"hello"))).answered(
            DropReason::BackendGone,
            DEVICE_A,
            &to_a(reset),
        );
        let gone = family.at(Who::Nobody, 80);
        let remote = family.at(Who::Remote, 40_000);
        let late = Packet::tcp(remote, gone).sequence(3, 4).macs(OTHER_VTEP, VTEP);
        let reset = Packet::tcp(gone, remote).flags(tcp::RST).sequence(4, 0).window(0);
        rig.run(FROM_OTHER_NODE, &late).answered(
            DropReason::NoEndpoint,
            OVERLAY,
            &made(reset).macs(VTEP, OTHER_VTEP),
        );
        rig.run(FROM_OTHER_NODE, &late.flags(tcp::SYN)).dropped(DropReason::NoEndpoint);
        let datagram = Packet::udp(remote, gone).macs(OTHER_VTEP, VTEP);
        rig.run(FROM_OTHER_NODE, &datagram).dropped(DropReason::NoEndpoint);
        Ok(())
    })
}

/// E5: what does not fit into the overlay is told so with the size that does, on the first packet and on later ones;
/// IPv4 that may be fragmented is let through.
pub(crate) fn too_big() -> Result<()> {
    tell("toobig", |rig, family| {
        let config = quilla_abi::config::Config { overlay_mtu: 1400, ..Rig::config() };
        rig.datapath.maps().config.set(0, &config)?;
        rig.bump(epoch::GLOBAL)?;
        let (client, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 80));
        let header = if family == Family::V4 { 40 } else { 60 };
        let sized = |bytes: usize| Packet::tcp(client, remote).payload(&vec![9; bytes - header]);
        for _ in 0..2 {
            let seen = rig.run(Hook::FromPodA, &from_a(sized(1401)));
            let error = error(IcmpError::TooBig { mtu: 1400 }, &sized(1401));
            seen.answered(DropReason::TooBig, DEVICE_A, &to_a(error));
        }
        rig.run(Hook::FromPodA, &from_a(sized(1400))).to_other_node(&sized(1400).ttl(63));
        // A client of a Service hears it about the address that it knows.
        let frontend = family.at(Who::Service(15), 80);
        let segment = sized(1401).between(client, frontend);
        rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, frontend).flags(tcp::SYN)));
        let seen = rig.run(Hook::FromPodA, &from_a(segment.clone()));
        seen.answered(DropReason::TooBig, DEVICE_A, &to_a(error(IcmpError::TooBig { mtu: 1400 }, &segment)));
        if family == Family::V4 {
            let divisible = Packet::tcp(client, remote).payload(&[9; 1401]).may_be_fragmented();
            rig.run(Hook::FromPodA, &from_a(divisible.clone())).to_other_node(&divisible.ttl(63));
        }
        Ok(())
    })
}

/// E5: what does not fit the way to the world is answered, also what leaves the node without its stack and could be cut, and
/// the answers of a Pod to a client out there.
pub(crate) fn too_big_for_the_world() -> Result<()> {
    tell("toobigout", |rig, family| {
        let (a, world) = (family.at(Who::PodA, SNAT_MIN), family.at(Who::World, 443));
        let header = if family == Family::V4 { 28 } else { 48 };
        let sized = |bytes: usize| Packet::udp(a, world).payload(&vec![9; bytes - header]);
        for _ in 0..2 {
            let seen = rig.run(Hook::FromPodA, &from_a(sized(1501)));
            seen.answered(
                DropReason::TooBig,
                DEVICE_A,
                &to_a(error(IcmpError::TooBig { mtu: 1500 }, &sized(1501))),
            );
            let fits =
                sized(1500).between((family.ip(Who::Host), SNAT_MIN), (world.ip(), world.port())).ttl(63);
            rig.run(Hook::FromPodA, &from_a(sized(1500))).to_world(&from_a(fits));
        }
        if family == Family::V4 {
            let divisible = sized(1501).may_be_fragmented();
            let seen = rig.run(Hook::FromPodA, &from_a(divisible.clone()));
            assert_eq!(seen.reason, Some(DropReason::TooBig), "{seen:?}");
        }
        let (client, vip) = (family.at(Who::World, 40_000), family.at(Who::Vip(1), 80));
        let backend = family.at(Who::PodA, 8080);
        balance(rig, vip, TCP, &[backend])?;
        let asked = rig.run(Hook::FromUplink, &Packet::tcp(client, vip).flags(tcp::SYN));
        asked.to_pod_a(&Packet::tcp(client, backend).flags(tcp::SYN).ttl(63));
        let large = Packet::tcp(backend, client).payload(&[9; 1500]);
        let seen = rig.run(Hook::FromPodA, &from_a(large.clone()));
        seen.answered(DropReason::TooBig, DEVICE_A, &to_a(error(IcmpError::TooBig { mtu: 1500 }, &large)));
        Ok(())
    })
}

/// E5: of what a device cuts into segments, each must fit; those that may be cut further are cut by the overlay device.
pub(crate) fn segments_count_one_by_one() -> Result<()> {
    tell("segments", |rig, family| {
        let config = quilla_abi::config::Config { overlay_mtu: 1400, ..Rig::config() };
        rig.datapath.maps().config.set(0, &config)?;
        rig.bump(epoch::GLOBAL)?;
        let headers = if family == Family::V4 { 40 } else { 60 };
        let sent = Packet::tcp(family.at(Who::PodA, 40_000), family.at(Who::Remote, 80)).payload(&[9; 3000]);
        rig.segment = 1400 - headers;
        rig.run(Hook::FromPodA, &from_a(sent.clone())).to_other_node(&sent.clone().ttl(63));
        rig.segment += 1;
        let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        assert_eq!(seen.reason, Some(DropReason::TooBig), "{seen:?}");
        if family == Family::V4 {
            let divisible = sent.may_be_fragmented();
            rig.run(Hook::FromPodA, &from_a(divisible.clone())).to_other_node(&divisible.ttl(63));
        }
        Ok(())
    })
}

/// A flood is not answered packet by packet.
pub(crate) fn not_without_end() -> Result<()> {
    tell("flood", |rig, family| {
        let syn = Packet::tcp(family.at(Who::PodA, 40_000), family.at(Who::Service(16), 80)).flags(tcp::SYN);
        let answered = rig.flood(Hook::FromPodA, &from_a(syn), 20_000)?;
        assert!((1..20_000).contains(&answered), "{answered} answers");
        // Other kinds, and the world, have their own allowance.
        let config = quilla_abi::config::Config { overlay_mtu: 1400, ..Rig::config() };
        rig.datapath.maps().config.set(0, &config)?;
        let (client, vip) = (family.at(Who::World, 40_000), family.at(Who::Vip(1), 80));
        let large = Packet::tcp(family.at(Who::PodA, 1), family.at(Who::Remote, 80)).payload(&[9; 1400]);
        assert_eq!(rig.flood(Hook::FromPodA, &from_a(large), 500)?, 500, "too big");
        rig.serve((vip, TCP), scope::EXTERNAL, Service::default(), &[])?;
        let syn = Packet::tcp(client, vip).flags(tcp::SYN);
        assert_eq!(rig.flood(Hook::FromUplink, &syn, 500)?, 500, "the world");
        Ok(())
    })
}
