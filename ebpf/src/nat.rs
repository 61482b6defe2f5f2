//! Translation of a packet by its flow's rewrite, and the choice of source ports for new flows.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use quilla_abi::config::Config;
use quilla_abi::flow::{Flow, Rewrite, action, flag};
use quilla_abi::{Address, Be16, DropReason};
use quilla_ebpf_core::headers::{Message, Part};
use quilla_ebpf_core::nat::{PROBES, Ports, STRAY_PROBES};
use quilla_ebpf_core::protocol::{ETHERNET, ip};
use quilla_ebpf_core::{Headers, checksum};

use crate::flow::Claim;
use crate::helper;
use crate::packet::Skb;
use crate::pipeline::Pipeline;
use crate::scratch::Scratch;

/// Applies rewrite and hop count to the packet.
///
/// Transport checksums first, by helper: only the kernel knows whether the packet carries a whole or a partial one
/// (E7). The IPv4 header's own sum stays zero over the header, so it is changed in place. IPv6 has none, and what changes in its
/// header is told to the kernel, for a packet of which the network card has summed up all bytes.
#[inline(always)]
pub(crate) fn translate<F: Pipeline>(
    skb: Skb,
    headers: &Headers<F::Addr>,
    flow: &Flow<F::Addr>,
    routed: bool,
) -> Result<(), DropReason> {
    let rewrite = flow.flags & flag::REWRITE != 0;
    if rewrite {
        if headers.part != Part::Later {
            transport::<F>(skb, headers, &flow.rewrite)?;
        }
        skb.write_address(ETHERNET + F::SOURCE, &flow.rewrite.src)?;
        skb.write_address(ETHERNET + F::SOURCE + size_of::<F::Addr>() as u32, &flow.rewrite.dst)?;
    }
    let addresses = if rewrite { flow.rewrite.addr_delta } else { 0 };
    if F::CHECKSUM.is_some() {
        return network_v4::<F>(skb, headers.hop_limit, routed, addresses);
    }
    // Only a later fragment has no transport checksum that makes up for its addresses.
    let addresses = if headers.part == Part::Later { addresses } else { 0 };
    network_v6::<F>(skb, headers.hop_limit, routed, addresses)
}

/// Takes one hop away, if we are a router, and brings the sum of the whole packet up to date.
#[inline(always)]
fn network_v6<F: Pipeline>(skb: Skb, hop_limit: u8, routed: bool, addresses: u32) -> Result<(), DropReason> {
    let mut difference = addresses;
    if routed {
        let left = hop_limit.wrapping_sub(1);
        let word = |hops: u8| u32::from(u16::from_ne_bytes([0, hops]));
        difference = checksum::add(difference, checksum::difference(word(hop_limit), word(left)));
        skb.write(ETHERNET + F::HOP_LIMIT, [left])?;
    }
    if difference != 0 {
        helper::change_sum(skb.raw(), difference);
    }
    Ok(())
}

/// Takes one hop away, if we are a router, and brings the network header's sum up to date.
#[inline(always)]
fn network_v4<F: Pipeline>(skb: Skb, hop_limit: u8, routed: bool, addresses: u32) -> Result<(), DropReason> {
    if !routed && addresses == 0 {
        return Ok(());
    }
    const { assert!(matches!(F::CHECKSUM, None | Some(10)) && (F::CHECKSUM.is_none() || F::HOP_LIMIT == 8)) };
    let part = skb.part::<4>(ETHERNET + F::HOP_LIMIT).ok_or(DropReason::Internal)?;
    let mut difference = addresses;
    if routed {
        let left = hop_limit.wrapping_sub(1);
        let word = |hops: u8| u32::from(u16::from_ne_bytes([hops, 0]));
        difference = checksum::add(difference, checksum::difference(word(hop_limit), word(left)));
        part.set_byte::<0>(left);
    }
    part.set_half::<2>(checksum::replace(part.half::<2>(), difference));
    Ok(())
}

/// Ports or identifier, and the transport checksum.
#[inline(always)]
fn transport<F: Pipeline>(
    skb: Skb,
    headers: &Headers<F::Addr>,
    rewrite: &Rewrite<F::Addr>,
) -> Result<(), DropReason> {
    let at = headers.transport;
    let pair = |a: Be16, b: Be16| {
        let ([a, b], [c, d]) = (a.wire().to_ne_bytes(), b.wire().to_ne_bytes());
        [a, b, c, d]
    };
    match headers.key.proto {
        ip::TCP => {
            sums::<F>(skb, at.wrapping_add(16), rewrite, 0, true)?;
            skb.write(at, pair(rewrite.sport, rewrite.dport))
        }
        ip::UDP => {
            sums::<F>(skb, at.wrapping_add(6), rewrite, u64::from(BPF_F_MARK_MANGLED_0), true)?;
            skb.write(at, pair(rewrite.sport, rewrite.dport))
        }
        proto if proto == F::ICMP => {
            sums::<F>(skb, at.wrapping_add(2), rewrite, 0, F::ICMP_PSEUDO_HEADER)?;
            match headers.message {
                Message::EchoRequest => skb.write(at.wrapping_add(4), rewrite.sport.wire().to_ne_bytes()),
                Message::EchoReply => skb.write(at.wrapping_add(4), rewrite.dport.wire().to_ne_bytes()),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

#[inline(always)]
fn sums<F: Pipeline>(
    skb: Skb,
    at: u32,
    rewrite: &Rewrite<F::Addr>,
    flags: u64,
    pseudo_header: bool,
) -> Result<(), DropReason> {
    if pseudo_header && rewrite.addr_delta != 0 {
        let family = if F::CHECKSUM.is_none() { helper::ipv6_checksum_flag() } else { 0 };
        helper::change_checksum(
            skb.raw(),
            at,
            rewrite.addr_delta,
            flags | u64::from(BPF_F_PSEUDO_HDR) | family,
        )?;
    }
    if rewrite.port_delta != 0 {
        helper::change_checksum(skb.raw(), at, rewrite.port_delta, flags)?;
    }
    Ok(())
}

/// Chooses the source of a flow and claims the tuple of its answers.
#[inline(never)]
pub(crate) fn choose_source<F: Pipeline>(
    headers: &Headers<F::Addr>,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
) -> Result<(), DropReason> {
    let lends = lends_name(scratch);
    let ports = Ports::of(config);
    if scratch.kept != 0 && keeps_source::<F>(headers, config, lends, scratch)? {
        return Ok(());
    }
    if lends {
        if !is_translatable::<F>(headers) {
            return Err(DropReason::Untranslatable);
        }
        scratch.out.src = lent::<F>(config, scratch).ok_or(DropReason::Untranslatable)?;
        scratch.flow.flags |= flag::SNAT;
    } else if scratch.flow.backend != 0 && scratch.out.dst == headers.key.src {
        // E13: the Pod would answer itself, past us.
        scratch.out.src = F::gateway(config);
        scratch.flow.flags |= flag::SNAT;
    }
    let keeps_port = !lends || ports.is_some_and(|ports| ports.contains(headers.key.sport.get()));
    if keeps_port && F::claim(scratch)? == Claim::Done {
        return Ok(());
    }
    if !is_translatable::<F>(headers) {
        return Err(DropReason::Untranslatable);
    }
    allocate::<F>(ports.ok_or(DropReason::PortsExhausted)?, scratch)
}

/// Whether answers find their way back only to an address of this node: from the world, and from other nodes to clients
/// in the world.
#[inline(always)]
fn lends_name<A: Address>(scratch: &Scratch<A>) -> bool {
    scratch.to.action == action::UPLINK
        || (scratch.from.action == action::UPLINK && scratch.to.action == action::OVERLAY)
}

/// The address under which such a flow goes on. Other nodes take packets from the overlay only under an address of the
/// sending node's Pod CIDR, which the gateway's is (E20).
#[inline(always)]
fn lent<F: Pipeline>(config: &Config, scratch: &Scratch<F::Addr>) -> Option<F::Addr> {
    if scratch.to.action == action::OVERLAY { Some(F::gateway(config)) } else { F::host(config) }
}

/// Tries free ports for the source. A packet from the middle of a connection is looking for the one it has.
#[inline(always)]
fn allocate<F: Pipeline>(ports: Ports, scratch: &mut Scratch<F::Addr>) -> Result<(), DropReason> {
    scratch.flow.flags |= flag::SNAT;
    let stray = scratch.choice.stray != 0;
    let probes = if stray { STRAY_PROBES } else { PROBES };
    for attempt in 0..PROBES {
        if attempt >= probes {
            break;
        }
        scratch.out.sport = Be16::new(ports.candidate(scratch.hash, attempt));
        if F::claim(scratch)? == Claim::Done {
            return Ok(());
        }
    }
    Err(if stray { DropReason::NoFlow } else { DropReason::PortsExhausted })
}

/// Whether an entry that is only computed anew can keep its source.
#[inline(always)]
fn keeps_source<F: Pipeline>(
    headers: &Headers<F::Addr>,
    config: &Config,
    lends: bool,
    scratch: &mut Scratch<F::Addr>,
) -> Result<bool, DropReason> {
    if scratch.flow.flags & flag::REPLY != 0 {
        return Ok(true);
    }
    // The entry still says where it led before.
    let was_lent = scratch.flow.flags & flag::SNAT != 0
        && (scratch.flow.action == action::UPLINK
            || (scratch.from.action == action::UPLINK && scratch.flow.action == action::OVERLAY));
    if lends == was_lent {
        if (!lends || is_ours::<F>(config, scratch)) && F::claim(scratch)? == Claim::Done {
            return Ok(true);
        }
        // The other side of a TCP connection would not know a new source.
        if headers.key.proto == ip::TCP {
            return Err(DropReason::NoFlow);
        }
    }
    scratch.kept = 0;
    scratch.flow.flags &= !flag::SNAT;
    scratch.out.src = headers.key.src;
    scratch.out.sport = headers.key.sport;
    Ok(false)
}

/// Whether answers to this source would find their way back: address and range may have changed since it was chosen.
#[inline(always)]
fn is_ours<F: Pipeline>(config: &Config, scratch: &Scratch<F::Addr>) -> bool {
    lent::<F>(config, scratch) == Some(scratch.out.src)
        && Ports::of(config).is_some_and(|ports| ports.contains(scratch.out.sport.get()))
}

/// Whether there is a port or an identifier to tell flows apart by.
#[inline(always)]
fn is_translatable<F: Pipeline>(headers: &Headers<F::Addr>) -> bool {
    match headers.key.proto {
        ip::TCP | ip::UDP => true,
        proto if proto == F::ICMP => {
            headers.message == Message::EchoRequest
                || (headers.part == Part::Later && headers.key.dport == Be16::default())
        }
        _ => false,
    }
}
