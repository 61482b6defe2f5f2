//! `backends_v4`, `backends_v6`: arrays by backend id; `backend_ids_v4`, `backend_ids_v6`: the way back.
//!
//! A backend outlives its selection: it leaves the slots at once when it is no longer usable, and its row stays while
//! flows may use it. When the endpoint is gone for good its generation in `epochs` is bumped and the row is cleared.

use crate::address::Be16;
use crate::plain;

/// An endpoint of a Service: the address and port of a Pod or a host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend<A> {
    /// Address; all zero in a free row.
    pub addr: A,
    /// Target port; 0 in a free row.
    pub port: Be16,
    /// IP protocol number; 0 in a free row.
    pub proto: u8,
    /// Always 0.
    pub pad: u8,
}

plain!(Backend<[u8; 4]> = 8, Backend<[u8; 16]> = 20);
