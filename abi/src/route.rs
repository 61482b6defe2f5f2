//! `routes_v4`, `routes_v6`: longest prefix match, consulted on flow set-up only.

use crate::plain;

/// What an address is to this node. No route at all: the outside world.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Route {
    /// [`kind`]
    pub kind: u8,
    /// Always 0.
    pub pad: u8,
    /// The node slot of [`kind::REMOTE_PODS`], else 0.
    pub node_slot: u16,
}

/// Values of [`Route::kind`].
pub mod kind {
    /// This node's Pod CIDR: an address in it without an endpoint is nobody's.
    pub const LOCAL_PODS: u8 = 1;
    /// Another node's Pod CIDR: through the overlay.
    pub const REMOTE_PODS: u8 = 2;
    /// An address of this node itself: the host's stack.
    pub const HOST: u8 = 3;
    /// A service CIDR: an address in it that is no frontend is nobody's, and must not leak to the default route.
    pub const SERVICES: u8 = 4;
    /// Outside, but reached with the Pod's own address (no masquerade).
    pub const NATIVE: u8 = 5;
    /// Never deliver (link-local, loopback, multicast, broadcast from a Pod).
    pub const UNROUTABLE: u8 = 6;
}

/// Key of a longest-prefix-match map, in the layout the kernel asks for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey<A> {
    /// Number of leading bits that count (machine order).
    pub prefix_len: u32,
    /// Address.
    pub addr: A,
}

plain!(Route = 4, RouteKey<[u8; 4]> = 8, RouteKey<[u8; 16]> = 20);
