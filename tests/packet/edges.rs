//! E3 to E8, S20 to S22 for clients in the world: what is no Service, what comes in pieces, and errors about either way.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use quilla_abi::counter::path;
use quilla_abi::service::{Service, flag, scope};
use quilla_abi::{DropReason, config};
use quilla_tests::packet::{IcmpError, Packet, tcp};

use crate::outside::{balance, chosen_port, client};
use crate::rig::{
    FROM_OTHER_NODE, Family, Hook, NODE_PORT, OK, OTHER_VTEP, Rig, SNAT_MIN, TCP, UDP, VTEP, Who, from_a,
    from_b, tell,
};

/// S22, E6, E8: an address that only Services have is nobody's beside its ports, and never reaches the default route.
pub(crate) fn nobody() -> Result<()> {
    tell("edge-nobody", |rig, family| {
        let (client, pod) = (client(family), family.at(Who::PodA, 40_000));
        let vip = family.at(Who::Vip(1), 80);
        balance(rig, vip, TCP, &[family.at(Who::PodB, 8080)])?;
        rig.mark(vip.ip(), scope::INTERNAL)?;
        rig.mark(family.ip(Who::Service(10)), scope::INTERNAL)?;
        let other = |ip: IpAddr| SocketAddr::new(ip, 81);
        for (to, outside, inside) in [
            (other(vip.ip()), DropReason::NotAServicePort, DropReason::NotAServicePort),
            // S31: no frontend for the world, and no way through us either.
            (family.at(Who::Service(10), 81), DropReason::NotAService, DropReason::NotAServicePort),
            (family.at(Who::Service(99), 80), DropReason::NotAService, DropReason::NotAService),
            (family.at(Who::Vip(2), 80), DropReason::NotAService, DropReason::NotAService),
        ] {
            for sent in [Packet::udp(client, to), Packet::tcp(client, to).flags(tcp::SYN)] {
                assert_eq!(rig.run(Hook::FromUplink, &sent).reason, Some(outside), "{to}");
                let sent = from_a(sent.between(pod, to));
                assert_eq!(rig.run(Hook::FromPodA, &sent).reason, Some(inside), "{to}");
            }
        }
        for packet in [
            Packet::echo_request(client.ip(), vip.ip(), 1, 1),
            Packet::protocol(client.ip(), vip.ip(), 47).payload(b"tunnel"),
        ] {
            rig.run(Hook::FromUplink, &packet).dropped(DropReason::NotAService);
        }
        let echo = from_a(Packet::echo_request(pod.ip(), vip.ip(), 1, 1));
        rig.run(Hook::FromPodA, &echo).dropped(DropReason::NotAService);
        let late = Packet::tcp(client, vip).flags(tcp::SYN).ttl(1);
        rig.run(Hook::FromUplink, &late).dropped(DropReason::HopLimit);
        Ok(())
    })
}

/// S23: the node's own ports are its own, and what is for somebody else is passed on.
pub(crate) fn strangers() -> Result<()> {
    tell("edge-strangers", |rig, family| {
        let client = client(family);
        balance(rig, family.at(Who::Host, NODE_PORT), TCP, &[family.at(Who::PodB, 8080)])?;
        let strangers = [
            Packet::tcp(client, family.at(Who::Host, 22)).flags(tcp::SYN),
            Packet::tcp(client, family.at(Who::Host, NODE_PORT + 1)).flags(tcp::SYN),
            // S27: the same number of the other protocol.
            Packet::udp(client, family.at(Who::Host, NODE_PORT)),
            Packet::tcp(client, family.at(Who::Gateway, 80)).flags(tcp::SYN),
            Packet::tcp(client, family.at(Who::OtherNode, NODE_PORT)).flags(tcp::SYN),
            Packet::tcp(client, family.at(Who::PodA, 80)).flags(tcp::SYN),
            Packet::udp(client, family.at(Who::Vip(1), config::OVERLAY_PORT)),
            Packet::echo_request(client.ip(), family.ip(Who::Host), 1, 1),
        ];
        for stranger in strangers {
            rig.run(Hook::FromUplink, &stranger).passed();
        }
        Ok(())
    })
}

/// S23, E19: node ports on loopback addresses are for sockets of the node; a Pod's packets to them go nowhere.
pub(crate) fn loopback() -> Result<()> {
    tell("edge-loopback", |rig, family| {
        let address: IpAddr = if family == Family::V4 { "127.0.0.1" } else { "::1" }.parse()?;
        let frontend = SocketAddr::new(address, NODE_PORT);
        for scope in [scope::INTERNAL, scope::EXTERNAL] {
            let row = Service { id: 5, ..Service::default() };
            rig.serve((frontend, TCP), scope, row, &[family.at(Who::PodB, 8080)])?;
        }
        let sent = Packet::tcp(family.at(Who::PodA, 40_000), frontend).flags(tcp::SYN);
        rig.run(Hook::FromPodA, &from_a(sent)).dropped(DropReason::Unroutable);
        rig.run(Hook::FromUplink, &Packet::tcp(client(family), frontend).flags(tcp::SYN)).passed();
        Ok(())
    })
}

/// S20, S21: a Service without endpoints, and one whose endpoints are elsewhere.
pub(crate) fn no_endpoints() -> Result<()> {
    tell("edge-empty", |rig, family| {
        for (flags, reason) in
            [(0, DropReason::NoBackend), (flag::DROP_WHEN_EMPTY, DropReason::NoLocalBackend)]
        {
            for proto in [TCP, UDP] {
                let vip = family.at(Who::Vip(1), 80);
                let row = Service { id: 5, flags, ..Service::default() };
                rig.serve((vip, proto), scope::EXTERNAL, row, &[])?;
                rig.serve((vip, proto), scope::INTERNAL, row, &[])?;
                let make = |from| {
                    if proto == TCP { Packet::tcp(from, vip).flags(tcp::SYN) } else { Packet::udp(from, vip) }
                };
                let seen = rig.run(Hook::FromUplink, &make(client(family)));
                assert_eq!(seen.reason, Some(reason));
                let seen = rig.run(Hook::FromPodA, &from_a(make(family.at(Who::PodA, 40_000))));
                assert_eq!(seen.reason, Some(reason));
            }
        }
        Ok(())
    })
}

/// E3: the pieces of a datagram go where the first one went; one that comes before it is held back.
pub(crate) fn fragments() -> Result<()> {
    tell("edge-fragments", |rig, family| {
        rig.summed = true;
        let (client, vip) = (client(family), family.at(Who::Vip(1), 53));
        let port_less = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
        for (id, pod) in [(1, family.at(Who::PodB, 5353)), (2, family.at(Who::Remote, 5353))] {
            balance(rig, vip, UDP, &[pod])?;
            let first = Packet::udp(client, vip).payload(&[7; 40]).fragment(id, 0, true);
            let later =
                Packet::protocol(client.ip(), vip.ip(), UDP).payload(&[9; 24]).fragment(id, 48, false);
            rig.run(Hook::FromUplink, &later).dropped(DropReason::Fragment);
            let client = SocketAddr::new(client.ip(), client.port() + id);
            let first = first.between(client, vip);
            let seen = rig.run(Hook::FromUplink, &first);
            let (peer, expected) = if id == 1 {
                (client, later.clone().between(port_less(client), port_less(pod)).ttl(63))
            } else {
                let gateway = family.at(Who::Gateway, chosen_port(&seen));
                (gateway, later.clone().between(port_less(gateway), port_less(pod)).ttl(63))
            };
            let forwarded = first.between(peer, pod).ttl(63);
            if id == 1 {
                seen.to_pod_b(&forwarded);
            } else {
                seen.to_other_node(&forwarded);
            }
            let seen = rig.run(Hook::FromUplink, &later);
            assert!(!seen.slow());
            if id == 1 {
                seen.to_pod_b(&expected);
            } else {
                seen.to_other_node(&expected);
            }
            // The answer in pieces.
            let first = Packet::udp(pod, peer).payload(&[1; 16]).fragment(9, 0, true);
            let later = Packet::protocol(pod.ip(), peer.ip(), UDP).payload(&[2; 8]).fragment(9, 24, false);
            for (piece, from, to) in [(first, vip, client), (later, port_less(vip), port_less(client))] {
                let (hook, sent) = if id == 1 {
                    (Hook::FromPodB, from_b(piece))
                } else {
                    (FROM_OTHER_NODE, piece.macs(OTHER_VTEP, VTEP))
                };
                rig.run(hook, &sent).to_world(&sent.clone().between(from, to).ttl(63));
            }
        }
        // The node's own stack waits for the first piece of what may be its own.
        let host = family.ip(Who::Host);
        let piece = Packet::protocol(client.ip(), host, UDP).payload(&[9; 24]).fragment(3, 48, false);
        rig.run(Hook::FromUplink, &piece).passed();
        Ok(())
    })
}

/// E4: errors about what the client sent, from whoever stands behind the Service.
pub(crate) fn errors_from_backends() -> Result<()> {
    tell("edge-backends", |rig, family| {
        let vip = family.at(Who::Vip(1), 53);
        let error = IcmpError::PortUnreachable;
        let mut config = Rig::config();
        config.flags |= config::flag::NODE_BACKENDS;
        rig.datapath.maps().config.set(0, &config)?;
        for (who, port) in [(Who::PodB, 1001), (Who::Remote, 1002), (Who::Host, 1003)] {
            let (client, backend) = (family.at(Who::World, port), family.at(who, 5353));
            balance(rig, vip, UDP, &[backend])?;
            let sent = Packet::udp(client, vip).payload(b"question");
            let seen = rig.run(Hook::FromUplink, &sent);
            let peer = if port == 1002 { family.at(Who::Gateway, chosen_port(&seen)) } else { client };
            let hops = if port == 1003 { 64 } else { 63 };
            let (inner, original) = (sent.clone().between(peer, backend).ttl(hops), sent.ttl(hops));
            let message = Packet::icmp_error(backend.ip(), peer.ip(), error, &inner);
            let expected = Packet::icmp_error(vip.ip(), client.ip(), error, &original);
            match who {
                Who::PodB => {
                    rig.run(Hook::FromPodB, &from_b(message)).to_world(&from_b(expected.ttl(63)));
                }
                Who::Remote => {
                    let seen = rig.run(FROM_OTHER_NODE, &message.macs(OTHER_VTEP, VTEP));
                    seen.to_world(&expected.ttl(63).macs(OTHER_VTEP, VTEP));
                }
                _ => rig.run(Hook::ToUplink(0), &message).went(path::UPLINK, OK, 0, &expected),
            }
        }
        Ok(())
    })
}

/// E4: errors about the answers, from a router on the way to the client; to the backend under the names it used.
pub(crate) fn errors_about_answers() -> Result<()> {
    tell("edge-answers", |rig, family| {
        let (vip, world) = (family.at(Who::Vip(1), 80), family.ip(Who::World));
        let router = if family == Family::V4 { "198.51.100.1" } else { "2001:db8:1::1" }.parse()?;
        let error = IcmpError::TooBig { mtu: 1400 };
        for (who, port) in [(Who::PodB, 1001), (Who::Remote, SNAT_MIN + 2), (Who::Host, 1003)] {
            let (client, backend) = (SocketAddr::new(world, port), family.at(who, 8080));
            balance(rig, vip, TCP, &[backend])?;
            rig.run(Hook::FromUplink, &Packet::tcp(client, vip).flags(tcp::SYN));
            let peer = if who_is_remote(who) { family.at(Who::Gateway, port) } else { client };
            let answer = Packet::tcp(backend, peer).payload(b"much");
            let message = Packet::icmp_error(router, vip.ip(), error, &answer.clone().between(vip, client));
            let expected = Packet::icmp_error(router, backend.ip(), error, &answer);
            let seen = rig.run(Hook::FromUplink, &message);
            match who {
                Who::PodB => seen.to_pod_b(&expected.ttl(63)),
                // The far node takes nothing from the overlay that does not seem to come from a Pod CIDR.
                Who::Remote => {
                    let gateway = family.ip(Who::Gateway);
                    seen.to_other_node(&Packet::icmp_error(gateway, backend.ip(), error, &answer).ttl(63));
                }
                _ => seen.to_stack(&expected),
            }
        }
        // About nothing that we know.
        let about = Packet::tcp(family.at(Who::Vip(1), 9), SocketAddr::new(world, 9));
        let message = Packet::icmp_error(router, vip.ip(), error, &about);
        rig.run(Hook::FromUplink, &message).dropped(DropReason::NotAService);
        Ok(())
    })
}

fn who_is_remote(who: Who) -> bool {
    matches!(who, Who::Remote)
}
