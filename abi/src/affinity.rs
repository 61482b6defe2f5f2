//! `affinity_v4`, `affinity_v6`: the backend that a client used last; `affinity_members`: which ones it may use again.
//!
//! `ClientIP` session affinity (S18). The key is the client and the set of backends; a set's members are in a map of
//! their own, so that one lookup tells whether the last backend is still usable.

use crate::plain;

/// A client of a Service with affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AffinityKey<A> {
    /// The client's address; all zero for processes of the node itself.
    pub client: A,
    /// [`crate::service::Service::id`]
    pub service: u32,
}

/// What it used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// Backend id.
    pub backend: u32,
    /// Low 32 bits of `jiffies64` at the last new connection.
    pub last_used: u32,
}

/// A backend that a Service with affinity may choose; the value is 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberKey {
    /// [`crate::service::Service::id`]
    pub service: u32,
    /// Backend id.
    pub backend: u32,
}

plain!(AffinityKey<[u8; 4]> = 8, AffinityKey<[u8; 16]> = 20, Affinity = 8, MemberKey = 8);
