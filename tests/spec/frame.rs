//! Frames: a tuple as it would arrive at a hook, whole or in pieces, as an ICMP error's subject, or damaged.

use std::net::IpAddr;
use std::ops::Range;

use fastrand::Rng;

use crate::model::Hook;
use crate::report::Subject;
use crate::wire::{
    ACK, DESTINATION, FIN, FRAGMENT, Frame, HOP_BY_HOP, ICMP, ICMPV6, ROUTING, RST, SYN, TCP, Tuple, UDP,
    pseudo_header, read, sum,
};
use crate::world::{World, family};

const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// Which part of a datagram to make.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece {
    Whole,
    /// About as long as what fits a tunnel, or an uplink.
    Long {
        may_be_cut: bool,
    },
    /// With the identification that it shares with the rest.
    First(u8),
    Later(u8),
}

/// A frame with this tuple as it would arrive at the hook, mostly well-formed.
pub(crate) fn frame(world: &World, rng: &mut Rng, hook: Hook, tuple: Tuple, piece: Piece) -> Vec<u8> {
    let body = match piece {
        Piece::Whole => transport(rng, tuple, 0..24),
        Piece::Long { .. } => transport(rng, tuple, 1_330..1_520),
        Piece::First(_) => {
            let mut body = transport(rng, tuple, 0..24);
            // Seldom less than the header (RFC 1858).
            body.truncate(if rng.u8(0..8) == 0 { 8 } else { 24 });
            body
        }
        Piece::Later(_) => (0..rng.usize(1..24)).map(|_| rng.u8(..)).collect(),
    };
    packet(world, rng, hook, tuple, piece, &body)
}

/// An ICMP error about a packet that went to where this tuple comes from (E4).
pub(crate) fn report(world: &World, rng: &mut Rng, hook: Hook, tuple: Tuple) -> Vec<u8> {
    let v4 = tuple.src.is_ipv4();
    let kinds: &[u8] = if v4 { &[3, 4, 5, 11, 12] } else { &[1, 2, 3, 4] };
    let mut body = vec![rng.choice(kinds.iter().copied()).expect("not empty"), rng.u8(0..5), 0, 0];
    body.extend(rng.u32(..).to_be_bytes());
    body.extend(subject(rng, tuple.mirrored()));
    let (kind, reporter) = (if v4 { ICMP } else { ICMPV6 }, reporter(world, rng, hook, tuple.src));
    let outer = Tuple { src: reporter, dst: tuple.dst, sport: 0, dport: 0, proto: kind };
    let mut covered = if v4 { Vec::new() } else { pseudo_header(&outer, body.len()) };
    covered.extend(&body);
    body[2..4].copy_from_slice(&checksum(&covered).to_be_bytes());
    packet(world, rng, hook, outer, Piece::Whole, &body)
}

/// An ARP packet of a Pod, mostly about itself (E19).
pub(crate) fn arp(world: &World, rng: &mut Rng, pod: usize) -> Vec<u8> {
    let named = if rng.u8(0..4) == 0 { rng.usize(0..world.pods.len()) } else { pod };
    let [IpAddr::V4(own), IpAddr::V4(gateway)] = [world.pods[named].addresses[0], world.gateway[0]] else {
        unreachable!("the first of a pair is IPv4")
    };
    let mut frame = vec![0xff; 6];
    frame.extend(if rng.u8(0..8) == 0 { HOST_MAC } else { world.pods[pod].mac });
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, rng.u8(1..=2)]);
    frame.extend(if rng.u8(0..8) == 0 { HOST_MAC } else { world.pods[pod].mac });
    frame.extend(own.octets());
    frame.extend([0; 6]);
    frame.extend(gateway.octets());
    frame
}

/// The beginning of the packet that the error is about.
fn subject(rng: &mut Rng, tuple: Tuple) -> Vec<u8> {
    let mut transport = transport(rng, tuple, 0..24);
    let claimed = u16::try_from(transport.len()).expect("a small packet");
    transport.truncate(if rng.bool() { 8 } else { rng.usize(7..48) });
    let mut bytes = network(rng, tuple, claimed);
    bytes.extend(transport);
    bytes
}

/// A plain IP header in front of `length` bytes.
fn network(rng: &mut Rng, tuple: Tuple, length: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    match (tuple.src, tuple.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            bytes.extend([0x45, 0]);
            bytes.extend((20 + length).to_be_bytes());
            bytes.extend(rng.u16(..).to_be_bytes());
            bytes.extend([0x40, 0, rng.u8(1..), tuple.proto, 0, 0]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
            let sum = checksum(&bytes);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(length.to_be_bytes());
            bytes.extend([tuple.proto, rng.u8(1..)]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        mixed => unreachable!("both of one family: {mixed:?}"),
    }
    bytes
}

/// The far end itself, or a router on its side.
fn reporter(world: &World, rng: &mut Rng, hook: Hook, far_end: IpAddr) -> IpAddr {
    let family = family(far_end);
    match hook {
        _ if rng.bool() => far_end,
        Hook::FromOverlay(Some(peer)) => {
            let pods = &world.peers[peer].pods;
            pods[rng.usize(0..pods.len())][family]
        }
        Hook::FromPod(_) if rng.u8(0..4) != 0 => far_end,
        _ => world.outside[family * 2],
    }
}

fn packet(world: &World, rng: &mut Rng, hook: Hook, tuple: Tuple, piece: Piece, transport: &[u8]) -> Vec<u8> {
    let (src_mac, dst_mac) = match hook {
        Hook::FromPod(pod) => {
            let pod = &world.pods[pod];
            (if rng.u8(0..40) == 0 { HOST_MAC } else { pod.mac }, pod.host_mac)
        }
        Hook::ToPod(pod) => (world.pods[pod].host_mac, world.pods[pod].mac),
        Hook::FromOverlay(_) => (HOST_MAC, world.vtep_mac),
        Hook::ToOverlay => (world.vtep_mac, HOST_MAC),
        Hook::FromUplink => (HOST_MAC, [2, 0, 0, 0, 9, 1]),
        Hook::ToUplink(_) => ([2, 0, 0, 0, 9, 1], HOST_MAC),
    };
    // One that goes no further on its way would leave its rest without a connection.
    let ends = rng.u8(0..24) == 0 && !matches!(piece, Piece::First(_));
    let ttl = if ends { 1 } else { rng.u8(2..) };
    let (id, offset, more) = match piece {
        Piece::Whole | Piece::Long { .. } => (rng.u16(..), 0, false),
        Piece::First(id) => (u16::from(id), 0, true),
        // Seldom so near to the start that it overlaps the TCP header.
        Piece::Later(id) => (u16::from(id), if rng.u8(0..8) == 0 { 2 } else { 3 }, rng.bool()),
    };
    let source_routed = !hook.is_egress() && rng.u8(0..8) == 0;
    let ecn = if rng.bool() { rng.u8(0..4) } else { 0 };
    let mut frame = Vec::with_capacity(128);
    frame.extend(dst_mac);
    frame.extend(src_mac);
    match (tuple.src, tuple.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let options = if rng.u8(0..16) == 0 { 4 * rng.usize(1..4) } else { 0 };
            frame.extend([8, 0]);
            let start = frame.len();
            let total = u16::try_from(20 + options + transport.len()).expect("a small packet");
            frame.extend([0x45 + u8::try_from(options / 4).expect("few"), ecn]);
            frame.extend(total.to_be_bytes());
            frame.extend(id.to_be_bytes());
            let flags = if more {
                0x20
            } else if offset == 0 && !matches!(piece, Piece::Long { may_be_cut: true }) {
                0x40
            } else {
                0
            };
            frame.extend([flags, offset, ttl, tuple.proto, 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            frame.resize(frame.len() + options, 1);
            if options > 0 && source_routed {
                frame[start + 20..start + 23].copy_from_slice(&[131, 3, 4]);
            }
            let sum = checksum(&frame[start..]);
            frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut fragment = Vec::new();
            let mut last = tuple.proto;
            if matches!(piece, Piece::First(_) | Piece::Later(_)) || rng.u8(0..64) == 0 {
                fragment.extend([last, 0, 0, offset * 8 + u8::from(more)]);
                fragment.extend(u32::from(id).to_be_bytes());
                last = FRAGMENT;
            }
            let (mut first, extensions) = extensions(rng, last);
            if !extensions.is_empty() && source_routed {
                first = ROUTING;
            }
            let payload = extensions.len() + fragment.len() + transport.len();
            frame.extend([0x86, 0xdd, 0x60, ecn << 4, 0, 0]);
            frame.extend(u16::try_from(payload).expect("a small packet").to_be_bytes());
            frame.extend([first, ttl]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            frame.extend(extensions);
            frame.extend(fragment);
        }
        mixed => unreachable!("both of one family: {mixed:?}"),
    }
    frame.extend(transport);
    if rng.u8(0..16) == 0 {
        frame.extend([0; 6]); // Ethernet padding is no payload.
    }
    frame
}

/// Now and then some extension headers, seldom too many (E2): the first next-header value, and the bytes.
fn extensions(rng: &mut Rng, proto: u8) -> (u8, Vec<u8>) {
    let count = match rng.u8(0..32) {
        0 | 1 => rng.usize(1..4),
        2 => rng.usize(4..11),
        _ => return (proto, Vec::new()),
    };
    let mut bytes = Vec::new();
    for left in (0..count).rev() {
        bytes.extend([if left == 0 { proto } else { DESTINATION }, 0, 1, 4, 0, 0, 0, 0]);
    }
    (if count == 1 { HOP_BY_HOP } else { DESTINATION }, bytes)
}

/// A transport header with a payload of some length, and a right checksum.
fn transport(rng: &mut Rng, tuple: Tuple, payload: Range<usize>) -> Vec<u8> {
    let payload: Vec<u8> = (0..rng.usize(payload)).map(|_| rng.u8(..)).collect();
    let mut bytes = Vec::new();
    let checksum_at = match tuple.proto {
        TCP => {
            let flags = [SYN, SYN, ACK, ACK, ACK, SYN | ACK, FIN | ACK, RST, RST | ACK][rng.usize(0..9)];
            bytes.extend(tuple.sport.to_be_bytes());
            bytes.extend(tuple.dport.to_be_bytes());
            bytes.extend(rng.u64(..).to_be_bytes());
            bytes.extend([0x50, flags, 1, 0, 0, 0, 0, 0]);
            16
        }
        UDP => {
            bytes.extend(tuple.sport.to_be_bytes());
            bytes.extend(tuple.dport.to_be_bytes());
            bytes.extend(u16::try_from(8 + payload.len()).expect("a small packet").to_be_bytes());
            bytes.extend([0, 0]);
            6
        }
        ICMP | ICMPV6 => {
            let request = tuple.dport == 0;
            let kind = match (tuple.proto == ICMP, request) {
                (true, true) => 8,
                (true, false) => 0,
                (false, true) => 128,
                (false, false) => 129,
            };
            bytes.extend([kind, 0, 0, 0]);
            bytes.extend(if request { tuple.sport } else { tuple.dport }.to_be_bytes());
            bytes.extend(rng.u16(..).to_be_bytes());
            2
        }
        _ => {
            bytes.extend(payload);
            return bytes;
        }
    };
    bytes.extend(payload);
    if tuple.proto == UDP && family(tuple.src) == 0 && rng.u8(0..6) == 0 {
        return bytes; // No checksum at all (E7).
    }
    let mut covered = if tuple.proto == ICMP { Vec::new() } else { pseudo_header(&tuple, bytes.len()) };
    covered.extend(&bytes);
    let sum = match checksum(&covered) {
        0 if tuple.proto == UDP => 0xffff,
        sum => sum,
    };
    bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn checksum(bytes: &[u8]) -> u16 {
    !u16::try_from(sum(bytes)).expect("folded")
}

/// Neighbour discovery and listener reports have stories of their own (tests/packet). An echo without an identifier
/// inside an error may be a request or a reply: nobody sends them.
pub(crate) fn is_told_elsewhere(frame: &[u8]) -> bool {
    let Frame::Ip(headers) = read(frame) else { return false };
    let echo = |tuple: Tuple| matches!(tuple.proto, ICMP | ICMPV6) && (tuple.sport, tuple.dport) == (0, 0);
    if headers.is_error() {
        return Subject::read(frame, &headers).is_some_and(|subject| echo(subject.tuple));
    }
    headers.tuple.proto == ICMPV6 && headers.icmp_type.is_some_and(|kind| matches!(kind, 130..=137 | 143))
}

/// Cuts the frame short, or changes bytes of its headers.
pub(crate) fn damage(rng: &mut Rng, frame: &mut Vec<u8>) {
    if rng.bool() {
        frame.truncate(rng.usize(15..frame.len()));
    } else {
        for _ in 0..rng.u8(1..3) {
            let headers = frame.len().min(94);
            frame[rng.usize(0..headers)] = rng.u8(..);
        }
    }
    // The kernel refuses test runs of frames that do not hold the network header that their EtherType promises.
    let least = match frame[12..14] {
        [0x08, 0x00] => 34,
        [0x86, 0xdd] => 54,
        _ => 15,
    };
    frame.resize(frame.len().max(least), 0);
}
