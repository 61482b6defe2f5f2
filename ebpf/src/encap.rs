//! Encapsulation for another node, the one place that knows how the overlay is made.
//!
//! Two ways to the same bytes. *Directly*: the programs write the outer headers and send the packet out of the uplink. *By
//! device*: the kernel's VXLAN device does, from a tunnel key. Directly goes what can; the device takes everything.

use aya_ebpf::bindings::{BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key};
use quilla_abi::config::{self, Config};
use quilla_abi::node::{self, Node, UnderlayAddress};
use quilla_abi::program::{PROBE_MARK, SENT_MARK};
use quilla_abi::{Be16, DropReason, Mac, address};
use quilla_ebpf_core::protocol::{ETHERNET, ethertype, ip};
use quilla_ebpf_core::tunnel::{self, HOPS, OVERHEAD_V4, OVERHEAD_V6, VXLAN_FLAGS};
use quilla_ebpf_core::{Family, V4, V6, checksum};

use crate::helper::{self, Underlay};
use crate::maps::NODES;
use crate::packet::{Part, Skb};
use crate::pipeline::Scalar;
use crate::way::{self, Way};
use crate::{entry, route};

/// How a packet gets to another node.
#[derive(Clone, Copy)]
pub(crate) enum Departure {
    /// Untouched: the overlay device is to encapsulate it.
    Device,
    /// Encapsulated, out of this device.
    Known(u32),
    /// The same, with a next hop that the kernel is to find.
    Unresolved(u32),
}

impl Departure {
    /// The same, with the next hop left to the kernel.
    #[inline(always)]
    pub(crate) fn unresolved(self) -> Self {
        if let Self::Known(device) = self { Self::Unresolved(device) } else { self }
    }
}

/// Encapsulates the packet, if that can be done here.
#[inline(always)]
pub(crate) fn directly(skb: Skb, slot: u32, port: Be16, length: u32) -> Result<Departure, DropReason> {
    Departure::decode(entry::encapsulate(skb.raw(), slot, port.wire().into(), length))
}

/// What [`directly`] does, as a function that the verifier looks at once.
#[inline(always)]
pub(crate) fn encapsulate(skb: Skb, slot: u32, port: u32, length: u32) -> Result<Departure, DropReason> {
    let config = route::config()?;
    let direct =
        config.flags & (config::flag::DIRECT | config::flag::TUNNEL_CHECKSUM) == config::flag::DIRECT;
    if !direct && skb.mark() != PROBE_MARK {
        return Ok(Departure::Device);
    }
    let node = helper::row(&NODES, slot).filter(|row| row.flags != 0).ok_or(DropReason::UnknownNode)?;
    let Some(underlay) = way::underlay(config, node) else { return Ok(Departure::Device) };
    // What is longer than a length field can say is the device's.
    if length + OVERHEAD_V6 > u32::from(u16::MAX) {
        return Ok(Departure::Device);
    }
    let (departure, way) = way::to(skb, config, slot, node, underlay)?;
    // So is what must be fragmented: on a way too narrow for IPv6, nobody may be told to send less.
    let whole = skb.segment() != 0 && way.mtu >= u32::from(V6::LEAST_MTU);
    if length > way.mtu && way.mtu != 0 && !whole {
        return Ok(Departure::Device);
    }
    let Some(inner) = skb.part::<16>(0).filter(|_| !matches!(departure, Departure::Device)) else {
        return Ok(Departure::Device);
    };
    let inner = Inner { kind: inner.half::<12>(), ecn: ecn(inner), port: port as u16, length };
    let written = match underlay {
        Underlay::V4 if helper::grow(skb.raw(), OVERHEAD_V4, underlay).is_ok() => {
            over_v4(skb, config, node, way, &inner)
        }
        Underlay::V6 if helper::grow(skb.raw(), OVERHEAD_V6, underlay).is_ok() => {
            over_v6(skb, config, node, way, &inner)
        }
        // It is in a tunnel of its own, or segmented in a way that the kernel does not nest.
        _ => return Ok(Departure::Device),
    };
    written.ok_or(DropReason::Internal)?;
    skb.set_mark(SENT_MARK);
    Ok(departure)
}

/// Length of what stands between the outer network header and the packet: UDP, VXLAN, inner Ethernet.
pub(crate) const BEHIND: usize = (OVERHEAD_V4 - V4::HEADER) as usize;

/// What the outer headers say of the packet.
struct Inner {
    /// Its EtherType, as it stands in the frame.
    kind: u16,
    /// The ECN field that the outer header gets.
    ecn: u8,
    /// The outer source port, as it stands in the frame.
    port: u16,
    /// Bytes from the IP header on.
    length: u32,
}

/// The outer ECN field.
#[inline(always)]
fn ecn(inner: Part<16>) -> u8 {
    let second = inner.byte::<15>();
    tunnel::ecn(if inner.half::<12>() == ethertype::IPV6.to_be() { second >> 4 } else { second })
}

/// Outer headers over IPv4. Not to be fragmented, so they need no identification (RFC 6864).
#[inline(always)]
fn over_v4(skb: Skb, config: &Config, node: &Node, way: &Way, inner: &Inner) -> Option<()> {
    let length = inner.length + OVERHEAD_V4;
    let (src, dst) = (u32::from_ne_bytes(config.tunnel_ipv4), u32::from_ne_bytes(node.ipv4));
    let first = u32::from_ne_bytes([0x45, inner.ecn, (length >> 8) as u8, length as u8]);
    let fragment = u32::from_ne_bytes([0, 0, 0x40, 0]);
    let hops = u32::from_ne_bytes([HOPS, ip::UDP, 0, 0]);
    let fixed = checksum::add(checksum::add(first, fragment), hops);
    let sum = checksum::add(fixed, checksum::add(src, dst));
    ethernet(skb.part(0)?, way, ethertype::IPV4);
    let header = skb.part::<{ V4::HEADER as usize }>(ETHERNET)?;
    header.set_word::<0>(first);
    header.set_word::<4>(fragment);
    header.set_word::<8>(hops);
    header.set_half::<10>(!checksum::fold(sum));
    header.set_word::<12>(src);
    header.set_word::<16>(dst);
    behind(skb.part(ETHERNET + V4::HEADER)?, config, node, inner, length - V4::HEADER);
    Some(())
}

/// Outer headers over IPv6. Without a checksum, as tunnels may be (RFC 6935); who receives it knows the port.
#[inline(always)]
fn over_v6(skb: Skb, config: &Config, node: &Node, way: &Way, inner: &Inner) -> Option<()> {
    let length = inner.length + OVERHEAD_V6 - V6::HEADER;
    ethernet(skb.part(0)?, way, ethertype::IPV6);
    let header = skb.part::<{ V6::HEADER as usize }>(ETHERNET)?;
    header.set_word::<0>(u32::from_ne_bytes([0x60, inner.ecn << 4, 0, 0]));
    header.set_half::<4>((length as u16).to_be());
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
    behind(skb.part(ETHERNET + V6::HEADER)?, config, node, inner, length);
    Some(())
}

/// The outer Ethernet header. Where the kernel is to find the next hop, it writes its own.
#[inline(always)]
fn ethernet(part: Part<{ ETHERNET as usize }>, way: &Way, kind: u16) {
    let [a, b, c] = addresses(way.dmac, way.smac);
    part.set_word::<0>(a);
    part.set_word::<4>(b);
    part.set_word::<8>(c);
    part.set_half::<12>(kind.to_be());
}

/// What follows the outer network header: UDP, VXLAN, inner Ethernet.
#[inline(always)]
fn behind(part: Part<{ BEHIND }>, config: &Config, node: &Node, inner: &Inner, length: u32) {
    part.set_half::<0>(inner.port);
    part.set_half::<2>(config.overlay_port.to_be());
    part.set_half::<4>((length as u16).to_be());
    part.set_half::<6>(0);
    part.set_word::<8>(VXLAN_FLAGS.to_be());
    part.set_word::<12>(tunnel::vni_word(config.vni).to_be());
    let [a, b, c] = addresses(node.vtep_mac, config.vtep_mac);
    part.set_word::<16>(a);
    part.set_word::<20>(b);
    part.set_word::<24>(c);
    part.set_half::<28>(inner.kind);
}

/// Two Ethernet addresses as words.
#[inline(always)]
fn addresses(d: Mac, s: Mac) -> [u32; 3] {
    let middle = u32::from_ne_bytes([d[4], d[5], s[0], s[1]]);
    [u32::from_ne_bytes([d[0], d[1], d[2], d[3]]), middle, u32::from_ne_bytes([s[2], s[3], s[4], s[5]])]
}

fn empty_key() -> bpf_tunnel_key {
    // SAFETY: integers and unions of integers, for which zero is a value.
    unsafe { core::mem::zeroed() }
}

/// Tells the overlay device where the packet goes, and `to_overlay` that we did.
#[inline(always)]
pub(crate) fn by_device(skb: Skb, slot: u32) -> Result<(), DropReason> {
    let config = route::config()?;
    let node = helper::row(&NODES, slot).ok_or(DropReason::UnknownNode)?;
    let mut key = empty_key();
    key.tunnel_id = config.vni;
    key.tunnel_ttl = HOPS;
    let mut flags = if config.flags & config::flag::TUNNEL_CHECKSUM == 0 { BPF_F_ZERO_CSUM_TX } else { 0 };
    if node.flags & node::flag::IPV4 != 0 {
        // The kernel wants this one in the machine's order.
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(node.ipv4);
    } else {
        key.__bindgen_anon_1.remote_ipv6 = V6::words(&node.ipv6);
        flags |= BPF_F_TUNINFO_IPV6;
    }
    helper::set_tunnel_key(skb.raw(), &mut key, u64::from(flags))?;
    skb.set_mark(SENT_MARK);
    Ok(())
}

/// The far end of the tunnel that carried the packet (E20). Not inlined: the key is too large for the caller's stack.
#[inline(never)]
pub(crate) fn origin(skb: Skb, remote: &mut UnderlayAddress) -> Result<(), DropReason> {
    if helper::tracing() {
        return match skb.traced_tunnel_source() {
            0 => Err(DropReason::UnknownTunnelSource),
            source => {
                *remote = address::v4_mapped(source.to_ne_bytes());
                Ok(())
            }
        };
    }
    let mut key = empty_key();
    *remote = if helper::tunnel_key(skb.raw(), &mut key, 0).is_ok() {
        // SAFETY: without the flag for IPv6 the kernel fills in the IPv4 member.
        address::v4_mapped(unsafe { key.__bindgen_anon_1.remote_ipv4 }.to_be_bytes())
    } else if helper::tunnel_key(skb.raw(), &mut key, u64::from(BPF_F_TUNINFO_IPV6)).is_ok() {
        // SAFETY: with the flag it fills in the IPv6 member.
        V6::of_words(unsafe { key.__bindgen_anon_1.remote_ipv6 })
    } else {
        return Err(DropReason::UnknownTunnelSource);
    };
    if key.tunnel_id == route::config()?.vni { Ok(()) } else { Err(DropReason::WrongVni) }
}
