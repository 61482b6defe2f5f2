//! `drops`, `forwards` and `helpers`: per-CPU arrays of counters.

use crate::plain;

/// A row of `drops` (by [`crate::DropReason`]) and `forwards` (by [`path`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the frame.
    pub bytes: u64,
}

/// Rows of `forwards`: every packet that was not dropped is counted under exactly one.
pub mod path {
    /// To a Pod on this node.
    pub const LOCAL_POD: u32 = 1;
    /// To another node through the overlay.
    pub const OVERLAY: u32 = 2;
    /// To the host's stack.
    pub const STACK: u32 = 3;
    /// Out of the uplink: masqueraded, or an answer to a client of a Service.
    pub const UPLINK: u32 = 4;
    /// Not ours: passed on untouched (host traffic on the uplink, ARP and NDP of a Pod to its gateway).
    pub const PASSED: u32 = 5;
    /// Encapsulated on behalf of the host's stack.
    pub const HOST_OVERLAY: u32 = 6;
    /// Made by us: a reset or an ICMP error in answer to a packet that was dropped.
    pub const ANSWERED: u32 = 7;
    /// To another node by plain routing.
    pub const NATIVE: u32 = 8;
    /// Rows of the map.
    pub const COUNT: u32 = 16;
}

/// Rows of `helpers`: how often each kind of kernel helper ran, counted only when the object was loaded with
/// `COUNT_HELPERS` set. It is how a test proves how many lookups a packet costs.
pub mod helper {
    /// `bpf_map_lookup_elem` on `flows_*`.
    pub const LOOKUP_FLOW: u32 = 1;
    /// `bpf_map_lookup_elem` on any other hash or trie.
    pub const LOOKUP_HASH: u32 = 2;
    /// `bpf_map_lookup_elem` on a longest-prefix-match trie.
    pub const LOOKUP_LPM: u32 = 3;
    /// `bpf_map_update_elem`
    pub const UPDATE: u32 = 4;
    /// `bpf_map_delete_elem`
    pub const DELETE: u32 = 5;
    /// Array look-ups, which the kernel inlines into a bounds check and an addition.
    pub const LOOKUP_ARRAY: u32 = 6;
    /// Checksum helpers.
    pub const CHECKSUM: u32 = 7;
    /// Packet loads, stores and pulls by helper.
    pub const PACKET: u32 = 8;
    /// Redirects.
    pub const REDIRECT: u32 = 9;
    /// Tunnel key helpers.
    pub const TUNNEL: u32 = 10;
    /// Rows of the map.
    pub const COUNT: u32 = 16;
}

plain!(Counter = 16);
