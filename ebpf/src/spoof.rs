//! Anti-spoofing: a Pod speaks for itself only (E19).

use quilla_abi::DropReason;
use quilla_abi::endpoint::Interface;
use quilla_ebpf_core::neighbour::{self, ARP, Discovery};
use quilla_ebpf_core::protocol::{ETHERNET, ethertype};
use quilla_ebpf_core::{Family, Frame, Headers, V6};

use crate::helper;
use crate::maps::{INTERFACES, Maps, NODE_SLOTS};
use crate::packet::Skb;
use crate::verdict::{Exit, Outcome, Verdict};

/// Who sits behind the device, if the frame carries its Ethernet address.
#[inline(always)]
pub(crate) fn interface(skb: Skb) -> Result<&'static Interface, DropReason> {
    let interface = helper::find(&INTERFACES, &skb.ifindex()).ok_or(DropReason::UnknownInterface)?;
    if skb.is_from(&interface.pod_mac) { Ok(interface) } else { Err(DropReason::SpoofedMac) }
}

/// The sender of an IP packet, if the source address is its own and the destination is one receiver.
#[inline(always)]
pub(crate) fn sender<F: Maps>(
    skb: Skb,
    headers: &Headers<F::Addr>,
) -> Result<&'static Interface, DropReason> {
    let interface = interface(skb)?;
    if F::of_interface(interface) != Some(headers.key.src) {
        return Err(DropReason::SpoofedAddress);
    }
    if F::is_multicast(headers.key.dst) {
        return Err(DropReason::Multicast);
    }
    Ok(interface)
}

/// Frames of a Pod that are not IP: ARP about itself, nothing else.
#[inline(always)]
pub(crate) fn not_ip(skb: Skb, kind: u16) -> Outcome {
    let interface = interface(skb)?;
    if kind != ethertype::ARP {
        return Err(DropReason::UnknownEtherType);
    }
    let packet: [u8; ARP] = skb.bytes(ETHERNET)?;
    neighbour::arp(&packet, interface)?;
    Ok(Verdict::of(Exit::Passed))
}

/// Neighbour discovery and listener reports of a Pod.
#[inline(always)]
pub(crate) fn neighbour<F: Maps>(skb: Skb, headers: &Headers<F::Addr>) -> Outcome {
    let interface = interface(skb)?;
    // Only IPv6 has these messages, so the address is read again in its own type.
    let src: [u8; 16] = skb.bytes(ETHERNET + V6::SOURCE)?;
    if neighbour::is_discovery(headers.kind) {
        let message = Discovery {
            kind: headers.kind,
            src,
            target: if neighbour::has_target(headers.kind) {
                skb.bytes(headers.transport.wrapping_add(8))?
            } else {
                [0; 16]
            },
            hop_limit: headers.hop_limit,
        };
        neighbour::discovery(&message, interface)?;
    } else {
        neighbour::listener(headers.kind, src, interface)?;
    }
    Ok(Verdict::of(Exit::Passed))
}

/// Whether an address belongs to a node of the cluster.
#[inline(always)]
pub(crate) fn is_node<F: Maps>(addr: F::Addr) -> bool {
    helper::find(&NODE_SLOTS, &F::underlay(addr)).is_some()
}
