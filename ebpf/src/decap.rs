//! Decapsulation on the uplink: what is for this node's tunnel end is opened before the stack sees it.
//!
//! Called by `from_uplink`. What it opens goes the way of `from_overlay`; what it cannot open (fragments, options, outer
//! checksums that nobody has verified yet) is left to the stack and the overlay device, which open everything.
//! Whatever the outer headers say, the packet is believed only once its outer source is the node on which its inner
//! source lives (E20).

use quilla_abi::config::{self, Config};
use quilla_abi::node::UnderlayAddress;
use quilla_abi::{DropReason, address};
use quilla_ebpf_core::protocol::{ETHERNET, ip};
use quilla_ebpf_core::tunnel::{CE, OVERHEAD_V4, OVERHEAD_V6, VXLAN_FLAGS, vni_word};
use quilla_ebpf_core::{Family, Frame, V4, V6, checksum};

use crate::helper::{self, Underlay};
use crate::packet::{Part, Skb};
use crate::pipeline::{Pipeline, memory};
use crate::template::BEHIND;
use crate::{plain, route};

/// What became of a packet on the uplink.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opened {
    /// It is as it came.
    No,
    /// The outer headers are gone.
    Yes,
    /// It has none, and may be for an own Pod: see [`crate::plain`].
    Plain,
}

/// Takes the outer headers away, if the packet is for the tunnel's end.
#[inline(always)]
pub(crate) fn open(skb: Skb) -> Result<Opened, DropReason> {
    let Ok(config) = route::config() else { return Ok(Opened::No) };
    if skb.is_for_another() {
        return Ok(Opened::No);
    }
    match skb.ethertype() {
        Ok(V4::ETHERTYPE) => over_v4(skb, config),
        Ok(V6::ETHERTYPE) => over_v6(skb, config),
        _ => Ok(Opened::No),
    }
}

/// Whether the programs open tunnels at all.
#[inline(always)]
fn opens(config: &Config) -> bool {
    config.flags & config::flag::OPEN != 0
}

/// What becomes of a packet that is not for the tunnel's end.
#[inline(always)]
fn not_opened<F: Pipeline>(config: &Config, dst: &F::Addr) -> Result<Opened, DropReason> {
    Ok(if plain::concerns::<F>(config, dst)? { Opened::Plain } else { Opened::No })
}

#[inline(always)]
fn over_v4(skb: Skb, config: &Config) -> Result<Opened, DropReason> {
    const LENGTH: u32 = V4::HEADER;
    let Some(header) = part::<{ LENGTH as usize }>(skb, ETHERNET)? else { return Ok(Opened::No) };
    let whole = header.half::<6>() & 0x3fff_u16.to_be() == 0;
    let to_us = header.word::<16>() == u32::from_ne_bytes(config.tunnel_ipv4) && header.word::<16>() != 0;
    if !to_us {
        return not_opened::<V4>(config, &header.word::<16>().to_ne_bytes());
    }
    if header.byte::<0>() != 0x45 || !whole || header.byte::<9>() != ip::UDP || !opens(config) {
        return Ok(Opened::No);
    }
    let first = checksum::add(header.word::<0>(), header.word::<4>());
    let rest = checksum::add(header.word::<8>(), checksum::add(header.word::<12>(), header.word::<16>()));
    let sum = checksum::fold(checksum::add(first, rest));
    let origin = address::v4_mapped(header.word::<12>().to_ne_bytes());
    let outer = Outer {
        header: LENGTH,
        payload: u32::from(u16::from_be(header.half::<2>())).wrapping_sub(LENGTH),
        sound: sum == 0xffff,
        congested: header.byte::<1>() & CE == CE,
        overhead: OVERHEAD_V4,
        ethertype: V4::ETHERTYPE,
    };
    Ok(if behind(skb, config, &outer, &origin)? { Opened::Yes } else { Opened::No })
}

#[inline(always)]
fn over_v6(skb: Skb, config: &Config) -> Result<Opened, DropReason> {
    const LENGTH: u32 = V6::HEADER;
    let Some(header) = part::<{ LENGTH as usize }>(skb, ETHERNET)? else { return Ok(Opened::No) };
    let dst = [header.word::<24>(), header.word::<28>(), header.word::<32>(), header.word::<36>()];
    let to_us = dst == V6::words(&config.tunnel_ipv6) && config.tunnel_ipv6 != [0; 16];
    if !to_us {
        return not_opened::<V6>(config, &V6::of_words(dst));
    }
    if header.byte::<0>() >> 4 != 6 || header.byte::<6>() != ip::UDP || !opens(config) {
        return Ok(Opened::No);
    }
    let src = [header.word::<8>(), header.word::<12>(), header.word::<16>(), header.word::<20>()];
    if plain::is_plain(&V6::of_words(src)) {
        return Err(DropReason::UnknownTunnelSource);
    }
    let outer = Outer {
        header: LENGTH,
        payload: u32::from(u16::from_be(header.half::<4>())),
        sound: true,
        congested: header.byte::<1>() >> 4 & CE == CE,
        overhead: OVERHEAD_V6,
        ethertype: V6::ETHERTYPE,
    };
    Ok(if behind(skb, config, &outer, &V6::of_words(src))? { Opened::Yes } else { Opened::No })
}

/// What the outer network header says.
struct Outer {
    /// Its length.
    header: u32,
    /// The length of what follows.
    payload: u32,
    /// Whether its own checksum is right.
    sound: bool,
    /// Whether the packet met congestion in the tunnel.
    congested: bool,
    /// The length of all that is to be taken away.
    overhead: u32,
    /// Its EtherType.
    ethertype: u16,
}

/// UDP, VXLAN and the inner Ethernet header; then the outer headers go.
#[inline(always)]
fn behind(skb: Skb, config: &Config, outer: &Outer, origin: &UnderlayAddress) -> Result<bool, DropReason> {
    let Some(part) = part::<BEHIND>(skb, ETHERNET + outer.header)? else { return Ok(false) };
    if part.half::<2>() != config.overlay_port.to_be() {
        return Ok(false);
    }
    // One that is longer than a length field can say has none.
    if outer.payload.wrapping_add(outer.header) == 0 || outer.payload == 0 && skb.segment() != 0 {
        return Ok(false);
    }
    if !outer.sound {
        return Err(DropReason::BadIpHeader);
    }
    let length = u32::from(u16::from_be(part.half::<4>()));
    if length > outer.payload || outer.payload > skb.len().wrapping_sub(ETHERNET + outer.header) {
        return Err(DropReason::Truncated);
    }
    if length < BEHIND as u32 {
        return Err(DropReason::BadTransportHeader);
    }
    let vni = u32::from_be(part.word::<12>());
    if part.word::<8>() != VXLAN_FLAGS.to_be() || vni & 0xff != 0 {
        return Err(DropReason::BadTunnelHeader);
    }
    if vni != vni_word(config.vni) {
        return Err(DropReason::WrongVni);
    }
    let inner =
        Inner { words: [part.word::<16>(), part.word::<20>(), part.word::<24>()], kind: part.half::<28>() };
    // Somebody must verify a checksum that is there.
    if part.half::<6>() != 0 && !helper::is_verified(skb.raw()) {
        return Ok(false);
    }
    if !remember(u16::from_be(inner.kind), origin)? {
        return Err(DropReason::UnknownEtherType);
    }
    if skb.segment() != 0 && !is_tcp(skb, &inner, ETHERNET + outer.overhead) {
        // The kernel would cut what is left as if it were still in the tunnel.
        return Ok(false);
    }
    take(skb, outer, &inner)
}

/// The inner Ethernet header.
struct Inner {
    /// Both addresses.
    words: [u32; 3],
    /// The EtherType, as it stands in the frame.
    kind: u16,
}

/// Bytes of the frame, made linear if they are not.
#[inline(always)]
fn part<const N: usize>(skb: Skb, offset: u32) -> Result<Option<Part<N>>, DropReason> {
    match skb.part::<N>(offset) {
        None if skb.len() >= offset + N as u32 && skb.pull()? => Ok(skb.part::<N>(offset)),
        part => Ok(part),
    }
}

/// Tells the pipeline of the inner family where the packet came from. Says whether there is one.
#[inline(always)]
fn remember(kind: u16, origin: &UnderlayAddress) -> Result<bool, DropReason> {
    match kind {
        V4::ETHERTYPE => memory::<V4>()?.origin = *origin,
        V6::ETHERTYPE => memory::<V6>()?.origin = *origin,
        _ => return Ok(false),
    }
    Ok(true)
}

#[inline(always)]
fn is_tcp(skb: Skb, inner: &Inner, at: u32) -> bool {
    let field = if u16::from_be(inner.kind) == V4::ETHERTYPE { 9 } else { 6 };
    skb.read(at.wrapping_add(field)) == Some([ip::TCP])
}

/// Takes the outer headers away; the inner Ethernet header takes the place of the outer one.
#[inline(always)]
fn take(skb: Skb, outer: &Outer, inner: &Inner) -> Result<bool, DropReason> {
    let kind = u16::from_be(inner.kind);
    let other = match kind {
        _ if kind == outer.ethertype => None,
        V4::ETHERTYPE => Some(Underlay::V4),
        _ => Some(Underlay::V6),
    };
    helper::strip_verified(skb.raw());
    if helper::shrink(skb.raw(), outer.overhead, other).is_err() {
        return Ok(false);
    }
    let header = skb.part::<{ ETHERNET as usize }>(0).ok_or(DropReason::Internal)?;
    let [a, b, c] = inner.words;
    header.set_word::<0>(a);
    header.set_word::<4>(b);
    header.set_word::<8>(c);
    header.set_half::<12>(inner.kind);
    // A sender that would not understand loses the packet (RFC 6040).
    if outer.congested && !helper::set_congested(skb.raw()) {
        return Err(DropReason::BadTunnelHeader);
    }
    Ok(true)
}
