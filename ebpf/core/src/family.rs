//! What differs between IPv4 and IPv6, so that everything else is written once.
//!
//! Used as the type parameter of the whole pipeline; each family is compiled into its own copy.

use quilla_abi::config::{self, Config};
use quilla_abi::endpoint::Interface;
use quilla_abi::flow::FlowKey;
use quilla_abi::node::{Node, UnderlayAddress};
use quilla_abi::{Address, DropReason, endpoint, epoch, node};

use crate::embedded::Embedded;
use crate::frame::Frame;
use crate::hash::jhash;
use crate::headers::{Headers, Message};
use crate::protocol::{ethertype, ip};
use crate::tunnel::{OVERHEAD_V4, OVERHEAD_V6};
use crate::{checksum, ipv4, ipv6};

/// TTL and hop limit of packets that we make (RFC 1700).
pub const HOP_LIMIT: u8 = 64;

/// An IP version.
pub trait Family: Copy + 'static {
    /// Its addresses, in network order.
    type Addr: Address;

    /// EtherType of its packets.
    const ETHERTYPE: u16;
    /// Its `AF_` number.
    const AF: u8;
    /// The protocol number of its ICMP.
    const ICMP: u8;
    /// Whether its ICMP checksum covers the addresses.
    const ICMP_PSEUDO_HEADER: bool;
    /// Length of its header without options.
    const HEADER: u32;
    /// Where the TTL or hop limit is in the header.
    const HOP_LIMIT: u32;
    /// Where the source address is in the header; the destination follows.
    const SOURCE: u32;
    /// Where the checksum is in the header, if it has one.
    const CHECKSUM: Option<u32>;
    /// Bits of an address.
    const BITS: u32;
    /// Index of the first backend's generation in `epochs`.
    const BACKENDS: u32;
    /// The flag of a node that has an address of this family.
    const NODE: u16;
    /// The flag of a node to which packets of this family go plainly.
    const NATIVE: u16;

    /// ICMP type and code of "the port is unreachable".
    const PORT_UNREACHABLE: (u8, u8);
    /// ICMP type and code of "larger than the next link carries".
    const TOO_BIG: (u8, u8);
    /// What every link carries, so that nobody can be told to send less (RFC 791, RFC 8200).
    const LEAST_MTU: u16;
    /// The least that a way is believed to carry in one piece: of IPv4 what the kernel believes (`min_pmtu`).
    const LEAST_PATH_MTU: u16;
    /// What a tunnel over this family adds to a packet.
    const OVERHEAD: u16;
    /// What comes before the addresses in a header without options.
    type Preamble: Copy;

    /// That, for a packet that we make: `payload` bytes follow the header, `addresses` is the sum of both addresses.
    fn preamble(proto: u8, payload: u16, addresses: u32) -> Self::Preamble;
    /// Reads the network header at the given offset.
    fn network<P: Frame + ?Sized>(
        frame: &P,
        at: u32,
        headers: &mut Headers<Self::Addr>,
    ) -> Result<(), DropReason>;
    /// Reads the addresses and the protocol of an embedded packet; the offset of its transport header.
    fn embedded<P: Frame + ?Sized>(frame: &P, embedded: &mut Embedded<Self::Addr>)
    -> Result<u32, DropReason>;
    /// What an ICMP type is.
    fn message(kind: u8) -> Message;
    /// An address as words in network order; IPv4 has one.
    fn words(addr: &Self::Addr) -> [u32; 4];
    /// One's complement sum of an address.
    fn sum(addr: &Self::Addr) -> u32;
    /// The hash of a tuple: scope does not take part.
    fn hash(key: &FlowKey<Self::Addr>, seed: u32) -> u32;
    /// Multicast or broadcast.
    fn is_multicast(addr: Self::Addr) -> bool;
    /// Of this host alone, on its loopback device.
    fn is_loopback(addr: Self::Addr) -> bool;
    /// Valid on one link only.
    fn is_link_local(addr: Self::Addr) -> bool;
    /// As a key of `node_slots`.
    fn underlay(addr: Self::Addr) -> UnderlayAddress;
    /// The only source address allowed behind an interface.
    fn of_interface(interface: &Interface) -> Option<Self::Addr>;
    /// The node's underlay address of this family.
    fn of_node(node: &Node) -> Option<Self::Addr>;
    /// The Pods' gateway.
    fn gateway(config: &Config) -> Self::Addr;
    /// The node's address for what leaves the cluster, if it has one of this family.
    fn host(config: &Config) -> Option<Self::Addr>;
    /// The node's end of tunnels, if it is one of its own addresses.
    fn tunnel(config: &Config) -> Option<Self::Addr>;
    /// The masquerade address, if masquerading is on.
    fn masquerade(config: &Config) -> Option<Self::Addr>;
    /// The prefix around the node's own Pods, and its mask.
    fn own_pods(config: &Config) -> (&Self::Addr, &Self::Addr);

    /// Whether an address may be an own Pod's, or the gateway's.
    #[inline(always)]
    fn may_be_own_pod(config: &Config, addr: &Self::Addr) -> bool {
        let (prefix, mask) = Self::own_pods(config);
        let (prefix, mask, addr) = (Self::words(prefix), Self::words(mask), Self::words(addr));
        let differs = |word: usize| (addr[word] & mask[word]) ^ prefix[word];
        mask[0] != 0 && differs(0) | differs(1) | differs(2) | differs(3) == 0
    }
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl V6 {
    /// An address from its words.
    #[inline(always)]
    pub fn of_words(words: [u32; 4]) -> [u8; 16] {
        let [a, b, c, d] = words.map(u32::to_ne_bytes);
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }
}

fn ports<A>(key: &FlowKey<A>) -> u32 {
    u32::from(key.sport.wire()) | u32::from(key.dport.wire()) << 16
}

impl Family for V4 {
    type Addr = [u8; 4];

    const ETHERTYPE: u16 = ethertype::IPV4;
    const AF: u8 = 2;
    const ICMP: u8 = ip::ICMP;
    const ICMP_PSEUDO_HEADER: bool = false;
    const HEADER: u32 = 20;
    const HOP_LIMIT: u32 = 8;
    const SOURCE: u32 = 12;
    const CHECKSUM: Option<u32> = Some(10);
    const BITS: u32 = 32;
    const BACKENDS: u32 = epoch::BACKENDS_V4;
    const NODE: u16 = node::flag::IPV4;
    const NATIVE: u16 = node::flag::NATIVE_V4;
    const PORT_UNREACHABLE: (u8, u8) = (3, 3);
    const TOO_BIG: (u8, u8) = (3, 4);
    const LEAST_MTU: u16 = 68;
    const LEAST_PATH_MTU: u16 = 552;
    const OVERHEAD: u16 = OVERHEAD_V4 as u16;
    type Preamble = [u8; 12];

    #[inline(always)]
    fn preamble(proto: u8, payload: u16, addresses: u32) -> [u8; 12] {
        ipv4::preamble(proto, payload, addresses)
    }

    #[inline(always)]
    fn network<P: Frame + ?Sized>(
        frame: &P,
        at: u32,
        headers: &mut Headers<[u8; 4]>,
    ) -> Result<(), DropReason> {
        ipv4::network(frame, at, headers)
    }

    #[inline(always)]
    fn embedded<P: Frame + ?Sized>(frame: &P, embedded: &mut Embedded<[u8; 4]>) -> Result<u32, DropReason> {
        ipv4::embedded(frame, embedded)
    }

    #[inline(always)]
    fn message(kind: u8) -> Message {
        match kind {
            0 => Message::EchoReply,
            8 => Message::EchoRequest,
            3 | 4 | 5 | 11 | 12 => Message::Error,
            _ => Message::Other,
        }
    }

    #[inline(always)]
    fn words(addr: &[u8; 4]) -> [u32; 4] {
        [u32::from_ne_bytes(*addr), 0, 0, 0]
    }

    #[inline(always)]
    fn sum(addr: &[u8; 4]) -> u32 {
        u32::from_ne_bytes(*addr)
    }

    #[inline(always)]
    fn hash(key: &FlowKey<[u8; 4]>, seed: u32) -> u32 {
        let words =
            [u32::from_ne_bytes(key.src), u32::from_ne_bytes(key.dst), ports(key), u32::from(key.proto)];
        jhash(&words, seed)
    }

    #[inline(always)]
    fn is_multicast(addr: [u8; 4]) -> bool {
        addr[0] & 0xf0 == 0xe0 || addr == [0xff; 4]
    }

    #[inline(always)]
    fn is_loopback(addr: [u8; 4]) -> bool {
        addr[0] == 127
    }

    #[inline(always)]
    fn is_link_local(addr: [u8; 4]) -> bool {
        addr[0] == 169 && addr[1] == 254
    }

    #[inline(always)]
    fn underlay(addr: [u8; 4]) -> UnderlayAddress {
        quilla_abi::address::v4_mapped(addr)
    }

    #[inline(always)]
    fn of_interface(interface: &Interface) -> Option<[u8; 4]> {
        (interface.flags & endpoint::flag::IPV4 != 0).then_some(interface.ipv4)
    }

    #[inline(always)]
    fn of_node(node: &Node) -> Option<[u8; 4]> {
        (node.flags & node::flag::IPV4 != 0).then_some(node.ipv4)
    }

    #[inline(always)]
    fn gateway(config: &Config) -> [u8; 4] {
        config.gateway_ipv4
    }

    #[inline(always)]
    fn host(config: &Config) -> Option<[u8; 4]> {
        (config.host_ipv4 != [0; 4]).then_some(config.host_ipv4)
    }

    #[inline(always)]
    fn tunnel(config: &Config) -> Option<[u8; 4]> {
        (config.tunnel_ipv4 != [0; 4]).then_some(config.tunnel_ipv4)
    }

    #[inline(always)]
    fn masquerade(config: &Config) -> Option<[u8; 4]> {
        (config.flags & config::flag::MASQUERADE_V4 != 0).then_some(config.host_ipv4)
    }

    #[inline(always)]
    fn own_pods(config: &Config) -> (&[u8; 4], &[u8; 4]) {
        (&config.pods_ipv4, &config.pods_mask_ipv4)
    }
}

impl Family for V6 {
    type Addr = [u8; 16];

    const ETHERTYPE: u16 = ethertype::IPV6;
    const AF: u8 = 10;
    const ICMP: u8 = ip::ICMPV6;
    const ICMP_PSEUDO_HEADER: bool = true;
    const HEADER: u32 = 40;
    const HOP_LIMIT: u32 = 7;
    const SOURCE: u32 = 8;
    const CHECKSUM: Option<u32> = None;
    const BITS: u32 = 128;
    const BACKENDS: u32 = epoch::BACKENDS_V6;
    const NODE: u16 = node::flag::IPV6;
    const NATIVE: u16 = node::flag::NATIVE_V6;
    const PORT_UNREACHABLE: (u8, u8) = (1, 4);
    const TOO_BIG: (u8, u8) = (2, 0);
    const LEAST_MTU: u16 = 1280;
    const LEAST_PATH_MTU: u16 = 1280;
    const OVERHEAD: u16 = OVERHEAD_V6 as u16;
    type Preamble = [u8; 8];

    #[inline(always)]
    fn preamble(proto: u8, payload: u16, _addresses: u32) -> [u8; 8] {
        let [high, low] = payload.to_be_bytes();
        [6 << 4, 0, 0, 0, high, low, proto, HOP_LIMIT]
    }

    #[inline(always)]
    fn network<P: Frame + ?Sized>(
        frame: &P,
        at: u32,
        headers: &mut Headers<[u8; 16]>,
    ) -> Result<(), DropReason> {
        ipv6::network(frame, at, headers)
    }

    #[inline(always)]
    fn embedded<P: Frame + ?Sized>(frame: &P, embedded: &mut Embedded<[u8; 16]>) -> Result<u32, DropReason> {
        ipv6::embedded(frame, embedded)
    }

    #[inline(always)]
    fn message(kind: u8) -> Message {
        match kind {
            1..=4 => Message::Error,
            128 => Message::EchoRequest,
            129 => Message::EchoReply,
            130..=132 | 143 => Message::Listener,
            133..=137 => Message::Neighbour,
            _ => Message::Other,
        }
    }

    #[inline(always)]
    fn words(a: &[u8; 16]) -> [u32; 4] {
        [
            u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
            u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
            u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
            u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
        ]
    }

    // Not inlined: four of these at once do not fit into the registers, nor the spilled ones on the kernel's stack.
    #[inline(never)]
    fn sum(addr: &[u8; 16]) -> u32 {
        let [a, b, c, d] = Self::words(addr);
        checksum::add(checksum::add(a, b), checksum::add(c, d))
    }

    #[inline(always)]
    fn hash(key: &FlowKey<[u8; 16]>, seed: u32) -> u32 {
        let (s, d) = (Self::words(&key.src), Self::words(&key.dst));
        let words = [s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3], ports(key), u32::from(key.proto)];
        jhash(&words, seed)
    }

    #[inline(always)]
    fn is_multicast(addr: [u8; 16]) -> bool {
        addr[0] == 0xff
    }

    #[inline(always)]
    fn is_loopback(addr: [u8; 16]) -> bool {
        addr == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    }

    #[inline(always)]
    fn is_link_local(addr: [u8; 16]) -> bool {
        addr[0] == 0xfe && addr[1] & 0xc0 == 0x80
    }

    #[inline(always)]
    fn underlay(addr: [u8; 16]) -> UnderlayAddress {
        addr
    }

    #[inline(always)]
    fn of_interface(interface: &Interface) -> Option<[u8; 16]> {
        (interface.flags & endpoint::flag::IPV6 != 0).then_some(interface.ipv6)
    }

    #[inline(always)]
    fn of_node(node: &Node) -> Option<[u8; 16]> {
        (node.flags & node::flag::IPV6 != 0).then_some(node.ipv6)
    }

    #[inline(always)]
    fn gateway(config: &Config) -> [u8; 16] {
        config.gateway_ipv6
    }

    #[inline(always)]
    fn host(config: &Config) -> Option<[u8; 16]> {
        (config.host_ipv6 != [0; 16]).then_some(config.host_ipv6)
    }

    #[inline(always)]
    fn tunnel(config: &Config) -> Option<[u8; 16]> {
        (config.tunnel_ipv6 != [0; 16]).then_some(config.tunnel_ipv6)
    }

    #[inline(always)]
    fn masquerade(config: &Config) -> Option<[u8; 16]> {
        (config.flags & config::flag::MASQUERADE_V6 != 0).then_some(config.host_ipv6)
    }

    #[inline(always)]
    fn own_pods(config: &Config) -> (&[u8; 16], &[u8; 16]) {
        (&config.pods_ipv6, &config.pods_mask_ipv6)
    }
}
