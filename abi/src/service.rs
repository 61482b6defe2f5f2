//! `services_v4`, `services_v6` and `slots`: which backends stand behind a frontend; `source_ranges_v4`,
//! `source_ranges_v6`: which clients may use it.
//!
//! A Service row names a range of `slots`; each slot holds a backend id. User space writes backends, then slots into a
//! range no row names, then flips the row in one update: a reader sees the Service before or after, never in between.

use crate::address::Be16;
use crate::plain;

/// A frontend: the address and port that clients use.
///
/// A row with port 0 and protocol 0 says that the address has frontends in this scope, whatever their ports: a packet
/// to another port of it is answered, one to an address that nobody has is not (S22).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey<A> {
    /// ClusterIP, node address, load balancer address, external address.
    pub addr: A,
    /// Service port.
    pub port: Be16,
    /// IP protocol number.
    pub proto: u8,
    /// [`scope`]
    pub scope: u8,
}

/// Values of [`ServiceKey::scope`]: traffic policies differ by where the client is.
pub mod scope {
    /// The client is a Pod or the node itself.
    pub const INTERNAL: u8 = 0;
    /// The client is outside the cluster.
    pub const EXTERNAL: u8 = 1;
}

/// What stands behind a frontend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Service {
    /// Stable id of the set of backends, which all frontends with that set share: for statistics, affinity and source
    /// ranges; 0 only in a row without a port.
    pub id: u32,
    /// First slot.
    pub slot_base: u32,
    /// Number of slots; 0 = no usable endpoint.
    pub slot_count: u32,
    /// `ClientIP` affinity timeout; 0 = no affinity.
    pub affinity_seconds: u32,
    /// For how long a backend that just appeared gets fewer connections than the others; 0 = the same at once.
    pub slow_start_seconds: u32,
    /// [`flag`]
    pub flags: u32,
}

/// Bits of [`Service::flags`].
pub mod flag {
    /// With no slots: drop silently instead of rejecting (a Local policy with endpoints elsewhere, S21).
    pub const DROP_WHEN_EMPTY: u32 = 1 << 0;
    /// Only clients in `source_ranges_*` under the row's id may use it (S24).
    pub const SOURCE_RANGES: u32 = 1 << 1;
    /// With [`SOURCE_RANGES`]: processes of the node itself may use it, too.
    pub const NODE_ALLOWED: u32 = 1 << 2;
    /// The slots are a Maglev table: they are chosen by [`super::MAGLEV_SEED`], so that any node chooses the same.
    pub const MAGLEV: u32 = 1 << 3;
    /// Of two backends the one with fewer connections from this node gets the next one; see [`crate::load`].
    pub const LEAST_CONNECTIONS: u32 = 1 << 4;
}

/// The hash seed of Maglev tables, the same on every node.
pub const MAGLEV_SEED: u32 = 0x7175_696c;

/// Key of `source_ranges_*`: a range of client addresses that may use a Service. The id counts as 32 leading bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceRangeKey<A> {
    /// Number of leading bits that count (machine order): 32 and those of the range.
    pub prefix_len: u32,
    /// [`Service::id`] in network byte order.
    pub id: [u8; 4],
    /// First address of the range.
    pub addr: A,
}

plain!(
    ServiceKey<[u8; 4]> = 8,
    ServiceKey<[u8; 16]> = 20,
    Service = 24,
    SourceRangeKey<[u8; 4]> = 12,
    SourceRangeKey<[u8; 16]> = 24,
);
