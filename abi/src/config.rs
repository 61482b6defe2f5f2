//! `config`: one row, everything about this node that is neither a Service nor an endpoint.
//!
//! In a map and not in read-only data, so that a running program follows a change without being replaced. Whoever
//! writes it bumps [`crate::epoch::GLOBAL`] afterwards.

use crate::address::Mac;
use crate::plain;

/// The only row of `config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// [`crate::version::SCHEMA`] of whoever wrote the row.
    pub schema: u32,
    /// [`flag`]
    pub flags: u32,
    /// The uplink.
    pub uplink_ifindex: u32,
    /// The collect-metadata VXLAN device.
    pub overlay_ifindex: u32,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Seed of the flow hash: backend selection of a tuple is stable while it and the slots are.
    pub hash_seed: u32,
    /// First source port that masquerading may use, machine order. The range is disjoint from the host's own.
    pub snat_port_min: u16,
    /// Last one, inclusive.
    pub snat_port_max: u16,
    /// Masquerade address.
    pub host_ipv4: [u8; 4],
    /// Masquerade address.
    pub host_ipv6: [u8; 16],
    /// The Pods' gateway: the first address of the Pod CIDR, an address of this node; source of hairpin flows.
    pub gateway_ipv4: [u8; 4],
    /// The same for IPv6.
    pub gateway_ipv6: [u8; 16],
    /// The prefix around this node's Pod CIDRs: what comes for it without a tunnel may be another node's Pod's.
    pub pods_ipv4: [u8; 4],
    /// Its mask; 0: there is none.
    pub pods_mask_ipv4: [u8; 4],
    /// The same for IPv6.
    pub pods_ipv6: [u8; 16],
    /// Its mask; the first 32 bits are 0: there is none.
    pub pods_mask_ipv6: [u8; 16],
    /// This node's tunnel end as the other nodes know it: outer source of direct encapsulation, outer destination of what
    /// is decapsulated on the uplink. Zero: tunnels of that family are the overlay device's.
    pub tunnel_ipv4: [u8; 4],
    /// The same for IPv6.
    pub tunnel_ipv6: [u8; 16],
    /// Ethernet address of the overlay device.
    pub vtep_mac: Mac,
    /// UDP port of the overlay, machine order: what Pods may not send to a node (E19, E20).
    pub overlay_port: u16,
    /// The largest packet that gets to other nodes in one piece: what tunnels leave, where there are any; 0 = not known.
    pub overlay_mtu: u16,
    /// The ports that `services_*` has for clients outside on addresses of this node, machine order: what goes to
    /// another port of the node is not looked up. None: the first is greater than the last.
    pub frontend_port_min: u16,
    /// Last one, inclusive.
    pub frontend_port_max: u16,
    /// Always 0.
    pub pad: u16,
    /// The cookie of the node's own network namespace, low and high half.
    pub netns_cookie: [u32; 2],
}

/// Bits of [`Config::flags`].
pub mod flag {
    /// Masquerade IPv4 that leaves the cluster (needs `host_ipv4`).
    pub const MASQUERADE_V4: u32 = 1 << 0;
    /// Masquerade IPv6 that leaves the cluster (needs `host_ipv6`).
    pub const MASQUERADE_V6: u32 = 1 << 1;
    /// A Service has clients outside and a backend that is the node itself: what the node sends may be an answer.
    pub const NODE_BACKENDS: u32 = 1 << 2;
    /// The programs write outer headers themselves; the overlay device gets what they cannot (see `docs/overlay.md`). Off:
    /// everything is the device's, but for what carries [`crate::program::PROBE_MARK`].
    pub const DIRECT: u32 = 1 << 3;
    /// Outer UDP checksums: only the device can compute them for packets that are still to be segmented, so nothing is
    /// encapsulated directly.
    pub const TUNNEL_CHECKSUM: u32 = 1 << 4;
    /// The programs on the uplinks remove outer headers. Off: what comes in tunnels is the overlay device's.
    pub const OPEN: u32 = 1 << 5;
    /// Other nodes know this one by an IPv4 address that it has not got itself (a translation on the way): at which of its own
    /// their tunnels arrive is not known, so any will do.
    pub const TRANSLATED_V4: u32 = 1 << 6;
    /// The same for IPv6.
    pub const TRANSLATED_V6: u32 = 1 << 7;
}

/// Default of [`Config::snat_port_min`]: above the kernel's default ephemeral range (32768-60999).
pub const SNAT_PORT_MIN: u16 = 61_000;
/// Default of [`Config::snat_port_max`].
pub const SNAT_PORT_MAX: u16 = 65_535;

/// Default of [`Config::overlay_port`].
pub const OVERLAY_PORT: u16 = 8472;

plain!(Config = 152);
