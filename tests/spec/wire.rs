//! Reading frames the slow way: the specification's own parser, sharing nothing with the data path's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use quilla_abi::DropReason;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMPV6: u8 = 58;

pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
pub(crate) const DESTINATION: u8 = 60;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// Source and destination as a packet carries them. An echo request has its identifier as source port, an echo reply
/// as destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuple {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub sport: u16,
    pub dport: u16,
    pub proto: u8,
}

impl Tuple {
    pub(crate) fn mirrored(self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..self }
    }
}

/// The halves of a ping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    Request,
    Reply,
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    First,
    /// Without a transport header.
    Later,
}

/// What a well-formed IP packet says.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    pub tuple: Tuple,
    pub part: Part,
    /// Identification, which all parts of a datagram share.
    pub id: u32,
    /// Offset of TTL or hop limit.
    pub ttl_at: usize,
    /// Offset and length of the transport header with its payload, without Ethernet padding.
    pub l4: usize,
    pub l4_len: usize,
    /// Flags byte, for TCP.
    pub tcp_flags: u8,
    /// Type, for ICMP and `ICMPv6`.
    pub icmp_type: Option<u8>,
    /// Which half of an echo it is; the types differ by family.
    pub echo: Option<Echo>,
}

/// An IP header that was read: what it says, and where the rest is.
struct Network {
    proto: u8,
    src: IpAddr,
    dst: IpAddr,
    ttl_at: usize,
    l4: usize,
    l4_len: usize,
    part: Part,
    id: u32,
    /// Offset of this part in the datagram.
    position: usize,
}

impl Headers {
    /// Whether there is a port or an identifier by which a translated source can be told apart.
    pub(crate) fn is_translatable(&self) -> bool {
        match self.tuple.proto {
            TCP | UDP => true,
            ICMP | ICMPV6 => self.echo == Some(Echo::Request),
            _ => false,
        }
    }

    /// Whether it asks for a new TCP connection.
    pub(crate) fn starts(&self) -> bool {
        self.tuple.proto == TCP && self.tcp_flags & (SYN | ACK) == SYN
    }

    /// Whether it must come from the middle of a TCP connection.
    pub(crate) fn is_stray(&self) -> bool {
        self.tuple.proto == TCP && !self.starts()
    }

    /// Whether it is an ICMP error.
    pub(crate) fn is_error(&self) -> bool {
        match (self.tuple.proto, self.icmp_type) {
            (ICMP, Some(kind)) => matches!(kind, 3 | 4 | 5 | 11 | 12),
            (ICMPV6, Some(kind)) => matches!(kind, 1..=4),
            _ => false,
        }
    }

    fn may_not_be_split(&self) -> bool {
        let neighbour = |kind| matches!(kind, 130..=137 | 143);
        self.is_error() || (self.tuple.proto == ICMPV6 && self.icmp_type.is_some_and(neighbour))
    }

    /// Whether the parts of a datagram share ports or an identifier that only the first one carries.
    pub(crate) fn has_ports(&self) -> bool {
        let icmp = if self.tuple.src.is_ipv4() { ICMP } else { ICMPV6 };
        matches!(self.tuple.proto, TCP | UDP) || self.tuple.proto == icmp
    }
}

/// What a frame is.
#[derive(Debug)]
pub(crate) enum Frame {
    Arp,
    Ip(Headers),
    Bad(DropReason),
}

pub(crate) fn be16(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// What the frame is, by what it contains and not by what it claims (E1).
pub(crate) fn read(frame: &[u8]) -> Frame {
    if frame.len() < 14 {
        return Frame::Bad(DropReason::Truncated);
    }
    match be16(frame, 12) {
        0x0806 => Frame::Arp,
        0x0800 => read_v4(frame).map_or_else(Frame::Bad, Frame::Ip),
        0x86dd => read_v6(frame).map_or_else(Frame::Bad, Frame::Ip),
        _ => Frame::Bad(DropReason::UnknownEtherType),
    }
}

fn read_v4(frame: &[u8]) -> Result<Headers, DropReason> {
    let ip = &frame[14..];
    if ip.len() < 20 {
        return Err(DropReason::Truncated);
    }
    let header = usize::from(ip[0] & 15) * 4;
    if ip[0] >> 4 != 4 || header < 20 {
        return Err(DropReason::BadIpHeader);
    }
    let total = usize::from(be16(ip, 2));
    if total < header {
        return Err(DropReason::BadIpHeader);
    }
    if total > ip.len() {
        return Err(DropReason::Truncated);
    }
    read_options(&ip[20..header])?;
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]));
    let (position, more) = (usize::from(be16(ip, 6) & 0x1fff) * 8, ip[6] & 0x20 != 0);
    let network = Network {
        proto: ip[9],
        src: address(12),
        dst: address(16),
        ttl_at: 14 + 8,
        l4: 14 + header,
        l4_len: total - header,
        part: part(position, more),
        id: be16(ip, 4).into(),
        position,
    };
    transport(frame, &network)
}

fn part(position: usize, more: bool) -> Part {
    match (position, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First,
        _ => Part::Later,
    }
}

/// Options must be well-formed, and none may tell routers where to go (RFC 791: 131 loose, 137 strict source route).
fn read_options(mut options: &[u8]) -> Result<(), DropReason> {
    let mut count = 0;
    loop {
        options = match *options {
            [] | [0, ..] => return Ok(()),
            [131 | 137, ..] => return Err(DropReason::SourceRoute),
            [1, ref rest @ ..] => rest,
            [_, length, ..] if (2..=options.len()).contains(&usize::from(length)) => {
                &options[usize::from(length)..]
            }
            _ => return Err(DropReason::BadIpHeader),
        };
        count += 1;
        if count == 10 && !options.is_empty() {
            return Err(DropReason::BadIpHeader);
        }
    }
}

fn read_v6(frame: &[u8]) -> Result<Headers, DropReason> {
    let ip = &frame[14..];
    if ip.len() < 40 {
        return Err(DropReason::Truncated);
    }
    if ip[0] >> 4 != 6 {
        return Err(DropReason::BadIpHeader);
    }
    let payload = usize::from(be16(ip, 4));
    if 40 + payload > ip.len() {
        return Err(DropReason::Truncated);
    }
    let address = |at: usize| {
        let octets: [u8; 16] = ip[at..at + 16].try_into().expect("sixteen bytes");
        IpAddr::V6(Ipv6Addr::from(octets))
    };
    let chain = skip_extensions(ip[6], &ip[40..40 + payload])?;
    let [position, id] = chain.fragment.map_or([0, 0], |at| {
        let header = &ip[40 + at..];
        [u32::from(be16(header, 2)), u32::from_be_bytes([header[4], header[5], header[6], header[7]])]
    });
    let network = Network {
        proto: chain.proto,
        src: address(8),
        dst: address(24),
        ttl_at: 14 + 7,
        l4: 54 + chain.length,
        l4_len: payload - chain.length,
        part: part(position as usize & 0xfff8, position & 1 != 0),
        id,
        position: position as usize & 0xfff8,
    };
    transport(frame, &network)
}

/// Extension headers: how long they are, what comes after them, and where the fragment header is.
struct Chain {
    proto: u8,
    length: usize,
    fragment: Option<usize>,
}

/// Headers are looked for in so many bytes of a frame, behind 54 of Ethernet and IPv6.
const SOUGHT: usize = 512 - 54;

/// Steps over extension headers, at most eight (E2); a fragment header must be the last.
fn skip_extensions(mut proto: u8, payload: &[u8]) -> Result<Chain, DropReason> {
    let is_extension =
        |proto| matches!(proto, HOP_BY_HOP | ROUTING | DESTINATION | AUTHENTICATION | FRAGMENT);
    let mut at = 0;
    for count in 0.. {
        if !is_extension(proto) {
            break;
        }
        if count == 8 {
            return Err(DropReason::ExtensionHeaders);
        }
        let Some(header) = payload.get(at..at + 8) else { return Err(DropReason::Truncated) };
        if at + 8 > SOUGHT {
            return Err(DropReason::ExtensionHeaders);
        }
        if proto == FRAGMENT && is_extension(header[0]) {
            return Err(DropReason::ExtensionHeaders);
        }
        if proto == FRAGMENT {
            return Ok(Chain { proto: header[0], length: at + 8, fragment: Some(at) });
        }
        if proto == ROUTING && header[3] != 0 {
            return Err(DropReason::SourceRoute);
        }
        at += match proto {
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        if at > payload.len() {
            return Err(DropReason::Truncated);
        }
        proto = header[0];
    }
    if at > SOUGHT {
        return Err(DropReason::ExtensionHeaders);
    }
    Ok(Chain { proto, length: at, fragment: None })
}

/// Fails unless the packet holds so much of its transport header: a first fragment must, too (E3).
fn need(network: &Network, length: usize) -> Result<(), DropReason> {
    match network.part {
        _ if network.l4_len >= length => Ok(()),
        Part::First => Err(DropReason::Fragment),
        _ => Err(DropReason::Truncated),
    }
}

fn transport(frame: &[u8], network: &Network) -> Result<Headers, DropReason> {
    let &Network { proto, src, dst, ttl_at, l4, l4_len, part, id, position } = network;
    let body = &frame[l4..l4 + l4_len];
    let mut headers = Headers {
        tuple: Tuple { src, dst, sport: 0, dport: 0, proto },
        part,
        id,
        ttl_at,
        l4,
        l4_len,
        tcp_flags: 0,
        icmp_type: None,
        echo: None,
    };
    if part == Part::Later {
        let overlaps = proto == TCP && position < 24;
        return if overlaps { Err(DropReason::Fragment) } else { Ok(headers) };
    }
    match (proto, src.is_ipv4()) {
        (TCP, _) => {
            need(network, 20)?;
            let claimed = usize::from(body[12] >> 4) * 4;
            if claimed < 20 || claimed > l4_len {
                return Err(DropReason::BadTransportHeader);
            }
            (headers.tuple.sport, headers.tuple.dport) = (be16(body, 0), be16(body, 2));
            headers.tcp_flags = body[13];
        }
        (UDP, _) => {
            need(network, 8)?;
            let longest = if part == Part::First { usize::from(u16::MAX) } else { l4_len };
            if !(8..=longest).contains(&usize::from(be16(body, 4))) {
                return Err(DropReason::BadTransportHeader);
            }
            (headers.tuple.sport, headers.tuple.dport) = (be16(body, 0), be16(body, 2));
        }
        (ICMP, true) | (ICMPV6, false) => {
            need(network, 8)?;
            headers.icmp_type = Some(body[0]);
            match (body[0], src.is_ipv4()) {
                (8, true) | (128, false) => {
                    headers.echo = Some(Echo::Request);
                    headers.tuple.sport = be16(body, 4);
                }
                (0, true) | (129, false) => {
                    headers.echo = Some(Echo::Reply);
                    headers.tuple.dport = be16(body, 4);
                }
                // Neither errors nor neighbour discovery and listener reports may come in pieces.
                _ if part == Part::First && headers.may_not_be_split() => return Err(DropReason::Fragment),
                _ => {}
            }
        }
        _ => {}
    }
    Ok(headers)
}

/// One's complement sum, folded.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// How wrong the IPv4 header checksum is: 0 when right, and unchanged by a correct incremental update.
pub(crate) fn ip_checksum_error(frame: &[u8]) -> u32 {
    let header = usize::from(frame[14] & 15) * 4;
    sum(&frame[14..14 + header]) % 0xffff
}

/// How wrong the transport checksum is; `None` where there is none (UDP over IPv4 with 0).
pub(crate) fn transport_checksum_error(frame: &[u8], headers: &Headers) -> Option<u32> {
    if headers.part == Part::Later || !headers.has_ports() {
        return None;
    }
    let body = &frame[headers.l4..headers.l4 + headers.l4_len];
    let pseudo = match headers.tuple.proto {
        ICMP => Vec::new(),
        UDP if headers.tuple.src.is_ipv4() && be16(body, 6) == 0 => return None,
        TCP | UDP | ICMPV6 => pseudo_header(&headers.tuple, body.len()),
        _ => return None,
    };
    Some((sum(&pseudo) + sum(body)) % 0xffff)
}

/// What a transport checksum covers beside the segment itself.
pub(crate) fn pseudo_header(tuple: &Tuple, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [tuple.src, tuple.dst] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend(u32::try_from(length).expect("a frame").to_be_bytes());
    bytes.extend([0, 0, 0, tuple.proto]);
    bytes
}

/// The frame with both checksums zeroed: what two frames are compared by, beside their checksum errors.
pub(crate) fn without_checksums(frame: &[u8], headers: &Headers) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    if headers.tuple.src.is_ipv4() {
        bytes[24..26].fill(0);
    }
    if headers.part == Part::Later || !headers.has_ports() {
        return bytes;
    }
    let at = headers.l4
        + match headers.tuple.proto {
            TCP => 16,
            UDP => 6,
            ICMP | ICMPV6 => 2,
            _ => return bytes,
        };
    bytes[at..at + 2].fill(0);
    bytes
}
