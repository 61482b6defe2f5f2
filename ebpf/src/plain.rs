//! Without a tunnel: packets for the Pods of other nodes as they are, and those that come so.
//!
//! Sent are only those for nodes whose row says so. Taken are all, so that the ends of a flow need not agree: a packet for
//! an own Pod under the address of another node's Pod, if it comes from that node, as far as that can be seen. The next hop is
//! that to the node's address, asked for at most once a second per node and CPU; the packet that asks is sent by the kernel,
//! which keeps the neighbour's entry alive.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, bpf_redir_neigh,
};
use quilla_abi::config::Config;
use quilla_abi::node::UnderlayAddress;
use quilla_abi::program::SENT_MARK;
use quilla_abi::route::kind;
use quilla_abi::{DropReason, Mac, epoch};
use quilla_ebpf_core::{Family, V4, V6};

use crate::encap::Departure;
use crate::maps::{HOPS as ROWS, Maps, NODES, QUESTION};
use crate::packet::Skb;
use crate::pipeline::{Pipeline, Scalar, memory};
use crate::verdict::{Exit, Outcome};
use crate::{entry, flow, helper, route};

/// Rows of `hops`: of nodes that share one, the last has it.
pub(crate) const HOPS: u32 = 4096;

/// What a CPU knows of the next hop to a node's address of a family.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Hop {
    /// Whose row it is: [`owner`].
    of: u32,
    /// The node's epoch before its row was read.
    epoch: u32,
    /// When a packet was sent by the kernel, in ticks.
    sent: u32,
    /// When the next hop was asked for, in ticks.
    seen: u32,
    /// The device; 0: not known.
    ifindex: u32,
    /// The device, if the next hop is the node itself.
    direct: u32,
    /// Ethernet address of the next hop.
    dmac: Mac,
    /// Ethernet address of the device.
    smac: Mac,
}

/// Room for a question to the kernel: too large for the stack of whoever asks.
#[repr(C)]
pub(crate) struct Question {
    params: bpf_fib_lookup,
    next: bpf_redir_neigh,
}

/// A node and a family, as one number other than 0.
#[inline(always)]
fn owner(slot: u32, family: u32) -> u32 {
    slot << 1 | u32::from(family == u32::from(V6::AF))
}

#[inline(always)]
fn row(owner: u32) -> Result<&'static mut Hop, DropReason> {
    helper::own_row(&ROWS, owner & (HOPS - 1)).ok_or(DropReason::Internal)
}

#[inline(always)]
fn is_recent(since: u32) -> bool {
    helper::now().wrapping_sub(since) < helper::hz()
}

impl Hop {
    #[inline(always)]
    fn is_of(&self, owner: u32, slot: u32) -> bool {
        self.of == owner && self.epoch == flow::epoch(epoch::NODES.wrapping_add(slot))
    }
}

/// Sends a packet to the node in a slot, if there is a way.
#[inline(always)]
pub(crate) fn depart<F: Family>(skb: Skb, slot: u32) -> Result<Departure, DropReason> {
    Departure::decode(entry::send_plainly(skb.raw(), slot, F::AF.into()))
}

/// What [`depart`] does, as a function that the verifier looks at once.
#[inline(always)]
pub(crate) fn leave(skb: Skb, slot: u32, family: u32) -> Result<Departure, DropReason> {
    let owner = owner(slot, family);
    let hop = row(owner)?;
    let known = hop.is_of(owner, slot) && hop.ifindex != 0 && is_recent(hop.sent);
    let departure = if known {
        skb.write(0, hop.dmac)?;
        skb.write(6, hop.smac)?;
        Departure::Known(hop.ifindex)
    } else {
        Departure::decode(entry::find_hop(skb.raw(), slot, family, 1))?
    };
    if !matches!(departure, Departure::Device) {
        skb.set_mark(SENT_MARK);
    }
    Ok(departure)
}

/// Asks the host's routes and neighbours for the next hop. For a packet that is to be sent the kernel is told as well.
#[inline(always)]
pub(crate) fn find(skb: Skb, slot: u32, family: u32, sends: bool) -> Result<Departure, DropReason> {
    let owner = owner(slot, family);
    let hop = row(owner)?;
    let now = helper::now();
    let epoch = flow::epoch(epoch::NODES.wrapping_add(slot));
    let node = helper::row(&NODES, slot).filter(|row| row.flags != 0).ok_or(DropReason::UnknownNode)?;
    let of_v6 = family == u32::from(V6::AF);
    let has_address = if of_v6 { V6::of_node(node).is_some() } else { V4::of_node(node).is_some() };
    // Nothing of that family comes plainly from a node that has no address of it.
    if !has_address {
        return Err(DropReason::UnknownNode);
    }
    if sends {
        hop.sent = now;
    } else if !hop.is_of(owner, slot) {
        hop.sent = now.wrapping_sub(helper::hz());
    }
    hop.of = owner;
    hop.seen = now;
    (hop.ifindex, hop.direct) = (0, 0);
    hop.epoch = epoch;
    let config = route::config()?;
    let Question { params, next: by } = helper::own_row(&QUESTION, 0).ok_or(DropReason::Internal)?;
    // SAFETY: integers and unions of integers, for which zero is a value.
    *params = unsafe { core::mem::zeroed() };
    let wanted = if of_v6 {
        params.family = V6::AF;
        params.__bindgen_anon_3.ipv6_src = V6::words(&config.tunnel_ipv6);
        V6::words(&V6::of_node(node).unwrap_or_default())
    } else {
        params.family = V4::AF;
        params.__bindgen_anon_3.ipv6_src = V4::words(&config.tunnel_ipv4);
        V4::words(&V4::of_node(node).unwrap_or_default())
    };
    params.__bindgen_anon_4.ipv6_dst = wanted;
    // As what is forwarded from there, whoever sent it: on that device forwarding is switched on.
    params.ifindex = config.uplink_ifindex;
    // The packet is not judged by its length: it fits the Pods' MTU.
    params.__bindgen_anon_1.tot_len = 1;
    match helper::host_route(skb.raw(), params) as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            hop.ifindex = params.ifindex;
            hop.dmac = params.dmac;
            hop.smac = params.smac;
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {}
        _ => return Ok(Departure::Device),
    }
    // SAFETY: four words, whichever member was written: the gateway took the destination's place, if there is one.
    let next = unsafe { params.__bindgen_anon_4.ipv6_dst };
    if next == wanted {
        hop.direct = hop.ifindex;
    }
    if sends {
        by.nh_family = params.family.into();
        by.__bindgen_anon_1.ipv6_nh = next;
        helper::redirect_by(params.ifindex, by);
    }
    Ok(Departure::Unresolved(params.ifindex))
}

/// What stands for the far end of the tunnel of a packet that came without one.
const NO_TUNNEL: UnderlayAddress = [0; 16];

/// Whether a packet came without a tunnel.
#[inline(always)]
pub(crate) fn is_plain(origin: &UnderlayAddress) -> bool {
    *origin == NO_TUNNEL
}

/// Whether a packet without a tunnel may be for an own Pod. If so, the pipeline is told that there was no tunnel.
#[inline(always)]
pub(crate) fn concerns<F: Pipeline>(config: &Config, dst: &F::Addr) -> Result<bool, DropReason> {
    if !F::may_be_own_pod(config, dst) {
        return Ok(false);
    }
    memory::<F>()?.origin = NO_TUNNEL;
    Ok(true)
}

/// Whether a packet comes from the node in a slot.
#[inline(always)]
pub(crate) fn is_from<F: Family>(skb: Skb, slot: u32) -> bool {
    entry::came_from(skb.raw(), slot, F::AF.into()) != 0
}

/// What [`is_from`] does, as a function that the verifier looks at once. Where the node is a neighbour on the device by
/// which the packet came, its Ethernet address tells. What comes by a router, by another device or from a neighbour that
/// the kernel does not know is believed (see `docs/routing.md`).
#[inline(always)]
pub(crate) fn came_from(skb: Skb, slot: u32, family: u32) -> bool {
    let owner = owner(slot, family);
    let Ok(hop) = row(owner) else { return false };
    if !(hop.is_of(owner, slot) && is_recent(hop.seen)) && entry::find_hop(skb.raw(), slot, family, 0) < 0 {
        return false;
    }
    hop.direct == 0 || hop.direct != skb.ifindex() || skb.is_from(&hop.dmac)
}

/// The slot of the node whose Pod has the source of a packet for an own Pod; 0: it comes from the world. Nobody outside
/// has an address of this node's, and another node's Pods speak through that (E19).
#[inline(never)]
pub(crate) fn sender<F: Maps>(skb: Skb, src: &F::Addr) -> Result<u16, DropReason> {
    let Some(route) = helper::find_prefix(F::routes(), F::BITS, *src) else { return Ok(0) };
    match route.kind {
        kind::REMOTE_PODS => {
            let slot = u32::from(route.node_slot);
            let known = helper::row(&NODES, slot).is_some_and(|row| row.flags & F::NODE != 0);
            if known && is_from::<F>(skb, slot) {
                Ok(route.node_slot)
            } else {
                Err(DropReason::SpoofedAddress)
            }
        }
        kind::LOCAL_PODS | kind::HOST => Err(DropReason::SpoofedAddress),
        _ => Ok(0),
    }
}

/// Whether a packet for an own Pod that came without a tunnel is for the rest of the uplink's pipeline after all: it is the
/// world's, or what the host judges on an uplink.
#[inline(always)]
pub(crate) fn is_of_the_world(outcome: &Outcome) -> bool {
    match outcome {
        Ok(verdict) => verdict.exit == Exit::Passed,
        Err(reason) => matches!(
            reason,
            DropReason::Truncated
                | DropReason::BadIpHeader
                | DropReason::BadTransportHeader
                | DropReason::ExtensionHeaders
                | DropReason::SourceRoute
                | DropReason::Fragment
                | DropReason::ForgedNeighbour
        ),
    }
}
