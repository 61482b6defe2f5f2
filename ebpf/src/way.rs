//! The way to another node's tunnel end: device and Ethernet addresses, as the host's routes and neighbours say.
//!
//! Asked for at most once a second per node and CPU, and for the packet that asks the kernel does the sending, which
//! keeps the neighbour's entry alive. So nobody else has to follow routes and neighbours, and no agent need be alive.
//!
//! What fits the way is known per node: the overlay's MTU, or less, if the host's route says so or a router on the way did.
//! A change reaches the flows by the node's epoch, so that no packet looks here for it (E5).

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup};
use quilla_abi::config::{Config, flag};
use quilla_abi::flow::FlowKey;
use quilla_abi::node::{self, Node};
use quilla_abi::program::PROBE_MARK;
use quilla_abi::{DropReason, epoch};
use quilla_ebpf_core::protocol::ip;
use quilla_ebpf_core::tunnel::{self, OVERHEAD_V4, OVERHEAD_V6};
use quilla_ebpf_core::{Family, Frame, Headers, V4, V6};

use crate::encap::Departure;
use crate::flow;
use crate::helper::{self, Underlay};
use crate::maps::{Maps, NODE_SLOTS, NODES, PATHS, WAYS};
use crate::packet::Skb;
use crate::route;
use crate::template::Template;

/// What a CPU knows of the way to a node.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Way {
    /// The sum of the node's epoch and of the global one, before the rows were read: both only grow.
    epoch: u32,
    /// When it was asked for, in ticks.
    since: u32,
    /// The device; 0: none.
    ifindex: u32,
    /// The largest packet that gets there in one piece, without what encapsulation adds; 0 = any.
    pub(crate) mtu: u32,
    /// Whether the outer headers are those of IPv6.
    pub(crate) over_v6: u16,
    /// Whether packets are encapsulated here; if not, only probes are.
    direct: u16,
    /// The sum over an outer IPv4 header without what it says of the packet.
    pub(crate) sum: u32,
    /// The outer headers, but for what they say of the packet.
    pub(crate) template: Template,
}

/// What fits the way to a node, without what encapsulation adds.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Path {
    /// Of which node, as [`peer`] has it: the slot may be another's by now.
    peer: u32,
    /// As the host's route has it; 0: not asked yet.
    routed: u16,
    /// As a router on the way has it; 0: none said anything.
    reported: u16,
    /// When it said so, in ticks.
    since: u32,
}

/// For how long a router is believed: as long as the kernel believes one (`net.ipv4.route.mtu_expires`).
const BELIEVED_SECONDS: u32 = 600;

/// Tells nodes in one slot apart.
#[inline(always)]
fn peer(node: &Node) -> u32 {
    let [a, b, c, d] = V6::words(&node.ipv6);
    u32::from_ne_bytes(node.ipv4) ^ a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d.rotate_left(24)
}

/// The row of a node; an empty one, if it was another's.
#[inline(always)]
fn path(slot: u32, node: &Node) -> Option<&'static mut Path> {
    let path = helper::row(&PATHS, slot)?;
    let peer = peer(node);
    if path.peer != peer {
        *path = Path { peer, routed: 0, reported: 0, since: 0 };
    }
    if path.reported != 0 && helper::now().wrapping_sub(path.since) >= BELIEVED_SECONDS * helper::hz() {
        path.reported = 0;
        flow::bump(epoch::NODES + slot);
    }
    Some(path)
}

/// The largest packet that gets to a node in one piece; 0 = any.
#[inline(always)]
pub(crate) fn mtu(config: &Config, slot: u32, node: &Node) -> u16 {
    path(slot, node).map_or(config.overlay_mtu, |path| least(config, path))
}

#[inline(always)]
fn least(config: &Config, path: &Path) -> u16 {
    let mut mtu = config.overlay_mtu;
    if path.routed != 0 && path.routed < mtu {
        mtu = path.routed;
    }
    if path.reported != 0 && path.reported < mtu {
        mtu = path.reported;
    }
    mtu
}

/// Notes what the host's route to a node says.
#[inline(always)]
fn note(config: &Config, slot: u32, node: &Node, outer: u16, overhead: u32) -> u16 {
    let Some(path) = path(slot, node) else { return config.overlay_mtu };
    let before = least(config, path);
    path.routed = outer.saturating_sub(overhead as u16);
    let after = least(config, path);
    if after != before {
        flow::bump(epoch::NODES + slot);
    }
    after
}

/// Learns from an error about a packet of a tunnel what fits the way to its other end. `about` is the tuple of the answer
/// to what the error embeds. The stack gets the error as well.
#[inline(never)]
pub(crate) fn learn<F: Maps>(skb: Skb, headers: &Headers<F::Addr>, about: &FlowKey<F::Addr>) -> Option<()> {
    let config = route::config().ok()?;
    if about.proto != ip::UDP || about.sport.get() != config.overlay_port {
        return None;
    }
    // A packet that we did not send: somebody makes it up.
    if F::tunnel(config).is_some_and(|own| own != about.dst) {
        return None;
    }
    let message: [u8; 8] = skb.bytes(headers.transport).ok()?;
    let mtu = tunnel::reported_mtu::<F>(message)?;
    let slot = *helper::find(&NODE_SLOTS, &F::underlay(about.src))?;
    let node = helper::row(&NODES, slot)?;
    let path = path(slot, node)?;
    if mtu >= least(config, path) {
        return None;
    }
    path.reported = mtu;
    path.since = helper::now();
    flow::bump(epoch::NODES + slot);
    Some(())
}

/// The family of the tunnel to a node, of those in which both ends have an address; IPv4 first.
#[inline(always)]
pub(crate) fn underlay(config: &Config, node: &Node) -> Option<Underlay> {
    if node.flags & node::flag::IPV4 != 0 && config.tunnel_ipv4 != [0; 4] {
        Some(Underlay::V4)
    } else if node.flags & node::flag::IPV6 != 0 && config.tunnel_ipv6 != [0; 16] {
        Some(Underlay::V6)
    } else {
        None
    }
}

/// By which device, and with which headers. While nothing changes, no row but this one is read: what is configured is in
/// it too.
#[inline(always)]
pub(crate) fn to(skb: Skb, slot: u32) -> Result<(Departure, &'static Way), DropReason> {
    let way = helper::own_row(&WAYS, slot).ok_or(DropReason::UnknownNode)?;
    let now = flow::epoch(epoch::NODES + slot).wrapping_add(flow::epoch(epoch::GLOBAL));
    let fresh = way.epoch == now && helper::now().wrapping_sub(way.since) < helper::hz();
    if fresh && (way.direct != 0 || skb.mark() != PROBE_MARK) {
        return Ok((if way.ifindex == 0 { Departure::Device } else { Departure::Known(way.ifindex) }, way));
    }
    way.epoch = now;
    way.since = helper::now();
    way.ifindex = 0;
    let config = route::config()?;
    let direct = config.flags & (flag::DIRECT | flag::TUNNEL_CHECKSUM) == flag::DIRECT;
    way.direct = direct.into();
    if !direct && skb.mark() != PROBE_MARK {
        return Ok((Departure::Device, way));
    }
    let node = helper::row(&NODES, slot).filter(|row| row.flags != 0).ok_or(DropReason::UnknownNode)?;
    let Some(underlay) = underlay(config, node) else { return Ok((Departure::Device, way)) };
    let departure = find(skb, config, slot, node, underlay, way);
    if !direct {
        // What a probe found out is for it alone.
        way.ifindex = 0;
    }
    // The packet that asks is sent by the kernel.
    Ok((departure.unresolved(), way))
}

/// Asks for the way, and makes the headers ready.
#[inline(always)]
fn find(skb: Skb, config: &Config, slot: u32, node: &Node, underlay: Underlay, way: &mut Way) -> Departure {
    // SAFETY: integers and unions of integers, for which zero is a value.
    let mut params: bpf_fib_lookup = unsafe { core::mem::zeroed() };
    let overhead = match underlay {
        Underlay::V4 => {
            fill::<V4>(&mut params, &config.tunnel_ipv4, &node.ipv4);
            OVERHEAD_V4
        }
        Underlay::V6 => {
            fill::<V6>(&mut params, &config.tunnel_ipv6, &node.ipv6);
            OVERHEAD_V6
        }
    };
    params.l4_protocol = ip::UDP;
    params.dport = config.overlay_port.to_be();
    // As what is forwarded from there, whoever sent it: on that device forwarding is switched on.
    params.ifindex = config.uplink_ifindex;
    // Any length has the kernel say what fits the route, with what it has learnt from errors (since Linux 5.12).
    params.__bindgen_anon_1.tot_len = 1;
    let departure = ask(skb, &mut params, way);
    // SAFETY: an integer, whichever member was written.
    let routed = unsafe { params.__bindgen_anon_1.mtu_result };
    let mtu = match departure {
        Departure::Known(_) => note(config, slot, node, routed, overhead),
        _ => mtu(config, slot, node),
    };
    way.mtu = mtu.into();
    way.over_v6 = u16::from(underlay == Underlay::V6);
    way.sum = way.template.write(config, node, underlay, [params.dmac, params.smac]);
    departure
}

#[inline(always)]
fn fill<F: Family>(params: &mut bpf_fib_lookup, src: &F::Addr, dst: &F::Addr) {
    params.family = F::AF;
    params.__bindgen_anon_3.ipv6_src = F::words(src);
    params.__bindgen_anon_4.ipv6_dst = F::words(dst);
}

/// Asks the host's routes and neighbours.
#[inline(always)]
fn ask(skb: Skb, params: &mut bpf_fib_lookup, way: &mut Way) -> Departure {
    match helper::host_route(skb.raw(), params) as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            way.ifindex = params.ifindex;
            Departure::Known(params.ifindex)
        }
        // The kernel finds it while it sends; asked again for the next packet.
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            way.since = way.since.wrapping_sub(helper::hz());
            Departure::Unresolved(params.ifindex)
        }
        _ => Departure::Device,
    }
}
