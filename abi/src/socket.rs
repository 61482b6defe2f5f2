//! `sockets_v4`, `sockets_v6`: which frontend a socket believes to talk to.
//!
//! For `recvmsg` and `getpeername`; for the Pod's device, which ties the socket's connection to the backend; and for the
//! agent, which ends the node's own sockets with their backend.

use crate::address::Be16;
use crate::plain;

/// A socket and the backend it really talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SocketKey<A> {
    /// Low and high half of `bpf_get_socket_cookie`: as halves, neither family needs implicit padding.
    pub cookie: [u32; 2],
    /// Backend address.
    pub addr: A,
    /// Backend port.
    pub port: Be16,
    /// IP protocol number.
    pub proto: u8,
    /// Always 0.
    pub pad: u8,
}

/// The frontend the application asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend<A> {
    /// Service address.
    pub addr: A,
    /// Service port.
    pub port: Be16,
    /// [`flag`]
    pub flags: u16,
}

/// Bits of [`Frontend::flags`].
pub mod flag {
    /// Counted in [`crate::load`] until the socket is released.
    pub const COUNTED: u16 = 1 << 0;
}

plain!(
    SocketKey<[u8; 4]> = 16,
    SocketKey<[u8; 16]> = 28,
    Frontend<[u8; 4]> = 8,
    Frontend<[u8; 16]> = 20,
);
