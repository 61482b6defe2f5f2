//! From an address to a party: local Pod, node, the host's stack, or the world.

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup};
use quilla_abi::config::Config;
use quilla_abi::epoch;
use quilla_abi::flow::{FlowKey, action, flag};
use quilla_abi::node::{Node, UnderlayAddress};
use quilla_abi::route::Route;
use quilla_abi::version::SCHEMA;
use quilla_abi::{DropReason, address, node};
use quilla_ebpf_core::Family;
use quilla_ebpf_core::route::{self as targets, Target, target};

use crate::flow::depend;
use crate::helper;
use crate::maps::{CONFIG, Maps, NODES};
use crate::packet::Skb;
use crate::scratch::Side;
use crate::way;

/// The node's configuration, if it speaks our version.
#[inline(always)]
pub(crate) fn config() -> Result<&'static Config, DropReason> {
    match helper::row(&CONFIG, 0) {
        Some(config) if config.schema == SCHEMA => Ok(config),
        _ => Err(DropReason::NotConfigured),
    }
}

/// The row of `routes_*` that covers an address.
#[inline(always)]
pub(crate) fn find<F: Maps>(addr: F::Addr) -> Option<Route> {
    helper::find_prefix(F::routes(), F::BITS, addr).copied()
}

/// The local Pod with an address, if there is one. Its epoch is read between two reads of the row: a change in between
/// is either seen or makes the epoch stale.
#[inline(never)]
pub(crate) fn endpoint<F: Maps>(addr: &F::Addr, side: &mut Side) -> bool {
    let Some(first) = helper::find(F::endpoints(), addr) else { return false };
    endpoint_of::<F>(addr, first.id, side)
}

/// The same for a Pod whose endpoint id was read before.
#[inline(always)]
pub(crate) fn endpoint_of<F: Maps>(addr: &F::Addr, id: u32, side: &mut Side) -> bool {
    if id >= epoch::MAX_ENDPOINTS {
        return false;
    }
    side.dep = depend(epoch::ENDPOINTS + id);
    let Some(row) = helper::find(F::endpoints(), addr) else { return false };
    side.forward.ifindex = row.ifindex;
    side.forward.node_slot = 0;
    side.forward.smac = row.host_mac;
    side.forward.dmac = row.pod_mac;
    side.ingress.ifindex = row.ifindex;
    side.ingress.node_slot = 0;
    side.ingress.mac = row.pod_mac;
    side.action = action::LOCAL_POD;
    side.native = 0;
    row.id == id
}

/// The node in a slot. `native` is its flag that has packets routed plainly; 0: they are not, whatever its row says.
#[inline(never)]
pub(crate) fn node(config: &Config, slot: u16, native: u16, side: &mut Side) -> Result<(), DropReason> {
    let index = u32::from(slot);
    if index == 0 || index >= epoch::MAX_NODES {
        return Err(DropReason::UnknownNode);
    }
    side.dep = depend(epoch::NODES + index);
    let row = helper::row(&NODES, index).filter(|row| row.flags != 0).ok_or(DropReason::UnknownNode)?;
    side.forward.ifindex = config.overlay_ifindex;
    side.forward.node_slot = index;
    side.forward.smac = config.vtep_mac;
    side.forward.dmac = row.vtep_mac;
    side.ingress.ifindex = config.overlay_ifindex;
    side.ingress.node_slot = slot;
    side.action = action::OVERLAY;
    side.native = if row.flags & native != 0 { flag::NATIVE.into() } else { 0 };
    // What a tunnel leaves of the way says nothing of plain packets.
    side.mtu = if side.native == 0 { way::mtu(config, index, row) } else { config.overlay_mtu };
    Ok(())
}

/// Whether a tunnel from `remote` is the node's.
#[inline(always)]
pub(crate) fn is_node_at(row: &Node, remote: &UnderlayAddress) -> bool {
    (row.flags & node::flag::IPV4 != 0 && address::v4_mapped(row.ipv4) == *remote)
        || (row.flags & node::flag::IPV6 != 0 && row.ipv6 == *remote)
}

/// Who receives a packet with this (translated) tuple, sent by a local Pod.
#[inline(never)]
pub(crate) fn receiver<F: Maps>(
    skb: Skb,
    config: &Config,
    out: &FlowKey<F::Addr>,
    side: &mut Side,
) -> Result<(), DropReason> {
    if endpoint::<F>(&out.dst, side) {
        return Ok(());
    }
    match target(find::<F>(out.dst))? {
        Target::Node(slot) => node(config, slot, F::NATIVE, side),
        Target::Stack | Target::Native => {
            side.be_stack(skb.ifindex());
            Ok(())
        }
        Target::World => world::<F>(skb, config, out, F::masquerade(config).is_some(), side),
    }
}

/// Whether an address is outside, under whichever name Pods reach it.
#[inline(never)]
pub(crate) fn is_outside<F: Maps>(addr: &F::Addr) -> bool {
    targets::is_outside(find::<F>(*addr))
}

/// Out of the cluster: under the node's address, if that is wanted and the host's route leads to the uplink.
#[inline(never)]
pub(crate) fn world<F: Family>(
    skb: Skb,
    config: &Config,
    out: &FlowKey<F::Addr>,
    masqueraded: bool,
    side: &mut Side,
) -> Result<(), DropReason> {
    let (device, mtu) = host_route::<F>(skb, out)?;
    if masqueraded && device == config.uplink_ifindex {
        side.be_world(device);
        side.mtu = mtu;
    } else {
        side.be_stack(skb.ifindex());
    }
    Ok(())
}

/// Out of the cluster for a client in the world: under the node's address, out of an uplink, or not at all. The client
/// came by one.
#[inline(never)]
pub(crate) fn outside<F: Family>(
    skb: Skb,
    config: &Config,
    out: &FlowKey<F::Addr>,
    side: &mut Side,
) -> Result<(), DropReason> {
    let (device, mtu) = host_route::<F>(skb, out)?;
    if device != config.uplink_ifindex && device != skb.ifindex() {
        return Err(DropReason::NoRoute);
    }
    side.be_world(device);
    side.mtu = mtu;
    Ok(())
}

/// Notes what fits the device behind which somebody is.
#[inline(never)]
pub(crate) fn measure(skb: Skb, side: &mut Side) {
    side.mtu = helper::device_mtu(skb.raw(), side.forward.ifindex);
}

/// The device by which the host would forward the packet, and what fits that way.
#[inline(always)]
fn host_route<F: Family>(skb: Skb, out: &FlowKey<F::Addr>) -> Result<(u32, u16), DropReason> {
    // SAFETY: integers and unions of integers, for which zero is a value.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    params.family = F::AF;
    params.l4_protocol = out.proto;
    params.sport = out.sport.wire();
    params.dport = out.dport.wire();
    params.ifindex = skb.ifindex();
    // The unions hold an IPv4 address in the first word.
    params.__bindgen_anon_3.ipv6_src = F::words(&out.src);
    params.__bindgen_anon_4.ipv6_dst = F::words(&out.dst);
    // Any length has the kernel say what fits the route (since Linux 5.12), if it knows the neighbour.
    params.__bindgen_anon_1.tot_len = 1;
    match helper::host_route(skb.raw(), &mut params) as u32 {
        // SAFETY: an integer, whichever member was written.
        BPF_FIB_LKUP_RET_SUCCESS => Ok((params.ifindex, unsafe { params.__bindgen_anon_1.mtu_result })),
        BPF_FIB_LKUP_RET_NO_NEIGH => Ok((params.ifindex, helper::device_mtu(skb.raw(), params.ifindex))),
        _ => Err(DropReason::NoRoute),
    }
}
