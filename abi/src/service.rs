//! `services_v4`, `services_v6` and `slots`: which backends stand behind a frontend.
//!
//! A Service row names a range of `slots`; each slot holds a backend id. User space writes backends, then slots into a
//! range no row names, then flips the row in one update: a reader sees the Service before or after, never in between.

use crate::address::Be16;
use crate::plain;

/// A frontend: the address and port that clients use.
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
    /// Stable id of the Service port, for statistics and affinity; never 0.
    pub id: u32,
    /// First slot.
    pub slot_base: u32,
    /// Number of slots; 0 = no usable endpoint.
    pub slot_count: u32,
    /// `ClientIP` affinity timeout; 0 = no affinity.
    pub affinity_seconds: u32,
    /// [`flag`]
    pub flags: u32,
}

/// Bits of [`Service::flags`].
pub mod flag {
    /// With no slots: drop silently instead of rejecting (a Local policy with endpoints elsewhere, S21).
    pub const DROP_WHEN_EMPTY: u32 = 1 << 0;
}

plain!(ServiceKey<[u8; 4]> = 8, ServiceKey<[u8; 16]> = 20, Service = 20);
