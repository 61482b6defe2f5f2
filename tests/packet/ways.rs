//! Where packets go: local Pods, other nodes, the host, Services, nowhere.

use anyhow::Result;
use quilla_abi::DropReason;
use quilla_abi::counter::path;
use quilla_tests::packet::{Packet, tcp};

use crate::rig::{FROM_OTHER_NODE, Hook, OK, OTHER_VTEP, TCP, VTEP, Who, from_a, from_b, tell};

pub(crate) fn pod_to_pod() -> Result<()> {
    tell("pods", |rig, family| {
        let (a, b) = (family.at(Who::PodA, 40_000), family.at(Who::PodB, 9000));
        let packets = [
            Packet::udp(a, b).payload(b"datagram"),
            Packet::tcp(a, b).flags(tcp::SYN),
            Packet::echo_request(a.ip(), b.ip(), 7, 1),
            // E22: unknown protocols go by address.
            Packet::protocol(a.ip(), b.ip(), 132).payload(b"anything at all"),
        ];
        for packet in packets {
            let seen = rig.run(Hook::FromPodA, &from_a(packet.clone()));
            assert!(seen.slow(), "the first packet of a flow");
            seen.to_pod_b(&packet.clone().ttl(63));
        }
        let datagram = Packet::udp(a, b).payload(b"datagram");
        let seen = rig.run(Hook::FromPodA, &from_a(datagram.clone()));
        assert!(!seen.slow(), "the second one");
        seen.to_pod_b(&datagram.ttl(63));
        let answer = Packet::udp(b, a).payload(b"answer");
        let seen = rig.run(Hook::FromPodB, &from_b(answer.clone()));
        assert!(!seen.slow(), "the answer's entry was made with the first packet");
        seen.to_pod_a(&answer.ttl(63));
        Ok(())
    })
}

/// S1, S30: destination translated, source kept, the answer translated back.
pub(crate) fn services() -> Result<()> {
    tell("services", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(10), 80));
        let backend = family.at(Who::PodB, 8080);
        let steps = [tcp::SYN, tcp::SYN | tcp::ACK, tcp::ACK, tcp::ACK | tcp::PSH];
        for (number, flags) in steps.into_iter().enumerate() {
            let payload: &[u8] = if number == 3 { b"some bytes" } else { b"" };
            if number == 1 {
                let sent = Packet::tcp(backend, client).flags(flags);
                let seen = rig.run(Hook::FromPodB, &from_b(sent.clone()));
                seen.to_pod_a(&sent.between(frontend, client).ttl(63));
            } else {
                let sent = Packet::tcp(client, frontend).flags(flags).payload(payload);
                let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
                assert_eq!(seen.slow(), number == 0);
                seen.to_pod_b(&sent.between(client, backend).ttl(63));
            }
        }
        // UDP, and a backend on another node.
        let sent = Packet::udp(client, family.at(Who::Service(12), 53)).payload(b"odd");
        let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        seen.to_pod_b(&sent.between(client, family.at(Who::PodB, 5353)).ttl(63));
        let remote = family.at(Who::Remote, 8080);
        let sent = Packet::tcp(client, family.at(Who::Service(15), 80)).flags(tcp::SYN);
        let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
        seen.to_other_node(&sent.between(client, remote).ttl(63));
        let answer = Packet::tcp(remote, client).flags(tcp::SYN | tcp::ACK).macs(OTHER_VTEP, VTEP);
        let seen = rig.run(FROM_OTHER_NODE, &answer);
        seen.to_pod_a(&answer.between(family.at(Who::Service(15), 80), client).ttl(63));
        // S20: nobody behind it.
        let sent = Packet::tcp(client, family.at(Who::Service(16), 80)).flags(tcp::SYN);
        assert_eq!(rig.run(Hook::FromPodA, &from_a(sent)).reason, Some(DropReason::NoBackend));
        Ok(())
    })
}

pub(crate) fn overlay() -> Result<()> {
    tell("overlay", |rig, family| {
        let (a, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 9000));
        let sent = Packet::udp(a, remote).payload(b"out");
        rig.run(Hook::FromPodA, &from_a(sent.clone())).to_other_node(&sent.ttl(63));
        let answer = Packet::udp(remote, a).payload(b"in").macs(OTHER_VTEP, VTEP);
        let seen = rig.run(FROM_OTHER_NODE, &answer);
        assert!(!seen.slow());
        seen.to_pod_a(&answer.ttl(63));
        // Begun by the other side.
        let b = family.at(Who::PodB, 80);
        let sent = Packet::tcp(remote, b).flags(tcp::SYN).macs(OTHER_VTEP, VTEP);
        rig.run(FROM_OTHER_NODE, &sent).to_pod_b(&sent.ttl(63));
        let answer = Packet::tcp(b, remote).flags(tcp::SYN | tcp::ACK);
        let seen = rig.run(Hook::FromPodB, &from_b(answer.clone()));
        assert!(!seen.slow());
        seen.to_other_node(&answer.ttl(63));
        Ok(())
    })
}

pub(crate) fn host() -> Result<()> {
    tell("host", |rig, family| {
        // The host probes a Pod: its own hops are not counted again.
        let (host, pod) = (family.at(Who::Gateway, 50_000), family.at(Who::PodA, 80));
        let probe = Packet::tcp(host, pod).flags(tcp::SYN);
        rig.run(Hook::ToPodA, &probe).went(path::LOCAL_POD, OK, 0, &probe);
        let answer = from_a(Packet::tcp(pod, host).flags(tcp::SYN | tcp::ACK));
        let seen = rig.run(Hook::FromPodA, &answer);
        assert!(!seen.slow());
        seen.to_stack(&answer);
        // To another Pod than the one behind the device.
        let astray = Packet::tcp(host, family.at(Who::PodB, 80)).flags(tcp::SYN);
        rig.run(Hook::ToPodA, &astray).dropped(DropReason::NoEndpoint);
        // A Pod on another node, and its answer.
        let remote = family.at(Who::Remote, 80);
        let sent = Packet::tcp(host, remote).flags(tcp::SYN);
        let expected = sent.clone().macs(VTEP, OTHER_VTEP);
        rig.run(Hook::ToOverlay, &sent).went(path::HOST_OVERLAY, OK, 0, &expected);
        let answer = Packet::tcp(remote, host).flags(tcp::SYN | tcp::ACK).macs(OTHER_VTEP, VTEP);
        let seen = rig.run(FROM_OTHER_NODE, &answer);
        assert!(!seen.slow());
        seen.to_stack(&answer);
        // E14: a backend in the host's own network; its answer comes through the stack.
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(16), 80));
        let backend = family.at(Who::Host, 8080);
        rig.set_service(family, 16, TCP, &[backend])?;
        let sent = from_a(Packet::tcp(client, frontend).flags(tcp::SYN));
        rig.run(Hook::FromPodA, &sent).to_stack(&sent.clone().between(client, backend));
        let answer = Packet::tcp(backend, client).flags(tcp::SYN | tcp::ACK);
        let expected = answer.clone().between(frontend, client);
        rig.run(Hook::ToPodA, &answer).went(path::LOCAL_POD, OK, 0, &expected);
        Ok(())
    })
}

pub(crate) fn nowhere() -> Result<()> {
    tell("nowhere", |rig, family| {
        let link_local =
            if family.ip(Who::PodA).is_ipv4() { "169.254.169.254" } else { "fe80::1" }.parse()?;
        let addresses = [
            (family.ip(Who::Nobody), DropReason::NoEndpoint),
            // E8: an address without a Service dies at once.
            (family.ip(Who::Service(99)), DropReason::NotAService),
            (link_local, DropReason::Unroutable),
        ];
        for (address, reason) in addresses {
            let sent = Packet::udp(family.at(Who::PodA, 40_000), std::net::SocketAddr::new(address, 80));
            rig.run(Hook::FromPodA, &from_a(sent)).dropped(reason);
        }
        let unknown = Packet::udp(family.at(Who::Host, 1), family.at(Who::World, 2));
        rig.run(Hook::ToOverlay, &unknown).dropped(DropReason::UnknownNode);
        Ok(())
    })
}
