//! E8 to E12: how connections begin, end, are lost and found, and what a change of the cluster does to them.

use anyhow::Result;
use quilla_abi::counter::path;
use quilla_abi::endpoint::Endpoint;
use quilla_abi::service::{ServiceKey, scope};
use quilla_abi::{Be16, DropReason, epoch};
use quilla_tests::packet::{Packet, decode, tcp};

use crate::rig::{
    DEVICE_A, FROM_OTHER_NODE, Family, HOST_MAC_A, Hook, MAC_A, OTHER_VTEP, REDIRECT, Rig, SLOT, SNAT_MAX,
    SNAT_MIN, TCP, VTEP, Who, from_a, from_b, tell, v4, v6,
};

/// E8: the host's stack gets the packet as it was sent, and says that its time is over.
pub(crate) fn hop_limits() -> Result<()> {
    tell("hops", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(10), 80));
        for _ in 0..2 {
            let sent = from_a(Packet::tcp(client, frontend).flags(tcp::SYN).ttl(1));
            rig.run(Hook::FromPodA, &sent).to_stack(&sent);
        }
        let sent = Packet::tcp(client, frontend).flags(tcp::SYN).ttl(2);
        let expected = sent.clone().between(client, family.at(Who::PodB, 8080)).ttl(1);
        rig.run(Hook::FromPodA, &from_a(sent)).to_pod_b(&expected);
        // Where the stack would take the packet for its own there is nobody to tell.
        let (pod, world) = (family.at(Who::PodA, SNAT_MIN), family.at(Who::World, 443));
        rig.run(Hook::FromPodA, &from_a(Packet::udp(pod, world)));
        let answer = Packet::udp(world, family.at(Who::Host, SNAT_MIN)).ttl(1);
        rig.run(Hook::FromUplink, &answer).dropped(DropReason::HopLimit);
        Ok(())
    })
}

/// E9: two Services with one backend, one client port.
pub(crate) fn two_frontends() -> Result<()> {
    tell("frontends", |rig, family| {
        let (client, backend) = (family.at(Who::PodA, 40_000), family.at(Who::PodB, 8080));
        let [first, second] = [10, 11].map(|n| family.at(Who::Service(n), 80));
        let sent = Packet::tcp(client, first).flags(tcp::SYN);
        rig.run(Hook::FromPodA, &from_a(sent.clone())).to_pod_b(&sent.between(client, backend).ttl(63));
        let sent = Packet::tcp(client, second).flags(tcp::SYN);
        let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        let port: u16 = decode(seen.frame()).get("tcp.sport").expect("a port").parse()?;
        assert!((SNAT_MIN..=SNAT_MAX).contains(&port), "{port}");
        let other = family.at(Who::PodA, port);
        seen.to_pod_b(&sent.between(other, backend).ttl(63));
        for (frontend, seen_as) in [(first, client), (second, other)] {
            let answer = Packet::tcp(backend, seen_as).flags(tcp::SYN | tcp::ACK);
            let seen = rig.run(Hook::FromPodB, &from_b(answer.clone()));
            seen.to_pod_a(&answer.between(frontend, client).ttl(63));
        }
        Ok(())
    })
}

/// E10: a retransmitted SYN stays, a SYN on a connection that is over starts a new one.
pub(crate) fn port_reuse() -> Result<()> {
    tell("reuse", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(10), 80));
        let (old, new) = (family.at(Who::PodB, 8080), family.at(Who::PodB, 9090));
        let syn = Packet::tcp(client, frontend).flags(tcp::SYN);
        let to = |backend| syn.clone().between(client, backend).ttl(63);
        rig.run(Hook::FromPodA, &from_a(syn.clone())).to_pod_b(&to(old));
        rig.set_service(family, 10, TCP, &[new])?;
        rig.run(Hook::FromPodA, &from_a(syn.clone())).to_pod_b(&to(old));
        let fin = Packet::tcp(client, frontend).flags(tcp::FIN | tcp::ACK);
        rig.run(Hook::FromPodA, &from_a(fin.clone())).to_pod_b(&fin.clone().between(client, old).ttl(63));
        // E11: half closed, the other side still talks.
        let answer = Packet::tcp(old, client).payload(b"more");
        let seen = rig.run(Hook::FromPodB, &from_b(answer.clone()));
        assert!(!seen.slow());
        seen.to_pod_a(&answer.between(frontend, client).ttl(63));
        rig.run(Hook::FromPodA, &from_a(syn.clone())).to_pod_b(&to(new));
        Ok(())
    })
}

/// E11: a reset may be spurious; what comes for a connection that nobody knows is not forwarded untranslated.
pub(crate) fn resets_and_late_packets() -> Result<()> {
    tell("resets", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(10), 80));
        let backend = family.at(Who::PodB, 8080);
        let late = Packet::tcp(client, frontend).payload(b"late");
        rig.run(Hook::FromPodA, &from_a(late.clone())).dropped(DropReason::NoFlow);
        rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, frontend).flags(tcp::SYN)));
        let reset = Packet::tcp(backend, client).flags(tcp::RST);
        rig.run(Hook::FromPodB, &from_b(reset.clone())).to_pod_a(&reset.between(frontend, client).ttl(63));
        let seen = rig.run(Hook::FromPodA, &from_a(late.clone()));
        assert!(!seen.slow());
        seen.to_pod_b(&late.between(client, backend).ttl(63));
        Ok(())
    })
}

/// E12: the answers' entry was evicted. The answer is dropped, never shown with the Pod's own address, and the next
/// packet of the client restores the entry.
pub(crate) fn lost_replies() -> Result<()> {
    tell("replies", |rig, family| {
        for (number, backend) in [(10, family.at(Who::PodB, 8080)), (15, family.at(Who::Remote, 8080))] {
            let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(number), 80));
            rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, frontend).flags(tcp::SYN)));
            rig.evict(TCP, backend, client)?;
            let answer = Packet::tcp(backend, client).payload(b"answer");
            let (hook, sent) = if number == 10 {
                (Hook::FromPodB, from_b(answer.clone()))
            } else {
                (FROM_OTHER_NODE, answer.clone().macs(OTHER_VTEP, VTEP))
            };
            rig.run(hook, &sent).dropped(DropReason::NoFlow);
            let seen = rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, frontend)));
            assert!(seen.slow() && seen.reason.is_none(), "the endpoint's epoch was bumped: {seen:?}");
            let seen = rig.run(hook, &sent);
            assert!(!seen.slow());
            seen.to_pod_a(&answer.between(frontend, client).ttl(63));
        }
        Ok(())
    })
}

/// E12: the same for datagrams, which are delivered as they are: perhaps the server speaks first. No flow of the
/// untranslated answer is left to stand in the way.
pub(crate) fn lost_datagram_replies() -> Result<()> {
    use crate::rig::UDP;
    tell("datagrams", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(12), 53));
        for backend in [family.at(Who::PodB, 5353), family.at(Who::Remote, 5353)] {
            rig.set_service(family, 12, UDP, &[backend])?;
            let question = Packet::udp(client, frontend);
            let answer = Packet::udp(backend, client).payload(b"answer");
            let (hook, sent) = if backend.ip() == family.ip(Who::PodB) {
                (Hook::FromPodB, from_b(answer.clone()))
            } else {
                rig.evict(UDP, client, frontend)?;
                (FROM_OTHER_NODE, answer.clone().macs(OTHER_VTEP, VTEP))
            };
            rig.run(Hook::FromPodA, &from_a(question.clone()));
            rig.evict(UDP, backend, client)?;
            for _ in 0..2 {
                rig.run(hook, &sent).to_pod_a(&answer.clone().ttl(63));
            }
            let seen = rig.run(Hook::FromPodA, &from_a(question.clone()));
            assert!(seen.slow(), "the endpoint's epoch was bumped: {seen:?}");
            let seen = rig.run(hook, &sent);
            assert!(!seen.slow());
            seen.to_pod_a(&answer.between(frontend, client).ttl(63));
        }
        // What the server sends to the world is nobody's answer.
        let sent = from_b(Packet::udp(family.at(Who::PodB, 5353), family.at(Who::World, 53)));
        let seen = rig.run(Hook::FromPodB, &sent);
        assert!(seen.reason.is_none(), "{seen:?}");
        assert!(!rig.run(Hook::FromPodB, &sent).slow(), "it has a flow");
        Ok(())
    })
}

/// E12: the forward entry was evicted; the answers' entry vouches for the backend.
pub(crate) fn lost_forward_entries() -> Result<()> {
    tell("forwards", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(10), 80));
        let backend = family.at(Who::PodB, 8080);
        rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, frontend).flags(tcp::SYN)));
        rig.evict(TCP, client, frontend)?;
        let sent = Packet::tcp(client, frontend).payload(b"more");
        rig.run(Hook::FromPodA, &from_a(sent.clone()))
            .to_pod_b(&sent.clone().between(client, backend).ttl(63));
        // Another Service with the same backend must not find its way by that entry.
        let stranger = Packet::tcp(client, family.at(Who::Service(11), 80));
        rig.run(Hook::FromPodA, &from_a(stranger)).dropped(DropReason::NoFlow);
        Ok(())
    })
}

/// A bumped epoch changes the verdict of the very next packet, and of nothing else.
pub(crate) fn epochs() -> Result<()> {
    tell("epochs", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(10), 80));
        let backend = family.at(Who::PodB, 8080);
        rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, frontend).flags(tcp::SYN)));
        let sent = Packet::tcp(client, frontend).payload(b"data");
        let expected = sent.clone().between(client, backend).ttl(63);
        // Pod B moved behind another device.
        move_b(rig, family)?;
        let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        assert!(!seen.slow(), "nothing was bumped yet");
        rig.bump(epoch::ENDPOINTS + 2)?;
        let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        assert!(seen.slow());
        seen.went(path::LOCAL_POD, REDIRECT, DEVICE_A, &expected.macs(HOST_MAC_A, MAC_A));
        let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        assert!(!seen.slow());
        // The global epoch concerns everybody; the node's only those who speak with it.
        let remote = from_a(Packet::udp(client, family.at(Who::Remote, 9000)));
        rig.run(Hook::FromPodA, &remote);
        rig.bump(epoch::NODES + SLOT)?;
        assert!(!rig.run(Hook::FromPodA, &from_a(sent.clone())).slow());
        assert!(rig.run(Hook::FromPodA, &remote).slow());
        rig.bump(epoch::GLOBAL)?;
        assert!(rig.run(Hook::FromPodA, &from_a(sent)).slow());
        assert!(rig.run(Hook::FromPodA, &remote).slow());
        // Without a configuration of this version nothing is forwarded.
        let config = quilla_abi::config::Config { schema: 0, ..Rig::config() };
        rig.datapath.maps().config.set(0, &config)?;
        rig.bump(epoch::GLOBAL)?;
        rig.run(Hook::FromPodA, &remote).dropped(DropReason::NotConfigured);
        Ok(())
    })
}

fn move_b(rig: &Rig, family: Family) -> Result<()> {
    let endpoint = Endpoint { ifindex: DEVICE_A, id: 2, pod_mac: MAC_A, host_mac: HOST_MAC_A };
    let maps = rig.datapath.maps();
    match family {
        Family::V4 => maps.endpoints_v4.insert(&v4(family.ip(Who::PodB)), &endpoint)?,
        Family::V6 => maps.endpoints_v6.insert(&v6(family.ip(Who::PodB)), &endpoint)?,
    }
    Ok(())
}

/// S17: a backend that left the selection keeps its connections; one that is gone for good loses them.
pub(crate) fn gone_backends() -> Result<()> {
    tell("gone", |rig, family| {
        let client = family.at(Who::PodA, 40_000);
        let stream = Packet::tcp(client, family.at(Who::Service(10), 80));
        let datagram = Packet::udp(client, family.at(Who::Service(12), 53));
        rig.run(Hook::FromPodA, &from_a(stream.clone().flags(tcp::SYN)));
        rig.run(Hook::FromPodA, &from_a(datagram.clone()));
        let [old, other] = [5353, 5454].map(|port| family.at(Who::PodB, port));
        rig.set_service(family, 10, TCP, &[])?;
        rig.set_service(family, 12, crate::rig::UDP, &[other])?;
        rig.bump(epoch::GLOBAL)?;
        let kept = stream.clone().between(client, family.at(Who::PodB, 8080)).ttl(63);
        rig.run(Hook::FromPodA, &from_a(stream.clone())).to_pod_b(&kept);
        rig.run(Hook::FromPodA, &from_a(datagram.clone()))
            .to_pod_b(&datagram.clone().between(client, old).ttl(63));
        for (backend, proto) in [(family.at(Who::PodB, 8080), TCP), (old, crate::rig::UDP)] {
            let id = rig.backend(backend, proto)?;
            let first = if family == Family::V4 { epoch::BACKENDS_V4 } else { epoch::BACKENDS_V6 };
            rig.bump(first + id)?;
        }
        for _ in 0..2 {
            let seen = rig.run(Hook::FromPodA, &from_a(stream.clone()));
            assert_eq!(seen.reason, Some(DropReason::BackendGone));
        }
        let expected = datagram.clone().between(client, other).ttl(63);
        rig.run(Hook::FromPodA, &from_a(datagram.clone())).to_pod_b(&expected);
        Ok(())
    })
}

/// S47: a segment outside of every window is for the two ends to judge, under the names by which they know each other; a
/// Pod that saw one from a stranger would reset its connection. What belongs to no connection ends here in silence.
pub(crate) fn strays() -> Result<()> {
    tell("strays", |rig, family| {
        let [client, unknown] = [40_000, 40_001].map(|port| family.at(Who::PodA, port));
        let (frontend, backend) = (family.at(Who::Service(10), 80), family.at(Who::PodB, 8080));
        let ask = Packet::tcp(client, frontend).sequence(101, 501).payload(b"question");
        let answer = Packet::tcp(backend, client).sequence(501, 109).payload(b"answer");
        rig.run(Hook::FromPodA, &from_a(ask.clone().flags(tcp::SYN).sequence(100, 0).payload(b"")));
        let accept = answer.clone().flags(tcp::SYN | tcp::ACK).sequence(500, 101).payload(b"");
        rig.run(Hook::FromPodB, &from_b(accept));
        for number in [501, 0x4000_0000, 0x9000_0000, 501] {
            let sent = answer.clone().sequence(number, number ^ 0x5a5a_5a5a);
            rig.run(Hook::FromPodB, &from_b(sent.clone())).to_pod_a(&sent.between(frontend, client).ttl(63));
            let sent = ask.clone().sequence(number, number ^ 0xa5a5_a5a5);
            rig.run(Hook::FromPodA, &from_a(sent.clone())).to_pod_b(&sent.between(client, backend).ttl(63));
            for flags in [tcp::ACK, tcp::FIN | tcp::ACK, tcp::SYN | tcp::ACK, tcp::RST] {
                let stray = answer.clone().flags(flags).between(backend, unknown);
                rig.run(Hook::FromPodB, &from_b(stray)).dropped(DropReason::NoFlow);
            }
            let stray = ask.clone().between(unknown, frontend);
            rig.run(Hook::FromPodA, &from_a(stray)).dropped(DropReason::NoFlow);
        }
        Ok(())
    })
}

/// S51: a Service that is deleted and made again, at its address or at another one. The old connection ends, also if the
/// new backend is the old one; new ones find the new Service, at the same address from the same port, too.
pub(crate) fn made_again() -> Result<()> {
    tell("again", |rig, family| {
        let backend = family.at(Who::PodB, 8080);
        let to = |port, n, flags| {
            from_a(Packet::tcp(family.at(Who::PodA, port), family.at(Who::Service(n), 80)).flags(flags))
        };
        let connect = |rig: &mut Rig, port, n| {
            let (client, frontend) = (family.at(Who::PodA, port), family.at(Who::Service(n), 80));
            let expected = to(port, n, tcp::SYN).between(client, backend).ttl(63);
            rig.run(Hook::FromPodA, &to(port, n, tcp::SYN)).to_pod_b(&expected);
            let accept = Packet::tcp(backend, client).flags(tcp::SYN | tcp::ACK);
            let seen = rig.run(Hook::FromPodB, &from_b(accept.clone()));
            seen.to_pod_a(&accept.between(frontend, client).ttl(63));
        };
        connect(rig, 40_000, 10);
        for (old, new) in
            [((40_000, 10), (40_000, 10)), ((40_000, 10), (40_001, 50)), ((40_001, 50), (40_002, 10))]
        {
            remove(rig, family, old.1, backend)?;
            let seen = rig.run(Hook::FromPodA, &to(old.0, old.1, tcp::ACK));
            assert_eq!(seen.reason, Some(DropReason::BackendGone), "{seen:?}");
            let seen = rig.run(Hook::FromPodA, &to(old.0, old.1, tcp::SYN));
            assert_eq!(seen.reason, Some(DropReason::NotAService), "{seen:?}");
            rig.set_service(family, new.1, TCP, &[backend])?;
            rig.bump(epoch::GLOBAL)?;
            connect(rig, new.0, new.1);
        }
        Ok(())
    })
}

/// Takes a Service away, and its backend with it.
fn remove(rig: &mut Rig, family: Family, service: u8, backend: std::net::SocketAddr) -> Result<()> {
    let (port, scope, address) = (Be16::new(80), scope::INTERNAL, family.ip(Who::Service(service)));
    let maps = rig.datapath.maps();
    let first = if family == Family::V4 {
        maps.services_v4.remove(&ServiceKey { addr: v4(address), port, proto: TCP, scope })?;
        epoch::BACKENDS_V4
    } else {
        maps.services_v6.remove(&ServiceKey { addr: v6(address), port, proto: TCP, scope })?;
        epoch::BACKENDS_V6
    };
    rig.bump(epoch::GLOBAL)?;
    let id = rig.backend(backend, TCP)?;
    rig.bump(first + id)
}
