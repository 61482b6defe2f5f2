//! The way to another node's tunnel end: device and Ethernet addresses, as the host's routes and neighbours say.
//!
//! Asked for at most once a second per node and CPU, and for the packet that asks the kernel does the sending, which
//! keeps the neighbour's entry alive. So nobody else has to follow routes and neighbours, and no agent need be alive.

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup};
use quilla_abi::config::Config;
use quilla_abi::node::{self, Node};
use quilla_abi::{DropReason, Mac, epoch};
use quilla_ebpf_core::protocol::ip;
use quilla_ebpf_core::tunnel::{OVERHEAD_V4, OVERHEAD_V6};
use quilla_ebpf_core::{Family, V4, V6};

use crate::encap::Departure;
use crate::flow;
use crate::helper::{self, Underlay};
use crate::maps::WAYS;
use crate::packet::Skb;

/// What a CPU knows of the way to a node.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Way {
    /// The node's epoch before its row was read.
    epoch: u32,
    /// When it was asked for, in ticks.
    since: u32,
    /// The device; 0: none by which a packet that fits the overlay gets there in one piece.
    ifindex: u32,
    /// Ethernet address of the next hop.
    pub(crate) dmac: Mac,
    /// Ethernet address of the device.
    pub(crate) smac: Mac,
}

/// The family of the tunnel to a node, if both ends have an address of it; IPv4 first, as the overlay device has it.
#[inline(always)]
pub(crate) fn underlay(config: &Config, node: &Node) -> Option<Underlay> {
    if node.flags & node::flag::IPV4 != 0 {
        (config.tunnel_ipv4 != [0; 4]).then_some(Underlay::V4)
    } else if node.flags & node::flag::IPV6 != 0 {
        (config.tunnel_ipv6 != [0; 16]).then_some(Underlay::V6)
    } else {
        None
    }
}

/// By which device, and with which addresses.
#[inline(always)]
pub(crate) fn to(
    skb: Skb,
    config: &Config,
    slot: u32,
    node: &Node,
    underlay: Underlay,
) -> Result<(Departure, &'static Way), DropReason> {
    let way = helper::own_row(&WAYS, slot).ok_or(DropReason::UnknownNode)?;
    let now = flow::epoch(epoch::NODES + slot);
    let fresh = way.epoch == now && helper::now().wrapping_sub(way.since) < helper::hz();
    if fresh {
        return Ok((if way.ifindex == 0 { Departure::Device } else { Departure::Known(way.ifindex) }, way));
    }
    way.epoch = now;
    way.since = helper::now();
    way.ifindex = 0;
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
    // A narrower path, as the kernel has learnt it from an ICMP error, is the device's, whose packets may be fragmented.
    if config.overlay_mtu != 0 {
        params.__bindgen_anon_1.tot_len = (u32::from(config.overlay_mtu) + overhead) as u16;
    }
    Ok((ask(skb, &mut params, way), way))
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
            way.dmac = params.dmac;
            way.smac = params.smac;
        }
        // The kernel finds it while it sends; asked again for the next packet.
        BPF_FIB_LKUP_RET_NO_NEIGH => way.since = way.since.wrapping_sub(helper::hz()),
        _ => return Departure::Device,
    }
    Departure::Unresolved(params.ifindex)
}
