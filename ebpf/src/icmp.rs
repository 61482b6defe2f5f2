//! ICMP errors: they speak about a packet that they embed, and travel with its flow (E4).
//!
//! The embedded packet was sent the other way, so its mirrored tuple is the key of the flow that leads to the one who
//! must hear of it. That flow's rewrite, mirrored, is what the embedded packet was before we translated it. Errors
//! that belong to no flow of ours go by their address; they never make a flow. The names that a flow knows are right as
//! long as its backend is the same, also when its way must be computed anew: errors do not wait for the next packet.

use quilla_abi::flow::{Flow, FlowKey, action, dep, flag};
use quilla_abi::{Address, DropReason};
use quilla_ebpf_core::embedded::{self, Embedded};
use quilla_ebpf_core::headers::Message;
use quilla_ebpf_core::protocol::ip;
use quilla_ebpf_core::{Frame, Headers, checksum, connection, tunnel};

use crate::flow;
use crate::helper;
use crate::packet::Skb;
use crate::pipeline::{Hook, Next, Pipeline};
use crate::scratch::{Memory, Scratch};

/// Translates what an error embeds, and prepares its own way in the scratch memory.
#[inline(always)]
pub(crate) fn error<H: Hook, F: Pipeline>(
    skb: Skb,
    memory: &mut Memory<F::Addr>,
) -> Result<Next, DropReason> {
    let Memory { headers, origin, scratch, embedded, .. } = memory;
    // Nobody is told about errors that got lost.
    if headers.hop_limit <= 1 && !H::EGRESS {
        return H::lost(origin);
    }
    H::reporter::<F>(skb, headers, origin)?;
    scratch.clear();
    scratch.out = headers.key;
    if parse::<F>(skb, headers, embedded).is_ok() {
        scratch.twin_key = embedded.key.mirrored();
        if let Some(entry) = flow::lookup::<F>(&scratch.twin_key)
            && flow::holds(&entry.deps[dep::BACKEND])
            && H::admits::<F>(skb, &entry.ingress, origin)
        {
            follow::<F>(headers, embedded, entry, scratch);
            if entry.flags & flag::REWRITE != 0 {
                translate::<F>(skb, headers, embedded, &scratch.twin_key)?;
            }
            return Ok(Next::Forward);
        }
    }
    let next = H::relay::<F>(skb, headers, scratch)?;
    scratch.flow.action = scratch.to.action;
    scratch.flow.forward = scratch.to.forward;
    // Whatever it is; none is not one (RFC 768).
    scratch.flow.tunnel_port = tunnel::port(0);
    scratch.flow.flags |= scratch.to.native as u8;
    if scratch.from.is_routed() && scratch.to.is_routed() {
        scratch.flow.flags |= flag::ROUTED;
    }
    Ok(next)
}

#[inline(never)]
fn parse<F: Pipeline>(
    skb: Skb,
    headers: &Headers<F::Addr>,
    embedded: &mut Embedded<F::Addr>,
) -> Result<(), DropReason> {
    embedded::parse::<F, Skb>(&skb, headers, embedded)
}

/// Sends the error where the flow's packets go, and finds what the embedded packet was before translation. If the
/// reporter is the far end itself, or nobody to the receiver, it appears under the address that the receiver knows.
#[inline(never)]
fn follow<F: Pipeline>(
    headers: &Headers<F::Addr>,
    embedded: &Embedded<F::Addr>,
    entry: &Flow<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) {
    scratch.twin_key.src = entry.rewrite.dst;
    scratch.twin_key.dst = entry.rewrite.src;
    scratch.twin_key.sport = entry.rewrite.dport;
    scratch.twin_key.dport = entry.rewrite.sport;
    scratch.flow.action = entry.action;
    scratch.flow.forward = entry.forward;
    scratch.flow.tunnel_port = entry.tunnel_port;
    scratch.flow.flags = entry.flags & (flag::ROUTED | flag::NATIVE);
    scratch.out.dst = entry.rewrite.dst;
    if headers.key.src == embedded.key.dst || hides_reporters(entry) {
        scratch.out.src = entry.rewrite.src;
    }
    if connection::set_rewrite::<F>(&mut scratch.flow.rewrite, &headers.key, &scratch.out) {
        scratch.flow.flags |= flag::REWRITE;
    }
}

/// Whether the receiver can take an error only from the address that it knows: inside addresses mean nothing in the
/// world, and another node takes from the overlay only what seems to come from our Pods (E20).
#[inline(always)]
fn hides_reporters<A: Address>(entry: &Flow<A>) -> bool {
    let lent = entry.flags & (flag::SNAT | flag::REPLY) == flag::SNAT;
    entry.action == action::UPLINK || (entry.action == action::OVERLAY && lent)
}

/// Writes `new` into the embedded packet and corrects all sums that cover it, the outer ICMP one included.
#[inline(never)]
fn translate<F: Pipeline>(
    skb: Skb,
    headers: &Headers<F::Addr>,
    embedded: &Embedded<F::Addr>,
    new: &FlowKey<F::Addr>,
) -> Result<(), DropReason> {
    let change = embedded::change::<F>(&embedded.key, new);
    let mut outer = change.ports;
    let mut sum = None;
    if embedded.sum != 0 {
        let old = u16::from_ne_bytes(skb.bytes(embedded.sum)?);
        // No checksum stays none.
        if old != 0 || embedded.key.proto != ip::UDP {
            let new = match checksum::replace(old, change.transport) {
                // It would say that there is none (RFC 768).
                0 if embedded.key.proto == ip::UDP => 0xffff,
                new => new,
            };
            outer = checksum::add(outer, checksum::difference(old.into(), new.into()));
            sum = Some(new);
        }
    }
    if F::CHECKSUM.is_none() {
        // Without a sum of its own the header's change is seen by the outer one.
        outer = checksum::add(outer, change.addresses);
    }
    helper::change_checksum(skb.raw(), headers.transport.wrapping_add(2), outer, 0)?;
    if let Some(new) = sum {
        skb.write(embedded.sum, new.to_ne_bytes())?;
    }
    if let Some(at) = F::CHECKSUM {
        let at = embedded.network.wrapping_add(at);
        let old = u16::from_ne_bytes(skb.bytes(at)?);
        skb.write(at, checksum::replace(old, change.addresses).to_ne_bytes())?;
    }
    let source = embedded.network.wrapping_add(F::SOURCE);
    skb.write_address(source, &new.src)?;
    skb.write_address(source.wrapping_add(size_of::<F::Addr>() as u32), &new.dst)?;
    ports::<F>(skb, embedded, new)
}

#[inline(always)]
fn ports<F: Pipeline>(
    skb: Skb,
    embedded: &Embedded<F::Addr>,
    new: &FlowKey<F::Addr>,
) -> Result<(), DropReason> {
    match embedded.message {
        Message::EchoRequest => skb.write(embedded.ports, new.sport.wire().to_ne_bytes()),
        Message::EchoReply => skb.write(embedded.ports, new.dport.wire().to_ne_bytes()),
        _ if embedded.ports != 0 => {
            skb.write(embedded.ports, new.sport.wire().to_ne_bytes())?;
            skb.write(embedded.ports.wrapping_add(2), new.dport.wire().to_ne_bytes())
        }
        _ => Ok(()),
    }
}
