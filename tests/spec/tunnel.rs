//! Tunnels that the programs make and open themselves: the outer headers as RFC 7348 and RFC 6040 have them.
//!
//! Half of the worlds have such tunnels. What becomes of the packet inside is the model's to say, and the same with and
//! without them; what is said here is only which frames are opened, and how those look that leave.

use std::net::IpAddr;

use fastrand::Rng;
use quilla_abi::DropReason;
use quilla_abi::program::SENT_MARK;
use quilla_abi::trace;
use quilla_datapath::Outcome;

use crate::coverage::{self, Coverage};
use crate::model::Hook;
use crate::peer::{self, Peer, STRANGER};
use crate::way::Departure;
use crate::wire::{DESTINATION, FRAGMENT, Frame, UDP, be16, ip_checksum_error, read, sum};
use crate::world::{OVERLAY_PORT, VNI, World};

/// The uplink's Ethernet address.
pub(crate) const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];
/// Congestion experienced, and able to experience it (RFC 3168).
const CE: u8 = 3;
const ECT0: u8 = 2;
/// UDP, VXLAN and Ethernet.
const BEHIND: usize = 8 + 8 + 14;

/// How a packet of another node arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outer {
    fault: Fault,
    /// The ECN field.
    ecn: u8,
    port: u16,
    /// The inner frame's padding is behind the datagram.
    padded: bool,
    /// The kernel takes it for one in a tunnel (`skb->encapsulation`), also once it is opened.
    pub marked: bool,
}

/// What is wrong with the outer headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Identifier,
    Flags,
    Reserved,
    OtherPort,
    OtherAddress,
    Options,
    Piece,
    HeaderChecksum,
    UdpChecksum,
    ShortDatagram,
    LongDatagram,
    Cut,
    /// Less inside than a network header.
    Runt,
}

const FAULTS: [(Fault, &str); 13] = [
    (Fault::Identifier, "other identifier"),
    (Fault::Flags, "other flags"),
    (Fault::Reserved, "reserved bits"),
    (Fault::OtherPort, "other port"),
    (Fault::OtherAddress, "other address"),
    (Fault::Options, "options"),
    (Fault::Piece, "piece"),
    (Fault::HeaderChecksum, "header checksum"),
    (Fault::UdpChecksum, "UDP checksum"),
    (Fault::ShortDatagram, "short datagram"),
    (Fault::LongDatagram, "long datagram"),
    (Fault::Cut, "cut"),
    (Fault::Runt, "runt"),
];

/// What becomes of a frame that came by the uplink.
pub(crate) enum Fate {
    /// From then on it is this frame, of that node.
    Opened(Hook, Vec<u8>),
    /// No tunnel to this node, or too odd for the programs.
    Left,
    /// Dropped, as it came.
    Lost(DropReason),
    /// Dropped when it was open, as this.
    LostInside(DropReason, Vec<u8>),
}

impl Outer {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let fault = if rng.u8(0..8) == 0 { rng.choice(FAULTS).expect("not empty").0 } else { Fault::None };
        Self {
            fault,
            ecn: if rng.u8(0..4) == 0 { rng.u8(0..4) } else { 0 },
            port: rng.u16(1..),
            padded: rng.bool(),
            marked: rng.bool(),
        }
    }

    /// The frame on the wire.
    pub(crate) fn wrap(self, world: &World, hook: Hook, inner: &[u8]) -> Vec<u8> {
        let family = world.tunnels.expect("a world with tunnels of the programs");
        let number = match hook {
            Hook::FromOverlay(Some(peer)) => world.peers[peer].number,
            _ => STRANGER,
        };
        let inner = if self.fault == Fault::Runt { &inner[..inner.len().min(14 + 8)] } else { inner };
        let padding = if self.padded { padding(inner) } else { 0 };
        let datagram = self.datagram(inner, padding);
        let own = if self.fault == Fault::OtherAddress { world.second } else { world.host };
        let mut frame = [OWN_MAC, peer::ethernet(number)].concat();
        match (peer::address(number)[family], own[family]) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend([8, 0]);
                frame.extend(self.header_v4([src.octets(), dst.octets()], datagram.len() - padding));
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend([0x86, 0xdd]);
                frame.extend(self.header_v6([src.octets(), dst.octets()], datagram.len() - padding));
            }
            mixed => unreachable!("both of one family: {mixed:?}"),
        }
        frame.extend(datagram);
        if self.fault == Fault::Cut {
            frame.truncate(frame.len() - padding - 1);
        }
        frame
    }

    fn header_v4(self, [src, dst]: [[u8; 4]; 2], length: usize) -> Vec<u8> {
        let options = if self.fault == Fault::Options { 4 } else { 0 };
        let mut header = vec![if options > 0 { 0x46 } else { 0x45 }, self.ecn];
        header.extend(short(20 + options + length));
        header.extend([0x12, 0x34, if self.fault == Fault::Piece { 0x20 } else { 0x40 }, 0]);
        header.extend([63, UDP, 0, 0]);
        header.extend(src);
        header.extend(dst);
        header.resize(20 + options, 1);
        let mut check = !u16::try_from(sum(&header)).expect("folded");
        if self.fault == Fault::HeaderChecksum {
            check ^= 0x0100;
        }
        header[10..12].copy_from_slice(&check.to_be_bytes());
        header
    }

    fn header_v6(self, [src, dst]: [[u8; 16]; 2], length: usize) -> Vec<u8> {
        let (first, extension) = match self.fault {
            Fault::Options => (DESTINATION, vec![UDP, 0, 1, 4, 0, 0, 0, 0]),
            Fault::Piece => (FRAGMENT, vec![UDP, 0, 0, 1, 0, 0, 0, 9]),
            _ => (UDP, Vec::new()),
        };
        let mut header = vec![0x60, self.ecn << 4, 0, 0];
        header.extend(short(extension.len() + length));
        header.extend([first, 63]);
        header.extend(src);
        header.extend(dst);
        header.extend(extension);
        header
    }

    /// UDP and what it carries.
    fn datagram(self, inner: &[u8], padding: usize) -> Vec<u8> {
        let port = if self.fault == Fault::OtherPort { OVERLAY_PORT + 1 } else { OVERLAY_PORT };
        let length = match self.fault {
            Fault::ShortDatagram => BEHIND - 1,
            Fault::LongDatagram => 16 + inner.len() - padding + 1,
            _ => 16 + inner.len() - padding,
        };
        let check = if self.fault == Fault::UdpChecksum { 0x1234 } else { 0 };
        let flags = if self.fault == Fault::Flags { 0x0c } else { 0x08 };
        let vni = if self.fault == Fault::Identifier { VNI + 1 } else { VNI };
        let reserved = u32::from(self.fault == Fault::Reserved);
        let mut bytes = [self.port.to_be_bytes(), port.to_be_bytes(), short(length), short(check)].concat();
        bytes.extend([flags, 0, 0, 0]);
        bytes.extend((vni << 8 | reserved).to_be_bytes());
        bytes.extend(inner);
        bytes
    }

    /// For [`coverage`].
    pub(crate) fn meet(self, coverage: &mut Coverage, world: &World) {
        let outer = word(world.tunnels.unwrap_or_default());
        if let Some((_, fault)) = FAULTS.iter().find(|(fault, _)| *fault == self.fault) {
            coverage.meet(["outer", fault, outer, ""]);
        }
    }
}

fn word(family: usize) -> &'static str {
    ["IPv4", "IPv6"][family]
}

/// Outer headers of a frame for this node's tunnel end.
struct Network {
    src: IpAddr,
    /// Bytes behind Ethernet and IP, as IP has them.
    payload: Option<usize>,
    /// Where they begin.
    at: usize,
    /// Whether the header's checksum is right.
    sound: bool,
    ecn: u8,
}

impl Network {
    /// Fragments, options and extension headers are the stack's.
    fn of(world: &World, frame: &[u8]) -> Option<Self> {
        match be16(frame, 12) {
            0x0800 => {
                let ip = frame[14..].first_chunk::<20>()?;
                let [src, dst] =
                    [12, 16].map(|at| IpAddr::from([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]));
                let plain = ip[0] == 0x45 && [ip[6] & 0x3f, ip[7]] == [0, 0] && ip[9] == UDP;
                let total = usize::from(be16(ip, 2));
                // A length of 0 stands for one that does not fit.
                (plain && dst == world.host[0] && total != 0).then(|| Self {
                    src,
                    payload: total.checked_sub(20),
                    at: 34,
                    sound: ip_checksum_error(frame) == 0,
                    ecn: ip[1] & 3,
                })
            }
            0x86dd => {
                let ip = frame[14..].first_chunk::<40>()?;
                let [src, dst] = [8, 24].map(|at| {
                    let octets: [u8; 16] = ip[at..at + 16].try_into().expect("sixteen bytes");
                    IpAddr::from(octets)
                });
                (ip[0] >> 4 == 6 && ip[6] == UDP && dst == world.host[1]).then(|| Self {
                    src,
                    payload: Some(usize::from(be16(ip, 4))),
                    at: 54,
                    sound: true,
                    ecn: ip[1] >> 4 & 3,
                })
            }
            _ => None,
        }
    }
}

/// What becomes of a frame that arrives where tunnels are opened (E19, E20).
pub(crate) fn arrive(world: &World, frame: &[u8]) -> Fate {
    let Some(outer) = Network::of(world, frame) else { return Fate::Left };
    let Some(behind) = frame[outer.at..].first_chunk::<BEHIND>() else { return Fate::Left };
    if be16(behind, 2) != OVERLAY_PORT {
        return Fate::Left;
    }
    let length = usize::from(be16(behind, 4));
    let fits = outer.payload.is_some_and(|payload| length <= payload && payload <= frame.len() - outer.at);
    let vni = u32::from_be_bytes([0, behind[12], behind[13], behind[14]]);
    match () {
        () if !outer.sound => return Fate::Lost(DropReason::BadIpHeader),
        () if !fits => return Fate::Lost(DropReason::Truncated),
        () if length < BEHIND => return Fate::Lost(DropReason::BadTransportHeader),
        () if behind[8..12] != [8, 0, 0, 0] || behind[15] != 0 => {
            return Fate::Lost(DropReason::BadTunnelHeader);
        }
        () if vni != VNI => return Fate::Lost(DropReason::WrongVni),
        // Nobody has verified it.
        () if be16(behind, 6) != 0 => return Fate::Left,
        () => {}
    }
    let inner = &frame[outer.at + 16..];
    let least = match be16(inner, 12) {
        0x0800 => 34,
        0x86dd => 54,
        _ => return Fate::Lost(DropReason::UnknownEtherType),
    };
    if inner.len() < least {
        return Fate::Left;
    }
    let inside = ecn(inner);
    if outer.ecn == CE && inside == 0 {
        return Fate::LostInside(DropReason::BadTunnelHeader, inner.to_vec());
    }
    let peer = world.peers.iter().position(|peer| peer.named().any(|end| end == outer.src));
    let meets = outer.ecn == CE && inside != CE;
    let inner = if meets { congested(inner, inside) } else { inner.to_vec() };
    Fate::Opened(Hook::FromOverlay(peer), inner)
}

/// Counts what [`arrive`] said.
pub(crate) fn meet(coverage: &mut Coverage, wire: &[u8], fate: &Fate) {
    let family = |frame: &[u8]| word(usize::from(be16(frame, 12) == 0x86dd));
    match fate {
        Fate::Opened(_, inner) => {
            coverage.meet(["tunnel", "opened", family(inner), family(wire)]);
            let class = if family(wire) == "IPv4" { wire[15] } else { wire[15] >> 4 };
            if class & 3 == CE {
                coverage.meet(["congestion", "handed on", family(inner), ""]);
            }
        }
        Fate::LostInside(_, inner) => coverage.meet(["congestion", "not understood", family(inner), ""]),
        Fate::Left | Fate::Lost(_) => {}
    }
}

fn short(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("a small packet").to_be_bytes()
}

/// How much of a frame is behind its packet.
fn padding(frame: &[u8]) -> usize {
    match read(frame) {
        Frame::Ip(headers) => frame.len() - headers.l4 - headers.l4_len,
        _ => 0,
    }
}

/// The ECN field of the packet in a frame.
fn ecn(frame: &[u8]) -> u8 {
    if be16(frame, 12) == 0x0800 { frame[15] & 3 } else { frame[15] >> 4 & 3 }
}

/// The frame with congestion experienced; the kernel changes the checksum by as much (RFC 1624).
fn congested(frame: &[u8], before: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if be16(&frame, 12) != 0x0800 {
        frame[15] |= CE << 4;
        return frame;
    }
    frame[15] |= CE;
    let (check, carry) = be16(&frame, 24).overflowing_add(!u16::from(CE - before));
    frame[24..26].copy_from_slice(&(check + u16::from(carry)).to_be_bytes());
    frame
}

/// Whether the programs put the packet in a tunnel.
pub(crate) fn is_made(world: &World, seen: &Outcome<'_>) -> bool {
    world.tunnels.is_some() && Departure::of(world, seen) == Some(Departure::Tunnel)
}

/// Checks the outer headers that the programs wrote for a peer; what is inside, and how much longer it became.
pub(crate) fn open<'a>(
    world: &World,
    peer: &Peer,
    seen: &Outcome<'a>,
    coverage: &mut Coverage,
) -> Result<(&'a [u8], usize), String> {
    let family = world.tunnels.expect("a world with tunnels of the programs");
    let frame = seen.packet;
    let network = if family == 0 { 20 } else { 40 };
    let overhead = network + BEHIND;
    let differs = |what: &str| Err(format!("{what} of the tunnel: {frame:02x?}"));
    if frame.len() < 14 + overhead {
        return differs("length");
    }
    let inner = &frame[overhead..];
    let Frame::Ip(headers) = read(inner) else { return differs("the inside") };
    // While the kernel knows none, it writes them.
    if peer::next_hop(peer.number).is_some_and(|hop| frame[..12] != [hop, OWN_MAC].concat()) {
        return differs("Ethernet addresses");
    }
    let length = 16 + headers.l4 + headers.l4_len;
    let class = if ecn(inner) == CE { ECT0 } else { ecn(inner) };
    let expected = match (world.host[family], peer.addresses[family]) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = vec![8, 0, 0x45, class];
            header.extend(short(20 + length));
            header.extend([0, 0, 0x40, 0, 64, UDP, frame[24], frame[25]]);
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x86, 0xdd, 0x60, class << 4, 0, 0];
            header.extend(short(length));
            header.extend([UDP, 64]);
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        mixed => unreachable!("both of one family: {mixed:?}"),
    };
    if frame[12..14 + network] != expected || (family == 0 && ip_checksum_error(frame) != 0) {
        return differs("IP header");
    }
    let datagram = &frame[14 + network..];
    let mut expected = OVERLAY_PORT.to_be_bytes().to_vec();
    expected.extend(short(length));
    expected.extend([0, 0, 8, 0, 0, 0]);
    expected.extend((VNI << 8).to_be_bytes());
    if datagram[2..16] != expected || !(0x8000..0xc000).contains(&be16(datagram, 0)) {
        return differs("UDP or VXLAN header");
    }
    if seen.mark != SENT_MARK || seen.cb[trace::IFINDEX] != world.uplink {
        return differs("mark or device");
    }
    let (inside, outer) = (coverage::family(headers.tuple.src), word(family));
    coverage.meet(["tunnel", "made", inside, outer]);
    Ok((inner, overhead))
}

/// The frame inside, if this is one of ours; for whoever tells stories.
pub(crate) fn inside(frame: &[u8]) -> &[u8] {
    match read(frame) {
        Frame::Ip(headers) if headers.tuple.proto == UDP && headers.tuple.dport == OVERLAY_PORT => {
            frame.get(headers.l4 + 16..).unwrap_or(frame)
        }
        _ => frame,
    }
}
