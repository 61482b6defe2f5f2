//! `endpoints_v4`, `endpoints_v6`: local Pods by address; `interfaces`: local Pods by the host side of their veth.

use crate::address::Mac;
use crate::plain;

/// How to reach a local Pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Host side of the veth.
    pub ifindex: u32,
    /// Endpoint id, the index of its epoch; see [`crate::epoch::ENDPOINTS`].
    pub id: u32,
    /// The Pod's Ethernet address.
    pub pod_mac: Mac,
    /// The host side's Ethernet address.
    pub host_mac: Mac,
}

/// Who sits behind a device: what a packet from it may claim to be (E19).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Endpoint id.
    pub id: u32,
    /// The only Ethernet source allowed.
    pub pod_mac: Mac,
    /// [`flag`]
    pub flags: u16,
    /// The only IPv4 source allowed, if [`flag::IPV4`].
    pub ipv4: [u8; 4],
    /// The only IPv6 source allowed beside link-local ones for neighbour discovery, if [`flag::IPV6`].
    pub ipv6: [u8; 16],
}

/// Bits of [`Interface::flags`].
pub mod flag {
    /// The Pod has an IPv4 address.
    pub const IPV4: u16 = 1 << 0;
    /// The Pod has an IPv6 address.
    pub const IPV6: u16 = 1 << 1;
}

plain!(Endpoint = 20, Interface = 32);
