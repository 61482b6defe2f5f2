//! Encapsulation for another node, the one place that knows how the overlay is made.
//!
//! Today the kernel's VXLAN device writes the outer headers from a tunnel key. Direct encapsulation will be a second
//! function with the same two arguments.

use aya_ebpf::bindings::{BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_tunnel_key};
use quilla_abi::node::{self, UnderlayAddress};
use quilla_abi::program::SENT_MARK;
use quilla_abi::{DropReason, address};
use quilla_ebpf_core::{Family, V6};

use crate::helper;
use crate::maps::NODES;
use crate::packet::Skb;
use crate::route;

const TTL: u8 = 64;

fn empty_key() -> bpf_tunnel_key {
    // SAFETY: integers and unions of integers, for which zero is a value.
    unsafe { core::mem::zeroed() }
}

/// Tells the overlay device where the packet goes, and `to_overlay` that we did.
#[inline(always)]
pub(crate) fn to_node(skb: Skb, slot: u32) -> Result<(), DropReason> {
    let vni = route::config()?.vni;
    let node = helper::row(&NODES, slot).ok_or(DropReason::UnknownNode)?;
    let mut key = empty_key();
    key.tunnel_id = vni;
    key.tunnel_ttl = TTL;
    let flags = if node.flags & node::flag::IPV4 != 0 {
        // The kernel wants this one in the machine's order.
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(node.ipv4);
        BPF_F_ZERO_CSUM_TX
    } else {
        key.__bindgen_anon_1.remote_ipv6 = V6::words(&node.ipv6);
        BPF_F_ZERO_CSUM_TX | BPF_F_TUNINFO_IPV6
    };
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
