//! E1, E2, E3: headers that lie, headers in front of headers, headers that are missing.

use std::net::SocketAddr;

use anyhow::Result;
use quilla_abi::DropReason;
use quilla_tests::packet::{Extension, Fault, Packet, tcp};

use crate::rig::{Family, Hook, UDP, Who, from_a, from_b, tell};

pub(crate) fn lies_are_dropped() -> Result<()> {
    tell("lies", |rig, family| {
        let (a, b) = (family.at(Who::PodA, 40_000), family.at(Who::PodB, 9000));
        let tcp = || Packet::tcp(a, b).flags(tcp::SYN).payload(b"payload");
        let udp = || Packet::udp(a, b).payload(b"payload");
        let mut lies = vec![
            (tcp().fault(Fault::Version(5)), DropReason::BadIpHeader),
            (tcp().fault(Fault::Length(2000)), DropReason::Truncated),
            (tcp().fault(Fault::DataOffset(4)), DropReason::BadTransportHeader),
            (tcp().fault(Fault::DataOffset(15)), DropReason::BadTransportHeader),
            (udp().fault(Fault::UdpLength(7)), DropReason::BadTransportHeader),
            (udp().fault(Fault::UdpLength(16)), DropReason::BadTransportHeader),
        ];
        if family == Family::V4 {
            lies.push((tcp().fault(Fault::Ihl(4)), DropReason::BadIpHeader));
            lies.push((tcp().fault(Fault::Ihl(15)), DropReason::BadIpHeader));
            lies.push((tcp().fault(Fault::Length(19)), DropReason::BadIpHeader));
        } else {
            lies.push((tcp().fault(Fault::Length(19)), DropReason::Truncated));
        }
        for (lie, reason) in lies {
            rig.run(Hook::FromPodA, &from_a(lie)).dropped(reason);
        }
        // Padding is no lie: a short packet in a frame of the least length.
        let padded = udp().fault(Fault::Padding(20));
        rig.run(Hook::FromPodA, &from_a(padded.clone())).to_pod_b(&padded.ttl(63));
        Ok(())
    })
}

pub(crate) fn truncation_at_every_byte() -> Result<()> {
    tell("truncation", |rig, family| {
        let (a, b) = (family.at(Who::PodA, 40_000), family.at(Who::PodB, 9000));
        let packets = [
            Packet::tcp(a, b).flags(tcp::SYN),
            Packet::udp(a, b).payload(b"payload"),
            Packet::echo_request(a.ip(), b.ip(), 1, 1),
        ];
        for packet in packets {
            let frame = from_a(packet).build();
            // A test run takes no frame that ends inside the fixed network header; the parser's own tests do.
            let least = if family == Family::V4 { 14 + 20 } else { 14 + 40 };
            for length in least..frame.len() {
                rig.run_frame(Hook::FromPodA, &frame[..length]).dropped(DropReason::Truncated);
            }
        }
        Ok(())
    })
}

pub(crate) fn options_and_extensions() -> Result<()> {
    tell("options", |rig, family| {
        let (a, b) = (family.at(Who::PodA, 40_000), family.at(Who::PodB, 8080));
        let (client, frontend) = (a, family.at(Who::Service(10), 80));
        let direct = family.at(Who::PodB, 9000);
        let packet = |to| Packet::tcp(a, to).flags(tcp::SYN);
        if family == Family::V4 {
            let harmless: [&[u8]; 3] = [&[1, 1, 1, 0], &[7, 7, 4, 0, 0, 0, 0], &[148, 4, 0, 0]];
            for options in harmless {
                let sent = packet(frontend).ip_options(options);
                let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
                seen.to_pod_b(&sent.between(client, b).ttl(63));
            }
            let routes: [&[u8]; 2] = [&[131, 7, 4, 8, 8, 8, 8], &[1, 137, 7, 4, 8, 8, 8, 8]];
            for options in routes {
                let sent = from_a(packet(direct).ip_options(options));
                rig.run(Hook::FromPodA, &sent).dropped(DropReason::SourceRoute);
            }
            for options in [&[7, 1, 0, 0], &[7, 40, 0, 0]] {
                let sent = from_a(packet(direct).ip_options(options));
                rig.run(Hook::FromPodA, &sent).dropped(DropReason::BadIpHeader);
            }
            return Ok(());
        }
        let chain = |count| {
            (0..count).fold(packet(frontend), |packet, n| {
                packet.extension(Extension::Destination(vec![0; if n == 0 { 20 } else { 4 }]))
            })
        };
        for sent in [chain(1), chain(8), packet(frontend).extension(Extension::Authentication(vec![0; 12]))] {
            let seen = rig.run(Hook::FromPodA, &from_a(sent.clone()));
            seen.to_pod_b(&sent.between(client, b).ttl(63));
        }
        rig.run(Hook::FromPodA, &from_a(chain(9))).dropped(DropReason::ExtensionHeaders);
        // Segments left are for somebody else to visit; none left are a header like any other.
        let arrived = packet(direct).extension(Extension::Routing(vec![0; 4]));
        rig.run(Hook::FromPodA, &from_a(arrived.clone())).to_pod_b(&arrived.clone().ttl(63));
        let mut routed = from_a(arrived).build();
        routed[14 + 40 + 3] = 1;
        rig.run_frame(Hook::FromPodA, &routed).dropped(DropReason::SourceRoute);
        Ok(())
    })
}

pub(crate) fn fragments() -> Result<()> {
    tell("fragments", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(12), 53));
        let backend = family.at(Who::PodB, 5353);
        let first = |id| Packet::udp(client, frontend).payload(&[7; 40]).fragment(id, 0, true);
        let later =
            |id| Packet::protocol(client.ip(), frontend.ip(), UDP).payload(&[9; 24]).fragment(id, 48, false);
        // Before its first fragment.
        rig.run(Hook::FromPodA, &from_a(later(1))).dropped(DropReason::Fragment);
        let seen = rig.run(Hook::FromPodA, &from_a(first(1)));
        seen.to_pod_b(&first(1).between(client, backend).ttl(63));
        let seen = rig.run(Hook::FromPodA, &from_a(later(1)));
        assert!(!seen.slow());
        let expected = later(1).between(SocketAddr::new(client.ip(), 0), SocketAddr::new(backend.ip(), 0));
        seen.to_pod_b(&expected.ttl(63));
        // Of another datagram.
        rig.run(Hook::FromPodA, &from_a(later(2))).dropped(DropReason::Fragment);
        // The answer in pieces.
        let answer = Packet::udp(backend, client).payload(&[1; 16]).fragment(3, 0, true);
        rig.run(Hook::FromPodB, &from_b(answer.clone())).to_pod_a(&answer.between(frontend, client).ttl(63));
        // A first fragment without ports, and one that overlaps the TCP header.
        let tiny = Packet::protocol(client.ip(), frontend.ip(), UDP).payload(&[0; 4]).fragment(4, 0, true);
        rig.run(Hook::FromPodA, &from_a(tiny)).dropped(DropReason::Fragment);
        let overlap = Packet::protocol(client.ip(), frontend.ip(), 6).payload(&[0; 24]).fragment(5, 8, false);
        rig.run(Hook::FromPodA, &from_a(overlap)).dropped(DropReason::Fragment);
        Ok(())
    })
}
