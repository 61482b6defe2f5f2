//! Random packets that have something to do with one another.
//!
//! Purely random bytes would all be dropped by the first check. Packets are drawn from few addresses and ports, so
//! that connections are continued, answered, closed, reused and collide; some are then damaged.

use std::net::IpAddr;

use fastrand::Rng;

use crate::cluster::SERVICES;
use crate::model::Hook;
use crate::wire::{
    ACK, DESTINATION, FIN, Frame, HOP_BY_HOP, ICMP, ICMPV6, RST, SYN, TCP, Tuple, UDP, pseudo_header, read,
    sum,
};
use crate::world::{World, family, service_address};

/// A frame and where it is to arrive.
#[derive(Clone, Debug)]
pub(crate) struct Stimulus {
    pub hook: Hook,
    pub frame: Vec<u8>,
}

/// What the next packet may continue: the tuple with which the answer to an earlier packet would arrive, and where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Continuation {
    pub hook: Hook,
    pub tuple: Tuple,
}

const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
const CLIENT_PORTS: [u16; 6] = [53, 80, 1024, 1025, 40_000, 61_001];
const SERVER_PORTS: [u16; 5] = [53, 80, 8080, 8472, 443];

#[derive(Default)]
pub(crate) struct Generator {
    /// Recent packets and their answers, overwritten at random.
    history: Vec<Continuation>,
}

impl Generator {
    /// Remembers something worth continuing.
    pub(crate) fn learn(&mut self, rng: &mut Rng, continuation: Continuation) {
        if self.history.len() < 64 {
            self.history.push(continuation);
        } else {
            self.history[rng.usize(0..64)] = continuation;
        }
    }

    pub(crate) fn next(&self, world: &World, rng: &mut Rng) -> Stimulus {
        let Continuation { hook, tuple } = match self.history.len() {
            0 => fresh(world, rng),
            known if rng.u8(0..10) < 6 => self.history[rng.usize(0..known)],
            _ => fresh(world, rng),
        };
        let mut frame = frame(world, rng, hook, tuple);
        // The host's own stack makes no damaged packets.
        if rng.u8(0..12) == 0 && !matches!(hook, Hook::ToPod(_) | Hook::ToOverlay) {
            let whole = frame.clone();
            damage(rng, &mut frame);
            if is_told_elsewhere(&frame) {
                frame = whole;
            }
        }
        Stimulus { hook, frame }
    }
}

fn fresh(world: &World, rng: &mut Rng) -> Continuation {
    let family = rng.usize(0..2);
    let pod = rng.usize(0..world.pods.len());
    let own = world.pods[pod].addresses[family];
    let (hook, src, dst) = match rng.u8(0..16) {
        0..=9 => (Hook::FromPod(pod), own, somebody_else(world, rng, family, own)),
        10 | 11 => from_overlay(world, rng, family, own),
        12 | 13 => (Hook::ToPod(pod), host_address(world, rng, family), own),
        14 => (Hook::ToOverlay, world.gateway[family], routed_to_overlay(world, rng, family)),
        _ => (Hook::FromUplink, world.outside[family * 2], world.host[family]),
    };
    let proto = [TCP, TCP, TCP, UDP, UDP, if family == 0 { ICMP } else { ICMPV6 }, 132][rng.usize(0..7)];
    let mut tuple = Tuple {
        src,
        dst,
        sport: rng.choice(CLIENT_PORTS).expect("not empty"),
        dport: rng.choice(SERVER_PORTS).expect("not empty"),
        proto,
    };
    match proto {
        ICMP | ICMPV6 => tuple.dport = 0,
        TCP | UDP => {}
        _ => (tuple.sport, tuple.dport) = (0, 0),
    }
    Continuation { hook, tuple }
}

/// The host's routes lead to the overlay device for other nodes' Pods only, and for nobody it knows.
fn routed_to_overlay(world: &World, rng: &mut Rng, family: usize) -> IpAddr {
    if rng.u8(0..8) == 0 {
        return service_address(250)[family];
    }
    let pods = &world.peers[rng.usize(0..world.peers.len())].pods;
    pods[rng.usize(0..pods.len())][family]
}

/// A Pod's packets to its own address never leave its namespace.
fn somebody_else(world: &World, rng: &mut Rng, family: usize, own: IpAddr) -> IpAddr {
    loop {
        let address = any_address(world, rng, family);
        if address != own {
            return address;
        }
    }
}

fn from_overlay(world: &World, rng: &mut Rng, family: usize, own: IpAddr) -> (Hook, IpAddr, IpAddr) {
    let peer = rng.usize(0..world.peers.len());
    let claimed = &world.peers[rng.usize(0..world.peers.len())].pods;
    let src = claimed[rng.usize(0..claimed.len())][family];
    let dst = if rng.u8(0..4) == 0 { any_address(world, rng, family) } else { own };
    (Hook::FromOverlay((rng.u8(0..12) != 0).then_some(peer)), src, dst)
}

fn host_address(world: &World, rng: &mut Rng, family: usize) -> IpAddr {
    if rng.bool() { world.host[family] } else { world.gateway[family] }
}

fn any_address(world: &World, rng: &mut Rng, family: usize) -> IpAddr {
    match rng.u8(0..32) {
        0..=12 => service_address(rng.u8(1..=SERVICES))[family],
        13..=18 => world.pods[rng.usize(0..world.pods.len())].addresses[family],
        19..=23 => {
            let pods = &world.peers[rng.usize(0..world.peers.len())].pods;
            pods[rng.usize(0..pods.len())][family]
        }
        24 | 25 => world.outside[family * 2 + rng.usize(0..2)],
        26 => host_address(world, rng, family),
        27 => crate::world::pod_address(1, 200)[family],
        28 => crate::world::pod_address(2, 250)[family],
        29 => service_address(250)[family],
        30 => ["224.0.0.5", "ff02::5"][family].parse().expect("an address"),
        _ => ["169.254.169.254", "fe80::1234"][family].parse().expect("an address"),
    }
}

/// A frame with this tuple as it would arrive at the hook, mostly well-formed.
fn frame(world: &World, rng: &mut Rng, hook: Hook, tuple: Tuple) -> Vec<u8> {
    let (src_mac, dst_mac) = match hook {
        Hook::FromPod(pod) => {
            let pod = &world.pods[pod];
            (if rng.u8(0..40) == 0 { HOST_MAC } else { pod.mac }, pod.host_mac)
        }
        Hook::ToPod(pod) => (world.pods[pod].host_mac, world.pods[pod].mac),
        Hook::FromOverlay(_) => (HOST_MAC, world.vtep_mac),
        Hook::ToOverlay => (world.vtep_mac, HOST_MAC),
        Hook::FromUplink => (HOST_MAC, [2, 0, 0, 0, 9, 1]),
    };
    let ttl = if rng.u8(0..24) == 0 { 1 } else { rng.u8(2..) };
    let transport = transport(rng, tuple);
    let mut frame = Vec::with_capacity(128);
    frame.extend(dst_mac);
    frame.extend(src_mac);
    match (tuple.src, tuple.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let options = if rng.u8(0..16) == 0 { 4 * rng.usize(1..4) } else { 0 };
            frame.extend([8, 0]);
            let start = frame.len();
            let total = u16::try_from(20 + options + transport.len()).expect("a small packet");
            frame.extend([0x45 + u8::try_from(options / 4).expect("few"), 0]);
            frame.extend(total.to_be_bytes());
            frame.extend(rng.u16(..).to_be_bytes());
            frame.extend([0x40, 0, ttl, tuple.proto, 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            frame.resize(frame.len() + options, 1);
            let sum = checksum(&frame[start..]);
            frame[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (first, extensions) = extensions(rng, tuple.proto);
            let payload = u16::try_from(extensions.len() + transport.len()).expect("a small packet");
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(payload.to_be_bytes());
            frame.extend([first, ttl]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            frame.extend(extensions);
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

/// A transport header with payload and a right checksum.
fn transport(rng: &mut Rng, tuple: Tuple) -> Vec<u8> {
    let payload: Vec<u8> = (0..rng.usize(0..24)).map(|_| rng.u8(..)).collect();
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

/// What announces a fragment header of IPv6.
const FRAGMENT_HEADER: u8 = 44;

/// ICMP errors, neighbour discovery and listener reports have stories of their own (tests/packet).
fn is_told_elsewhere(frame: &[u8]) -> bool {
    let Frame::Ip(headers) = read(frame) else { return false };
    match (headers.tuple.proto, headers.icmp_type) {
        (ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        (ICMPV6, Some(kind)) => matches!(kind, 1..=4 | 130..=137 | 143),
        _ => false,
    }
}

/// Cuts the frame short, or changes bytes of its headers.
fn damage(rng: &mut Rng, frame: &mut Vec<u8>) {
    if rng.bool() {
        frame.truncate(rng.usize(15..frame.len()));
    } else {
        for _ in 0..rng.u8(1..3) {
            let headers = frame.len().min(74);
            // Not the fragment fields: those have stories of their own (tests/packet).
            let (at, value) = (rng.usize(0..headers), rng.u8(..));
            if !(20..22).contains(&at) && value != FRAGMENT_HEADER {
                frame[at] = value;
            }
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
