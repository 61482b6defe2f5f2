//! The builder: one IP packet in one Ethernet frame, correct unless a fault was asked for.

use std::net::{IpAddr, SocketAddr};

use super::checksum::{fold, ones_complement_sum, pseudo_header_sum, transport_checksum};
use super::extension::Extension;
use super::fault::Fault;
use super::icmp::IcmpError;
use super::number::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN};
use super::transport::{Transport, tcp};

/// A packet as a test describes it.
#[derive(Clone, Debug)]
pub struct Packet {
    macs: ([u8; 6], [u8; 6]),
    vlans: Vec<u16>,
    source: SocketAddr,
    destination: SocketAddr,
    ttl: u8,
    traffic_class: u8,
    id: u16,
    fragment: u16,
    options: Vec<u8>,
    extensions: Vec<Extension>,
    transport: Transport,
    payload: Vec<u8>,
    faults: Vec<Fault>,
}

impl Packet {
    /// A TCP segment with ACK set.
    pub fn tcp(source: impl Endpoint, destination: impl Endpoint) -> Self {
        let transport =
            Transport::Tcp { flags: tcp::ACK, seq: 1, ack: 1, window: 0xffff, options: Vec::new() };
        Self::new(source.endpoint(), destination.endpoint(), transport)
    }

    /// A UDP datagram.
    pub fn udp(source: impl Endpoint, destination: impl Endpoint) -> Self {
        Self::new(source.endpoint(), destination.endpoint(), Transport::Udp)
    }

    /// An echo request.
    pub fn echo_request(source: IpAddr, destination: IpAddr, id: u16, sequence: u16) -> Self {
        Self::icmp(source, destination, if source.is_ipv4() { 8 } else { 128 }, 0, echo(id, sequence))
    }

    /// An echo reply.
    pub fn echo_reply(source: IpAddr, destination: IpAddr, id: u16, sequence: u16) -> Self {
        Self::icmp(source, destination, if source.is_ipv4() { 0 } else { 129 }, 0, echo(id, sequence))
    }

    /// Any ICMP message: type, code and the four bytes after the checksum.
    pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self::new((source, 0).into(), (destination, 0).into(), Transport::Icmp { kind, code, rest })
    }

    /// An ICMP error about `about`, of which it carries all; cut it with `payload` for less.
    pub fn icmp_error(source: IpAddr, destination: IpAddr, error: IcmpError, about: &Packet) -> Self {
        let (kind, code, rest) = error.header(source);
        Self::icmp(source, destination, kind, code, rest).payload(&about.network_layer())
    }

    /// `inner` in VXLAN.
    pub fn vxlan(source: impl Endpoint, destination: impl Endpoint, vni: u32, inner: &Packet) -> Self {
        let mut payload = vec![8, 0, 0, 0];
        payload.extend((vni << 8).to_be_bytes());
        payload.extend(inner.build());
        Self::udp(source, destination).payload(&payload)
    }

    /// A packet of another transport protocol.
    pub fn protocol(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self::new((source, 0).into(), (destination, 0).into(), Transport::Other(protocol))
    }

    fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "{source} to {destination}");
        Self {
            macs: ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]),
            vlans: Vec::new(),
            source,
            destination,
            ttl: 64,
            traffic_class: 0,
            id: 0x1234,
            fragment: 0x4000,
            options: Vec::new(),
            extensions: Vec::new(),
            transport,
            payload: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// Ethernet addresses.
    #[must_use]
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.macs = (source, destination);
        self
    }

    /// Adds a VLAN tag.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlans.push(id);
        self
    }

    /// TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// TOS or traffic class.
    #[must_use]
    pub fn traffic_class(mut self, class: u8) -> Self {
        self.traffic_class = class;
        self
    }

    /// IPv4 options, padded to a multiple of four with zero (end of options).
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// Adds an IPv6 extension header.
    #[must_use]
    pub fn extension(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    /// Makes it a fragment of either family: offset in bytes, a multiple of eight, and whether more follow. The
    /// transport header stays, so give later fragments by [`Packet::protocol`].
    #[must_use]
    pub fn fragment(mut self, id: u16, offset: u16, more: bool) -> Self {
        if self.source.is_ipv4() {
            self.id = id;
            self.fragment = (offset / 8) | (u16::from(more) << 13);
            self
        } else {
            self.extension(Extension::Fragment { id: id.into(), offset, more })
        }
    }

    /// TCP flags, replacing ACK.
    #[must_use]
    pub fn flags(mut self, set: u8) -> Self {
        if let Transport::Tcp { flags, .. } = &mut self.transport {
            *flags = set;
        }
        self
    }

    /// TCP sequence and acknowledgement numbers.
    #[must_use]
    pub fn sequence(mut self, sequence: u32, acknowledged: u32) -> Self {
        if let Transport::Tcp { seq, ack, .. } = &mut self.transport {
            (*seq, *ack) = (sequence, acknowledged);
        }
        self
    }

    /// TCP window.
    #[must_use]
    pub fn window(mut self, size: u16) -> Self {
        if let Transport::Tcp { window, .. } = &mut self.transport {
            *window = size;
        }
        self
    }

    /// IPv4 identification.
    #[must_use]
    pub fn identification(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// Routers may fragment it; IPv6 knows no such packets.
    #[must_use]
    pub fn may_be_fragmented(mut self) -> Self {
        self.fragment &= !0x4000;
        self
    }

    /// TCP options, padded to a multiple of four with zero (end of options).
    #[must_use]
    pub fn tcp_options(mut self, bytes: &[u8]) -> Self {
        if let Transport::Tcp { options, .. } = &mut self.transport {
            *options = bytes.to_vec();
        }
        self
    }

    /// What comes after the transport header.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Adds a deliberate fault.
    #[must_use]
    pub fn fault(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// Where it comes from.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Where it goes.
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// The same packet with other addresses and ports: what a rewrite is expected to produce.
    #[must_use]
    pub fn between(mut self, source: impl Endpoint, destination: impl Endpoint) -> Self {
        (self.source, self.destination) = (source.endpoint(), destination.endpoint());
        self
    }

    /// The frame.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = [self.macs.1, self.macs.0].concat();
        for vlan in &self.vlans {
            frame.extend(ETHERTYPE_VLAN.to_be_bytes());
            frame.extend(vlan.to_be_bytes());
        }
        let ethertype = if self.source.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
        frame.extend(ethertype.to_be_bytes());
        frame.extend(self.network_layer());
        for fault in &self.faults {
            match fault {
                Fault::Truncate(length) => frame.truncate(*length),
                Fault::Padding(length) => frame.resize(frame.len() + length, 0),
                _ => {}
            }
        }
        frame
    }

    /// The packet without its Ethernet header.
    pub fn network_layer(&self) -> Vec<u8> {
        let segment = self.segment();
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = self.ipv4_header(segment.len());
                header.splice(12..20, [source.octets(), destination.octets()].concat());
                self.finish_ipv4(&mut header);
                [header, segment].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let (next, extensions) = self.extension_headers();
                let mut header = self.ipv6_header(next, extensions.len() + segment.len());
                header.extend(source.octets());
                header.extend(destination.octets());
                [header, extensions, segment].concat()
            }
            (source, destination) => panic!("{source} to {destination}: two families"),
        }
    }

    fn segment(&self) -> Vec<u8> {
        let mut segment = self.transport.encode(self.source.port(), self.destination.port(), &self.payload);
        for fault in &self.faults {
            match *fault {
                Fault::DataOffset(words) => segment[12] = words << 4,
                Fault::UdpLength(length) => segment[4..6].copy_from_slice(&length.to_be_bytes()),
                _ => {}
            }
        }
        if let Some(at) = self.transport.checksum_at() {
            let checksum = self.transport_checksum(&segment);
            segment[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        segment
    }

    fn transport_checksum(&self, segment: &[u8]) -> u16 {
        let (source, destination) = (self.source.ip(), self.destination.ip());
        let v4 = source.is_ipv4();
        let protocol = self.transport.protocol(v4);
        let right = match self.transport {
            Transport::Icmp { .. } if v4 => fold(ones_complement_sum(segment)),
            _ => transport_checksum(source, destination, protocol, segment),
        };
        // A computed zero means "none" in UDP and is sent as its other spelling.
        let right = if matches!(self.transport, Transport::Udp) && right == 0 { 0xffff } else { right };
        self.faults.iter().fold(right, |sum, fault| match fault {
            Fault::TransportChecksum => sum ^ 0x0100,
            Fault::NoUdpChecksum => 0,
            Fault::PartialChecksum => pseudo_header_sum(source, destination, protocol, segment.len()),
            _ => sum,
        })
    }

    fn ipv4_header(&self, payload: usize) -> Vec<u8> {
        let words = 5 + self.options.len().div_ceil(4);
        let total = u16::try_from(words * 4 + payload).expect("packet of at most 65535 bytes");
        let protocol = self.transport.protocol(true);
        let mut header =
            vec![0x40 | u8::try_from(words).expect("at most 40 bytes of options"), self.traffic_class];
        header.extend(total.to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend([0; 8]);
        header.extend(&self.options);
        header.resize(words * 4, 0);
        header
    }

    /// Faults first, so that a lying header has a right checksum.
    fn finish_ipv4(&self, header: &mut [u8]) {
        for fault in &self.faults {
            match *fault {
                Fault::Version(version) => header[0] = version << 4 | header[0] & 15,
                Fault::Ihl(words) => header[0] = header[0] & 0xf0 | words & 15,
                Fault::Length(length) => header[2..4].copy_from_slice(&length.to_be_bytes()),
                _ => {}
            }
        }
        let mut checksum = fold(ones_complement_sum(header));
        if self.faults.contains(&Fault::HeaderChecksum) {
            checksum ^= 0x0100;
        }
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
    }

    fn ipv6_header(&self, next: u8, payload: usize) -> Vec<u8> {
        let mut length = u16::try_from(payload).expect("payload of at most 65535 bytes");
        let mut version = 6;
        for fault in &self.faults {
            match *fault {
                Fault::Length(lie) => length = lie,
                Fault::Version(lie) => version = lie,
                _ => {}
            }
        }
        let first = u32::from(version) << 28 | u32::from(self.traffic_class) << 20;
        let mut header = first.to_be_bytes().to_vec();
        header.extend(length.to_be_bytes());
        header.extend([next, self.ttl]);
        header
    }

    /// Number of the first header after the fixed one, and the chain.
    fn extension_headers(&self) -> (u8, Vec<u8>) {
        let transport = self.transport.protocol(false);
        self.extensions.iter().rev().fold((transport, Vec::new()), |(next, rest), extension| {
            (extension.number(), [extension.encode(next), rest].concat())
        })
    }
}

fn echo(id: u16, sequence: u16) -> [u8; 4] {
    (u32::from(id) << 16 | u32::from(sequence)).to_be_bytes()
}

/// An address with a port: a [`SocketAddr`], or its text in a test's table.
pub trait Endpoint {
    /// The value.
    fn endpoint(self) -> SocketAddr;
}

impl Endpoint for SocketAddr {
    fn endpoint(self) -> SocketAddr {
        self
    }
}

impl Endpoint for &str {
    fn endpoint(self) -> SocketAddr {
        self.parse().unwrap_or_else(|error| panic!("endpoint {self}: {error}"))
    }
}

impl Endpoint for (IpAddr, u16) {
    fn endpoint(self) -> SocketAddr {
        self.into()
    }
}
