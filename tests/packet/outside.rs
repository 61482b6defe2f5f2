//! E14, E15, S25: clients in the world reach Services, whatever stands behind them, and are answered the way they came.

use std::net::SocketAddr;

use anyhow::Result;
use quilla_abi::counter::path;
use quilla_abi::service::{Service, scope};
use quilla_abi::{DropReason, config, epoch, flow};
use quilla_tests::packet::{Packet, decode, tcp};

use crate::rig::{
    DEVICE_B, FROM_OTHER_NODE, Family, Hook, NODE_PORT, OK, OTHER_VTEP, REDIRECT, Rig, SNAT_MAX, SNAT_MIN,
    Seen, TCP, UDP, VTEP, Who, from_a, from_b, tell,
};

/// A client with a port that a translation may not keep.
pub(crate) fn client(family: Family) -> SocketAddr {
    family.at(Who::World, 40_000)
}

/// The address of a load balancer for one port, in front of these backends, for clients in the world.
pub(crate) fn balance(rig: &mut Rig, vip: SocketAddr, proto: u8, backends: &[SocketAddr]) -> Result<()> {
    let row = Service { id: 100 + u32::from(vip.port()), ..Service::default() };
    rig.serve((vip, proto), scope::EXTERNAL, row, backends)?;
    rig.mark(vip.ip(), scope::EXTERNAL)
}

/// The port of the source that a translation chose.
pub(crate) fn chosen_port(seen: &Seen) -> u16 {
    let decoded = decode(seen.frame());
    let port = decoded.get("tcp.sport").or_else(|| decoded.get("udp.sport"));
    let port = port.unwrap_or_else(|| panic!("{decoded}")).parse().expect("a port");
    assert!((SNAT_MIN..=SNAT_MAX).contains(&port), "{port}");
    port
}

fn syn(from: SocketAddr, to: SocketAddr) -> Packet {
    Packet::tcp(from, to).flags(tcp::SYN)
}

fn syn_ack(from: SocketAddr, to: SocketAddr) -> Packet {
    Packet::tcp(from, to).flags(tcp::SYN | tcp::ACK)
}

/// E14, S23, S25, S33: a Pod of this node sees the client, by the address of a load balancer and by a node port.
pub(crate) fn local_pods() -> Result<()> {
    tell("outside-local", |rig, family| {
        let (client, pod) = (client(family), family.at(Who::PodA, 8080));
        for frontend in [family.at(Who::Vip(1), 80), family.at(Who::Host, NODE_PORT)] {
            balance(rig, frontend, TCP, &[pod])?;
            let client = SocketAddr::new(client.ip(), frontend.port() + 40);
            let opening = syn(client, frontend);
            let seen = rig.run(Hook::FromUplink, &opening);
            assert!(seen.slow());
            seen.to_pod_a(&opening.between(client, pod).ttl(63));
            let answer = syn_ack(pod, client);
            let seen = rig.run(Hook::FromPodA, &from_a(answer.clone()));
            assert!(!seen.slow(), "the answers' entry was made with the first packet");
            seen.to_world(&from_a(answer.between(frontend, client).ttl(63)));
            let data = Packet::tcp(client, frontend).payload(b"odd");
            let seen = rig.run(Hook::FromUplink, &data);
            assert!(!seen.slow());
            seen.to_pod_a(&data.between(client, pod).ttl(63));
            // After a change somewhere both directions find their way again.
            rig.bump(epoch::GLOBAL)?;
            let answer = Packet::tcp(pod, client).payload(b"more");
            rig.run(Hook::FromPodA, &from_a(answer.clone()))
                .to_world(&from_a(answer.between(frontend, client).ttl(63)));
            let more = Packet::tcp(client, frontend).payload(b"more");
            rig.run(Hook::FromUplink, &more).to_pod_a(&more.between(client, pod).ttl(63));
        }
        Ok(())
    })
}

/// E14, S25: another node takes the client for our gateway, and answers through us.
pub(crate) fn other_nodes() -> Result<()> {
    tell("outside-remote", |rig, family| {
        let (vip, pod) = (family.at(Who::Vip(1), 53), family.at(Who::Remote, 5353));
        for proto in [TCP, UDP] {
            balance(rig, vip, proto, &[pod])?;
            let packet =
                |from, to| if proto == TCP { syn(from, to) } else { Packet::udp(from, to).payload(b"ask") };
            // A port of the range is kept, another one is replaced.
            for port in [40_000, SNAT_MIN + 5] {
                let client = family.at(Who::World, port);
                let opening = packet(client, vip);
                let seen = rig.run(Hook::FromUplink, &opening);
                let chosen = chosen_port(&seen);
                assert_eq!(chosen == port, port != 40_000);
                let gateway = family.at(Who::Gateway, chosen);
                seen.to_other_node(&opening.clone().between(gateway, pod).ttl(63));
                for _ in 0..2 {
                    let answer = packet(pod, gateway).flags(tcp::SYN | tcp::ACK).macs(OTHER_VTEP, VTEP);
                    let seen = rig.run(FROM_OTHER_NODE, &answer);
                    seen.to_world(&answer.between(vip, client).ttl(63));
                    // The second time both are computed anew, and the port stays.
                    rig.bump(epoch::GLOBAL)?;
                    let seen = rig.run(Hook::FromUplink, &opening.clone().flags(tcp::ACK));
                    assert!(seen.slow());
                    let expected = opening.clone().flags(tcp::ACK).between(gateway, pod);
                    seen.to_other_node(&expected.ttl(63));
                }
                // E8: at the end of its hops the answer is not for our own stack.
                let late = packet(pod, gateway).flags(tcp::ACK).macs(OTHER_VTEP, VTEP).ttl(1);
                rig.run(FROM_OTHER_NODE, &late).dropped(DropReason::HopLimit);
            }
        }
        Ok(())
    })
}

/// E14: the node itself sees the client; its answers get the Service's name on their way out.
pub(crate) fn this_node() -> Result<()> {
    tell("outside-host", |rig, family| {
        let (client, vip) = (client(family), family.at(Who::Vip(1), 80));
        let (own, world) = (family.at(Who::Host, 8080), family.at(Who::World, 443));
        balance(rig, vip, TCP, &[own])?;
        let opening = syn(client, vip);
        rig.run(Hook::FromUplink, &opening).to_stack(&opening.clone().between(client, own));
        let answer = syn_ack(own, client);
        // Nothing that the node sends is looked at, as long as nobody said that it may be an answer.
        rig.run(Hook::ToUplink(0), &answer).passed();
        let mut config = Rig::config();
        config.flags |= config::flag::NODE_BACKENDS;
        rig.datapath.maps().config.set(0, &config)?;
        let answered = answer.clone().between(vip, client);
        rig.run(Hook::ToUplink(0), &answer).went(path::UPLINK, OK, 0, &answered);
        rig.bump(epoch::GLOBAL)?;
        for slow in [true, false] {
            let seen = rig.run(Hook::ToUplink(0), &answer);
            assert_eq!(seen.slow(), slow);
            seen.went(path::UPLINK, OK, 0, &answered);
        }
        for own in [
            Packet::tcp(family.at(Who::Host, 22), client),
            Packet::udp(family.at(Who::Host, 22), family.at(Who::OtherNode, config::OVERLAY_PORT)),
            Packet::tcp(family.at(Who::Host, 50_000), world).flags(tcp::SYN),
        ] {
            rig.run(Hook::ToUplink(0), &own).passed();
        }
        // An outsider with the node's address cannot speak as the Service.
        rig.run(Hook::FromUplink, &answer).passed();
        Ok(())
    })
}

/// E14: a backend outside the overlay sees the node, and answers to it.
pub(crate) fn the_world() -> Result<()> {
    tell("outside-world", |rig, family| {
        let (client, vip) = (client(family), family.at(Who::Vip(1), 53));
        let backend = family.at(Who::OtherNode, 5353);
        balance(rig, vip, UDP, &[backend])?;
        let question = Packet::udp(client, vip).payload(b"question");
        let seen = rig.run(Hook::FromUplink, &question);
        let host = family.at(Who::Host, chosen_port(&seen));
        seen.to_world(&question.clone().between(host, backend).ttl(63));
        let answer = Packet::udp(backend, host).payload(b"answer");
        for _ in 0..2 {
            rig.run(Hook::FromUplink, &answer).to_world(&answer.clone().between(vip, client).ttl(63));
            rig.bump(epoch::GLOBAL)?;
        }
        rig.run(Hook::FromUplink, &question).to_world(&question.between(host, backend).ttl(63));
        Ok(())
    })
}

/// E15: the answer leaves by the device on which the request came in.
pub(crate) fn two_uplinks() -> Result<()> {
    tell("uplinks", |rig, family| {
        let (client, vip, pod) = (client(family), family.at(Who::Vip(1), 80), family.at(Who::PodA, 8080));
        let remote = family.at(Who::Remote, 8080);
        balance(rig, vip, TCP, &[pod])?;
        rig.run(Hook::FromOtherUplink, &syn(client, vip));
        for _ in 0..2 {
            let answer = syn_ack(pod, client);
            let seen = rig.run(Hook::FromPodA, &from_a(answer.clone()));
            let expected = from_a(answer.between(vip, client).ttl(63));
            seen.went(path::UPLINK, REDIRECT, DEVICE_B, &expected);
            rig.bump(epoch::GLOBAL)?;
        }
        balance(rig, vip, TCP, &[remote])?;
        let client = family.at(Who::World, SNAT_MIN + 7);
        rig.run(Hook::FromOtherUplink, &syn(client, vip));
        let answer = syn_ack(remote, family.at(Who::Gateway, client.port())).macs(OTHER_VTEP, VTEP);
        let seen = rig.run(FROM_OTHER_NODE, &answer);
        seen.went(path::UPLINK, REDIRECT, DEVICE_B, &answer.between(vip, client).ttl(63));
        // The stack would send the node's own answer out of the first one.
        let mut config = Rig::config();
        config.flags |= config::flag::NODE_BACKENDS;
        rig.datapath.maps().config.set(0, &config)?;
        let (client, own) = (family.at(Who::World, 999), family.at(Who::Host, 8080));
        balance(rig, vip, TCP, &[own])?;
        rig.run(Hook::FromOtherUplink, &syn(client, vip));
        for _ in 0..2 {
            let answer = syn_ack(own, client);
            let seen = rig.run(Hook::ToUplink(0), &answer);
            seen.went(path::UPLINK, REDIRECT, DEVICE_B, &answer.between(vip, client));
        }
        Ok(())
    })
}

/// E9: one client port, two frontends, one backend: each answer carries the right one.
pub(crate) fn two_frontends() -> Result<()> {
    tell("outside-two", |rig, family| {
        let (client, pod) = (client(family), family.at(Who::PodA, 8080));
        let [first, second] = [family.at(Who::Vip(1), 80), family.at(Who::Host, NODE_PORT)];
        for frontend in [first, second] {
            balance(rig, frontend, TCP, &[pod])?;
        }
        rig.run(Hook::FromUplink, &syn(client, first)).to_pod_a(&syn(client, pod).ttl(63));
        let seen = rig.run(Hook::FromUplink, &syn(client, second));
        let other = family.at(Who::World, chosen_port(&seen));
        seen.to_pod_a(&syn(other, pod).ttl(63));
        for (frontend, seen_as) in [(first, client), (second, other)] {
            rig.run(Hook::FromPodA, &from_a(syn_ack(pod, seen_as)))
                .to_world(&from_a(syn_ack(frontend, client).ttl(63)));
        }
        Ok(())
    })
}

/// E16: without a free port only the new flow fails.
pub(crate) fn exhausted_ports() -> Result<()> {
    tell("outside-ports", |rig, family| {
        let mut config = Rig::config();
        config.snat_port_max = SNAT_MIN + 1;
        rig.datapath.maps().config.set(0, &config)?;
        let vip = family.at(Who::Vip(1), 80);
        balance(rig, vip, TCP, &[family.at(Who::Remote, 8080)])?;
        let open = |port| syn(family.at(Who::World, port), vip);
        for port in [1001, 1002] {
            assert!(rig.run(Hook::FromUplink, &open(port)).reason.is_none());
        }
        rig.run(Hook::FromUplink, &open(1003)).dropped(DropReason::PortsExhausted);
        assert!(rig.run(Hook::FromUplink, &open(1001)).reason.is_none());
        Ok(())
    })
}

/// E19: nobody in the world speaks with an address of the cluster: it would take a tuple of the inside.
pub(crate) fn forged_clients() -> Result<()> {
    tell("outside-forged", |rig, family| {
        let vip = family.at(Who::Vip(1), 80);
        balance(rig, vip, TCP, &[family.at(Who::PodA, 8080)])?;
        for who in [Who::PodB, Who::Remote, Who::Gateway, Who::Host, Who::Service(10), Who::Vip(2)] {
            let forged = syn(family.at(who, 40_000), vip);
            rig.run(Hook::FromUplink, &forged).dropped(DropReason::SpoofedAddress);
        }
        assert!(rig.run(Hook::FromUplink, &syn(family.at(Who::OtherNode, 1), vip)).reason.is_none());
        // Where others are refused they hear nothing, and no affinity is with them.
        let row = Service { id: 5, affinity_seconds: 100, ..Service::default() };
        let forged = family.at(Who::PodB, 40_000);
        for backends in [&[][..], &[family.at(Who::PodA, 8080)]] {
            rig.serve((vip, TCP), scope::EXTERNAL, row, backends)?;
            rig.run(Hook::FromUplink, &syn(forged, vip)).dropped(DropReason::SpoofedAddress);
        }
        let other = SocketAddr::new(vip.ip(), 81);
        rig.run(Hook::FromUplink, &syn(forged, other)).dropped(DropReason::SpoofedAddress);
        let maps = rig.datapath.maps();
        assert!(maps.affinity_v4.entries()?.is_empty() && maps.affinity_v6.entries()?.is_empty());
        Ok(())
    })
}

/// E11, E12: entries of either direction may be lost. Answers are dropped and never show a Pod's address; the client's
/// next packet writes both again, with the port that the connection has.
pub(crate) fn lost_entries() -> Result<()> {
    tell("outside-lost", |rig, family| {
        let (client, vip) = (client(family), family.at(Who::Vip(1), 80));
        for pod in [family.at(Who::PodB, 8080), family.at(Who::Remote, 8080)] {
            let local = pod.ip() == family.ip(Who::PodB);
            balance(rig, vip, TCP, &[pod])?;
            let client = SocketAddr::new(client.ip(), if local { 1234 } else { 5678 });
            let seen = rig.run(Hook::FromUplink, &syn(client, vip));
            let peer = if local { client } else { family.at(Who::Gateway, chosen_port(&seen)) };
            let answer = syn_ack(pod, peer);
            let (hook, sent) = if local {
                (Hook::FromPodB, from_b(answer))
            } else {
                (FROM_OTHER_NODE, answer.macs(OTHER_VTEP, VTEP))
            };
            let answered = sent.clone().between(vip, client).ttl(63);
            rig.run(hook, &sent).to_world(&answered);
            rig.evict(TCP, pod, peer)?;
            rig.run(hook, &sent).dropped(DropReason::NoFlow);
            let more = Packet::tcp(client, vip).payload(b"more");
            let forwarded = more.clone().between(peer, pod).ttl(63);
            let arrives = |seen: &Seen| {
                assert!(seen.slow());
                if local { seen.to_pod_b(&forwarded) } else { seen.to_other_node(&forwarded) }
            };
            arrives(&rig.run(Hook::FromUplink, &more));
            let seen = rig.run(hook, &sent);
            assert!(!seen.slow());
            seen.to_world(&answered);
            // The client's own entry.
            rig.evict_in(flow::scope::UPLINK, TCP, client, vip)?;
            arrives(&rig.run(Hook::FromUplink, &more));
            rig.run(hook, &sent).to_world(&answered);
            // Of a connection that nobody knows nothing is forwarded.
            let late = Packet::tcp(SocketAddr::new(client.ip(), 999), vip);
            rig.run(Hook::FromUplink, &late).dropped(DropReason::NoFlow);
        }
        Ok(())
    })
}

/// E12: the lost answers' entry of datagrams: the answer leaves under the node's name, never under the Pod's, and the
/// client's next datagram gets an entry that its answers find.
pub(crate) fn lost_datagram_entries() -> Result<()> {
    tell("outside-datagrams", |rig, family| {
        let (client, vip, pod) = (client(family), family.at(Who::Vip(1), 53), family.at(Who::PodB, 5353));
        balance(rig, vip, UDP, &[pod])?;
        let question = Packet::udp(client, vip).payload(b"question");
        rig.run(Hook::FromUplink, &question).to_pod_b(&question.clone().between(client, pod).ttl(63));
        rig.evict(UDP, pod, client)?;
        let answer = Packet::udp(pod, client).payload(b"answer");
        let seen = rig.run(Hook::FromPodB, &from_b(answer.clone()));
        let host = family.at(Who::Host, chosen_port(&seen));
        seen.to_world(&from_b(answer.clone().between(host, client).ttl(63)));
        let seen = rig.run(Hook::FromUplink, &question);
        assert!(seen.slow(), "the endpoint's epoch was bumped: {seen:?}");
        let known_as = family.at(Who::World, chosen_port(&seen));
        seen.to_pod_b(&question.clone().between(known_as, pod).ttl(63));
        let answer = Packet::udp(pod, known_as).payload(b"answer");
        rig.run(Hook::FromPodB, &from_b(answer.clone()))
            .to_world(&from_b(answer.between(vip, client).ttl(63)));
        Ok(())
    })
}

/// S17, S45: a backend that is gone ends a stream and gives a datagram another one at once.
pub(crate) fn gone_backends() -> Result<()> {
    tell("outside-gone", |rig, family| {
        let (client, vip) = (client(family), family.at(Who::Vip(1), 80));
        let (old, new) = (family.at(Who::Remote, 8080), family.at(Who::PodB, 8080));
        for proto in [TCP, UDP] {
            balance(rig, vip, proto, &[old])?;
        }
        let (stream, datagram) = (Packet::tcp(client, vip), Packet::udp(client, vip));
        rig.run(Hook::FromUplink, &stream.clone().flags(tcp::SYN));
        rig.run(Hook::FromUplink, &datagram);
        for proto in [TCP, UDP] {
            balance(rig, vip, proto, &[new])?;
            let first = if family == Family::V4 { epoch::BACKENDS_V4 } else { epoch::BACKENDS_V6 };
            let id = rig.backend(old, proto)?;
            rig.bump(first + id)?;
        }
        assert_eq!(rig.run(Hook::FromUplink, &stream).reason, Some(DropReason::BackendGone));
        rig.run(Hook::FromUplink, &datagram).to_pod_b(&datagram.clone().between(client, new).ttl(63));
        // E10: a new connection from the same port.
        let opening = stream.flags(tcp::SYN);
        rig.run(Hook::FromUplink, &opening).to_pod_b(&opening.clone().between(client, new).ttl(63));
        Ok(())
    })
}
