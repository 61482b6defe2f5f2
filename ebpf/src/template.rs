//! Outer headers as they stand before a packet, but for what they say of it: made once per way, copied for every packet.
//!
//! Written by `way`, which keeps them as long as the rows that they are made of stand; `encap` copies them and fills in
//! lengths, ECN field, source port, the IPv4 header's sum and the inner `EtherType`, which are zero here.

use quilla_abi::Mac;
use quilla_abi::config::Config;
use quilla_abi::node::Node;
use quilla_ebpf_core::protocol::{ETHERNET, ethertype, ip};
use quilla_ebpf_core::tunnel::{self, HOPS, OVERHEAD_V4, OVERHEAD_V6, VXLAN_FLAGS};
use quilla_ebpf_core::{Family, V4, V6, checksum};

use crate::helper::Underlay;
use crate::packet::Part;

/// Bytes of all headers over IPv4: Ethernet, IP, UDP, VXLAN, inner Ethernet.
pub(crate) const OVER_V4: usize = (ETHERNET + OVERHEAD_V4) as usize;
/// The same over IPv6.
pub(crate) const OVER_V6: usize = (ETHERNET + OVERHEAD_V6) as usize;
/// Bytes of what stands between the outer network header and the packet: UDP, VXLAN, inner Ethernet.
pub(crate) const BEHIND: usize = (OVERHEAD_V4 - V4::HEADER) as usize;

/// Room for either.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Template {
    words: [u64; 11],
}

const _: () = assert!(OVER_V4 <= size_of::<Template>() && OVER_V6 <= size_of::<Template>());

impl Template {
    /// The first bytes of it.
    #[inline(always)]
    pub(crate) fn bytes<const N: usize>(&self) -> &[u8; N] {
        const { assert!(N <= size_of::<Self>()) };
        // SAFETY: words are made of bytes, of which there are enough.
        unsafe { &*self.words.as_ptr().cast() }
    }

    #[inline(always)]
    fn part<const N: usize>(&mut self) -> Part<N> {
        const { assert!(N <= size_of::<Self>()) };
        // SAFETY: as in `bytes`.
        Part::of(unsafe { &mut *self.words.as_mut_ptr().cast() })
    }

    /// Makes the headers for a node; the sum over an IPv4 header.
    #[inline(always)]
    pub(crate) fn write(&mut self, config: &Config, node: &Node, underlay: Underlay, macs: [Mac; 2]) -> u32 {
        self.words = [0; 11];
        match underlay {
            Underlay::V4 => over_v4(self.part(), config, node, macs),
            Underlay::V6 => {
                over_v6(self.part(), config, node, macs);
                0
            }
        }
    }
}

/// Not to be fragmented, so they need no identification (RFC 6864).
#[inline(always)]
fn over_v4(part: Part<OVER_V4>, config: &Config, node: &Node, macs: [Mac; 2]) -> u32 {
    let (src, dst) = (u32::from_ne_bytes(config.tunnel_ipv4), u32::from_ne_bytes(node.ipv4));
    let first = u32::from_ne_bytes([0x45, 0, 0, 0]);
    let fragment = u32::from_ne_bytes([0, 0, 0x40, 0]);
    let hops = u32::from_ne_bytes([HOPS, ip::UDP, 0, 0]);
    ethernet(part.within::<14, 0>(), macs, ethertype::IPV4);
    let header = part.within::<20, 14>();
    header.set_word::<0>(first);
    header.set_word::<4>(fragment);
    header.set_word::<8>(hops);
    header.set_word::<12>(src);
    header.set_word::<16>(dst);
    behind(part.within::<BEHIND, 34>(), config, node);
    let fixed = checksum::add(checksum::add(first, fragment), hops);
    checksum::add(fixed, checksum::add(src, dst))
}

/// Without a UDP checksum, as tunnels may be (RFC 6935); who receives it knows the port.
#[inline(always)]
fn over_v6(part: Part<OVER_V6>, config: &Config, node: &Node, macs: [Mac; 2]) {
    ethernet(part.within::<14, 0>(), macs, ethertype::IPV6);
    let header = part.within::<40, 14>();
    header.set_word::<0>(u32::from_ne_bytes([0x60, 0, 0, 0]));
    header.set_half::<6>(u16::from_ne_bytes([ip::UDP, HOPS]));
    let [a, b, c, d] = V6::words(&config.tunnel_ipv6);
    header.set_word::<8>(a);
    header.set_word::<12>(b);
    header.set_word::<16>(c);
    header.set_word::<20>(d);
    let [a, b, c, d] = V6::words(&node.ipv6);
    header.set_word::<24>(a);
    header.set_word::<28>(b);
    header.set_word::<32>(c);
    header.set_word::<36>(d);
    behind(part.within::<BEHIND, 54>(), config, node);
}

/// The outer Ethernet header. Where the kernel is to find the next hop, it writes its own.
#[inline(always)]
fn ethernet(part: Part<14>, [dmac, smac]: [Mac; 2], kind: u16) {
    let [a, b, c] = addresses(dmac, smac);
    part.set_word::<0>(a);
    part.set_word::<4>(b);
    part.set_word::<8>(c);
    part.set_half::<12>(kind.to_be());
}

/// What follows the outer network header: UDP, VXLAN, inner Ethernet.
#[inline(always)]
fn behind(part: Part<BEHIND>, config: &Config, node: &Node) {
    part.set_half::<2>(config.overlay_port.to_be());
    part.set_word::<8>(VXLAN_FLAGS.to_be());
    part.set_word::<12>(tunnel::vni_word(config.vni).to_be());
    let [a, b, c] = addresses(node.vtep_mac, config.vtep_mac);
    part.set_word::<16>(a);
    part.set_word::<20>(b);
    part.set_word::<24>(c);
}

/// Two Ethernet addresses as words.
#[inline(always)]
fn addresses(d: Mac, s: Mac) -> [u32; 3] {
    let middle = u32::from_ne_bytes([d[4], d[5], s[0], s[1]]);
    [u32::from_ne_bytes([d[0], d[1], d[2], d[3]]), middle, u32::from_ne_bytes([s[2], s[3], s[4], s[5]])]
}
