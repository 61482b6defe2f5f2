//! Epochs: how a change reaches the flows that depend on it with O(1) work.
//!
//! `epochs` is one array of counters. A flow remembers, for each thing it was computed from, the index of that thing's
//! counter and the value it had. User space bumps a counter *after* the maps hold the new truth; the next packet of
//! every flow that depends on it sees a difference and takes the slow path again.
//!
//! Two rules make this safe against races. The slow path reads the epochs *before* it reads the maps, so that a change
//! in between leaves a stale epoch in the flow, never a stale decision with a fresh epoch. A counter only grows.

use crate::plain;

/// Bumped by whatever concerns every flow: routes, configuration, service CIDRs.
pub const GLOBAL: u32 = 0;
/// Never bumped, always 0: what an unused [`Dep`] points at.
pub const NEVER: u32 = 1;
/// The first index of local endpoints; the index of endpoint `id` is `ENDPOINTS + id`.
pub const ENDPOINTS: u32 = 16;
/// How many local endpoints there can be; ids are smaller.
pub const MAX_ENDPOINTS: u32 = 4096;
/// The first index of node slots.
pub const NODES: u32 = ENDPOINTS + MAX_ENDPOINTS;
/// How many node slots there can be.
pub const MAX_NODES: u32 = 8192;
/// The first index of IPv4 backends: the *generation* of the backend that holds this id.
pub const BACKENDS_V4: u32 = NODES + MAX_NODES;
/// How many backends of one family there can be; ids start at 1.
pub const MAX_BACKENDS: u32 = 262_144;
/// The first index of IPv6 backends.
pub const BACKENDS_V6: u32 = BACKENDS_V4 + MAX_BACKENDS;
/// The number of counters.
pub const COUNT: u32 = BACKENDS_V6 + MAX_BACKENDS;

/// One thing a flow was computed from, and the epoch it had then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dep {
    /// Index into `epochs`, smaller than [`COUNT`].
    pub index: u32,
    /// The value seen before the maps were read.
    pub epoch: u32,
}

impl Dep {
    /// Depends on nothing.
    pub const NONE: Self = Self { index: NEVER, epoch: 0 };
}

plain!(Dep = 8);
