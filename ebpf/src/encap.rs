//! Encapsulation for another node, the one place that knows how the overlay is made.
//!
//! Two ways to the same bytes. *Directly*: the programs write the outer headers and send the packet out of the uplink. *By
//! device*: the kernel's VXLAN device does, from a tunnel key. Directly goes what can; the device takes everything.

use aya_ebpf::bindings::{BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key};
use quilla_abi::config;
use quilla_abi::node::{self, UnderlayAddress};
use quilla_abi::program::SENT_MARK;
use quilla_abi::{Be16, DropReason, address};
use quilla_ebpf_core::protocol::ethertype;
use quilla_ebpf_core::tunnel::{self, HOPS, OVERHEAD_V4, OVERHEAD_V6};
use quilla_ebpf_core::{Family, V4, V6, checksum};

use crate::helper::{self, Underlay};
use crate::maps::NODES;
use crate::packet::{Part, Skb};
use crate::pipeline::Scalar;
use crate::way::{self, Way};
use crate::{entry, route, template};

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
    // What is longer than a length field can say is the device's.
    if length + OVERHEAD_V6 > u32::from(u16::MAX) {
        return Ok(Departure::Device);
    }
    let (departure, way) = way::to(skb, slot)?;
    // So is what must be fragmented: on a way too narrow for IPv6, nobody may be told to send less.
    let whole = skb.segment() != 0 && way.mtu >= u32::from(V6::LEAST_MTU);
    if length > way.mtu && way.mtu != 0 && !whole {
        return Ok(Departure::Device);
    }
    let Some(inner) = skb.part::<16>(0).filter(|_| !matches!(departure, Departure::Device)) else {
        return Ok(Departure::Device);
    };
    let inner = Inner { kind: inner.half::<12>(), ecn: ecn(inner), port: port as u16, length };
    let (overhead, underlay) =
        if way.over_v6 == 0 { (OVERHEAD_V4, Underlay::V4) } else { (OVERHEAD_V6, Underlay::V6) };
    if helper::grow(skb.raw(), overhead, underlay).is_err() {
        // It is in a tunnel of its own, or segmented in a way that the kernel does not nest.
        return Ok(Departure::Device);
    }
    let written = if way.over_v6 == 0 { over_v4(skb, way, &inner) } else { over_v6(skb, way, &inner) };
    written.ok_or(DropReason::Internal)?;
    skb.set_mark(SENT_MARK);
    Ok(departure)
}

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

/// Outer headers over IPv4.
#[inline(always)]
fn over_v4(skb: Skb, way: &Way, inner: &Inner) -> Option<()> {
    let length = inner.length + OVERHEAD_V4;
    let [high, low] = (length as u16).to_be_bytes();
    let sum = checksum::add(way.sum, u32::from_ne_bytes([0, inner.ecn, high, low]));
    let part = skb.part::<{ template::OVER_V4 }>(0)?;
    part.set(way.template.bytes());
    part.set_byte::<15>(inner.ecn);
    part.set_half::<16>((length as u16).to_be());
    part.set_half::<24>(!checksum::fold(sum));
    part.set_half::<34>(inner.port);
    part.set_half::<38>(((length - V4::HEADER) as u16).to_be());
    part.set_half::<62>(inner.kind);
    Some(())
}

/// Outer headers over IPv6.
#[inline(always)]
fn over_v6(skb: Skb, way: &Way, inner: &Inner) -> Option<()> {
    let length = ((inner.length + OVERHEAD_V6 - V6::HEADER) as u16).to_be();
    let part = skb.part::<{ template::OVER_V6 }>(0)?;
    part.set(way.template.bytes());
    part.set_byte::<15>(inner.ecn << 4);
    part.set_half::<18>(length);
    part.set_half::<54>(inner.port);
    part.set_half::<58>(length);
    part.set_half::<82>(inner.kind);
    Some(())
}

fn empty_key() -> bpf_tunnel_key {
    // SAFETY: integers and unions of integers, for which zero is a value.
    unsafe { core::mem::zeroed() }
}

/// Tells the overlay device where the packet goes, and `to_overlay` that we did.
#[inline(always)]
pub(crate) fn by_device(skb: Skb, slot: u32) -> Result<(), DropReason> {
    <()>::decode(entry::by_device(skb.raw(), slot))
}

/// Does it. A function that the verifier looks at once: the key is too large for the callers' stacks.
#[inline(always)]
pub(crate) fn tell_device(skb: Skb, slot: u32) -> Result<(), DropReason> {
    let config = route::config()?;
    let node = helper::row(&NODES, slot).ok_or(DropReason::UnknownNode)?;
    let mut key = empty_key();
    key.tunnel_id = config.vni;
    key.tunnel_ttl = HOPS;
    let mut flags = if config.flags & config::flag::TUNNEL_CHECKSUM == 0 { BPF_F_ZERO_CSUM_TX } else { 0 };
    let over_v4 = way::underlay(config, node)
        .map_or(node.flags & node::flag::IPV4 != 0, |underlay| underlay == Underlay::V4);
    // With no end of our own (all zero) the kernel chooses one, which may not be that by which other nodes know us.
    if over_v4 {
        // The kernel wants these in the machine's order.
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(node.ipv4);
        key.__bindgen_anon_3.local_ipv4 = u32::from_be_bytes(config.tunnel_ipv4);
    } else {
        key.__bindgen_anon_1.remote_ipv6 = V6::words(&node.ipv6);
        key.__bindgen_anon_3.local_ipv6 = V6::words(&config.tunnel_ipv6);
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
    let config = route::config()?;
    let mut key = empty_key();
    let local;
    if helper::tunnel_key(skb.raw(), &mut key, 0).is_ok() {
        // SAFETY: without the flag for IPv6 the kernel fills in the IPv4 members.
        let (far, near) = unsafe { (key.__bindgen_anon_1.remote_ipv4, key.__bindgen_anon_3.local_ipv4) };
        *remote = address::v4_mapped(far.to_be_bytes());
        local = near.to_be_bytes() == config.tunnel_ipv4 || config.flags & config::flag::TRANSLATED_V4 != 0;
    } else if helper::tunnel_key(skb.raw(), &mut key, u64::from(BPF_F_TUNINFO_IPV6)).is_ok() {
        // SAFETY: with the flag it fills in the IPv6 members.
        let (far, near) = unsafe { (key.__bindgen_anon_1.remote_ipv6, key.__bindgen_anon_3.local_ipv6) };
        *remote = V6::of_words(far);
        local = V6::of_words(near) == config.tunnel_ipv6 || config.flags & config::flag::TRANSLATED_V6 != 0;
    } else {
        return Err(DropReason::UnknownTunnelSource);
    }
    // The kernel's socket hears every address of the node, and Pods may send to those that are no tunnel's end (E19).
    if !local {
        return Err(DropReason::BadTunnelHeader);
    }
    if key.tunnel_id == config.vni { Ok(()) } else { Err(DropReason::WrongVni) }
}
