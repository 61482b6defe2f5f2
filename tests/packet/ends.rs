//! S45: a server speaks on a connection that ended with its backend. Its client, which perhaps only reads, hears of it.

use std::net::SocketAddr;

use anyhow::Result;
use quilla_abi::counter::path;
use quilla_abi::{DropReason, config, epoch};
use quilla_tests::packet::{Packet, tcp};

use crate::answers::{made, to_a};
use crate::outside::balance;
use crate::rig::{
    DEVICE_A, DEVICE_B, FROM_OTHER_NODE, Family, HOST_MAC_B, Hook, MAC_B, OK, OTHER_VTEP, OVERLAY, Rig, SHOT,
    TCP, VTEP, Who, from_a, from_b, tell,
};

/// Ends the connections to a backend.
pub(crate) fn end(rig: &mut Rig, family: Family, backend: SocketAddr) -> Result<()> {
    let first = if family == Family::V4 { epoch::BACKENDS_V4 } else { epoch::BACKENDS_V6 };
    let id = rig.backend(backend, TCP)?;
    rig.bump(first + id)
}

/// What a server sends without being asked.
pub(crate) fn push(from: SocketAddr, to: SocketAddr) -> Packet {
    Packet::tcp(from, to).sequence(500, 1001).payload(b"an event")
}

/// What comes of it, as the client sees it.
pub(crate) fn reset(from: SocketAddr, to: SocketAddr, sequence: u32) -> Packet {
    made(Packet::tcp(from, to).flags(tcp::RST | tcp::ACK).sequence(sequence, 1001).window(0))
}

/// What the server hears with its next packet.
pub(crate) fn refused(from: SocketAddr, to: SocketAddr) -> Packet {
    made(Packet::tcp(from, to).flags(tcp::RST).sequence(1001, 0).window(0))
}

/// A client on this node, a server on this node and on another one: first the client is reset, by the Service, then the
/// server; and the client once more if it speaks.
pub(crate) fn inside() -> Result<()> {
    tell("ends", |rig, family| {
        let client = family.at(Who::PodA, 40_000);
        for (number, backend) in [(10, family.at(Who::PodB, 8080)), (15, family.at(Who::Remote, 8080))] {
            let frontend = family.at(Who::Service(number), 80);
            let asks = Packet::tcp(client, frontend).sequence(9, 1000);
            rig.run(Hook::FromPodA, &from_a(asks.clone().flags(tcp::SYN)));
            let local = number == 10;
            let speaks = |packet: Packet| {
                if local {
                    (Hook::FromPodB, from_b(packet))
                } else {
                    (FROM_OTHER_NODE, packet.macs(OTHER_VTEP, VTEP))
                }
            };
            let (hook, pushed) = speaks(push(backend, client));
            rig.run(hook, &pushed).to_pod_a(&push(frontend, client).ttl(63));
            end(rig, family, backend)?;
            rig.run(hook, &pushed).to_pod_a(&reset(frontend, client, 500).ttl(63));
            let (device, told) = if local {
                (DEVICE_B, refused(client, backend).macs(HOST_MAC_B, MAC_B))
            } else {
                (OVERLAY, refused(client, backend).macs(VTEP, OTHER_VTEP))
            };
            for _ in 0..2 {
                rig.run(hook, &pushed).answered(DropReason::BackendGone, device, &told);
            }
            let reset = Packet::tcp(frontend, client).flags(tcp::RST).sequence(1000, 0).window(0);
            let seen = rig.run(Hook::FromPodA, &from_a(asks));
            seen.answered(DropReason::BackendGone, DEVICE_A, &to_a(reset));
        }
        Ok(())
    })
}

/// What a server may send, and the number that the client believes or asks again about (RFC 5961 3.2). A keep-alive is one
/// behind. One that still accepts the connection ends it for itself: the client tries again.
pub(crate) fn by_any_packet() -> Result<()> {
    tell("ends-any", |rig, family| {
        let (frontend, backend) = (family.at(Who::Service(10), 80), family.at(Who::PodB, 8080));
        let kinds = [
            (tcp::ACK, &b""[..], 501, tcp::RST | tcp::ACK),
            (tcp::ACK | tcp::PSH, &b"odd"[..], 500, tcp::RST | tcp::ACK),
            (tcp::ACK | tcp::FIN, &b""[..], 500, tcp::RST | tcp::ACK),
            (tcp::RST | tcp::ACK, &b""[..], 500, tcp::RST | tcp::ACK),
            (tcp::SYN | tcp::ACK, &b""[..], 0, 0),
        ];
        for (port, (flags, payload, sequence, told)) in (40_000..).zip(kinds) {
            let client = family.at(Who::PodA, port);
            rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, frontend).flags(tcp::SYN)));
            end(rig, family, backend)?;
            let sent = Packet::tcp(backend, client).flags(flags).sequence(500, 1001).payload(payload);
            let seen = rig.run(Hook::FromPodB, &from_b(sent.clone().tcp_options(&[1, 1, 1, 1])));
            if told == 0 {
                let told = refused(client, backend).macs(HOST_MAC_B, MAC_B);
                seen.answered(DropReason::BackendGone, DEVICE_B, &told);
            } else {
                seen.to_pod_a(&reset(frontend, client, sequence).flags(told).ttl(63));
            }
        }
        // At its last hop it gets nowhere.
        let client = family.at(Who::PodA, 39_999);
        rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, frontend).flags(tcp::SYN)));
        end(rig, family, backend)?;
        let seen = rig.run(Hook::FromPodB, &from_b(push(backend, client).ttl(1)));
        assert_eq!(seen.reason, Some(DropReason::BackendGone));
        rig.run(Hook::FromPodB, &from_b(push(backend, client)))
            .to_pod_a(&reset(frontend, client, 500).ttl(63));
        Ok(())
    })
}

/// A client in the world, and servers here, on another node and in the node's own network; and a Pod as that one's client.
/// What the host's stack sends gets no answer.
pub(crate) fn outside_and_host() -> Result<()> {
    tell("ends-outside", |rig, family| {
        let config = Rig::config();
        let flags = config.flags | config::flag::NODE_BACKENDS;
        rig.datapath.maps().config.set(0, &config::Config { flags, ..config })?;
        rig.bump(epoch::GLOBAL)?;
        let client = family.at(Who::World, 40_000);
        for (port, who) in [(80, Who::PodB), (81, Who::Remote), (82, Who::Host)] {
            let (vip, backend) = (family.at(Who::Vip(1), port), family.at(who, 8080));
            balance(rig, vip, TCP, &[backend])?;
            let seen = rig.run(Hook::FromUplink, &Packet::tcp(client, vip).flags(tcp::SYN));
            let known_as =
                if port == 81 { family.at(Who::Gateway, crate::outside::chosen_port(&seen)) } else { client };
            end(rig, family, backend)?;
            let sent = push(backend, known_as);
            let told = reset(vip, client, 500);
            match who {
                Who::PodB => rig.run(Hook::FromPodB, &from_b(sent)).to_world(&from_b(told.ttl(63))),
                Who::Remote => {
                    let seen = rig.run(FROM_OTHER_NODE, &sent.macs(OTHER_VTEP, VTEP));
                    seen.to_world(&told.macs(OTHER_VTEP, VTEP).ttl(63));
                }
                _ => {
                    rig.run(Hook::ToUplink(0), &sent).went(path::UPLINK, OK, 0, &told);
                    let seen = rig.run(Hook::ToUplink(0), &sent);
                    assert_eq!((seen.reason, seen.verdict()), (Some(DropReason::BackendGone), SHOT));
                }
            }
        }
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(10), 80));
        let backend = family.at(Who::Host, 9090);
        rig.set_service(family, 10, TCP, &[backend])?;
        rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, frontend).flags(tcp::SYN)));
        end(rig, family, backend)?;
        let seen = rig.run(Hook::ToPodA, &push(backend, client));
        seen.went(path::LOCAL_POD, OK, 0, &reset(frontend, client, 500));
        Ok(())
    })
}
