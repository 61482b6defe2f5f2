//! `nodes`: array by node slot; `node_slots`: from an underlay address to the slot.

use crate::address::Mac;
use crate::plain;

/// The tunnel end of a node. Slot 0 is never used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// IPv4 underlay address, network order, if [`flag::IPV4`].
    pub ipv4: [u8; 4],
    /// IPv6 underlay address, if [`flag::IPV6`].
    pub ipv6: [u8; 16],
    /// [`flag`]; 0 in a free slot.
    pub flags: u16,
    /// Ethernet address of the node's overlay device: destination of inner frames.
    pub vtep_mac: Mac,
}

/// Bits of [`Node::flags`]. With both addresses set the tunnel runs over IPv4.
pub mod flag {
    /// `ipv4` is set.
    pub const IPV4: u16 = 1 << 0;
    /// `ipv6` is set.
    pub const IPV6: u16 = 1 << 1;
    /// IPv4 packets for the node's Pods are routed plainly; needs [`IPV4`].
    pub const NATIVE_V4: u16 = 1 << 2;
    /// IPv6 packets for the node's Pods are routed plainly; needs [`IPV6`].
    pub const NATIVE_V6: u16 = 1 << 3;
}

/// Key of `node_slots`: an IPv6 or IPv4-mapped address ([`crate::address::v4_mapped`]). The value is the slot (`u32`).
pub type UnderlayAddress = [u8; 16];

plain!(Node = 28);
