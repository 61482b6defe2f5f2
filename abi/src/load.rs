//! `loads_v4`, `loads_v6`: arrays by backend id: how busy a backend is, as far as this node knows.
//!
//! Only backends of Services with [`crate::service::flag::LEAST_CONNECTIONS`] or a slow start have rows that mean
//! anything. The kernel counts connections up and down; user space writes the row when the backend appears and corrects
//! the count from the flow table now and then, because entries may be evicted without a word.

use crate::plain;

/// How busy a backend is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections of this node that are open.
    pub connections: u32,
    /// Low 32 bits of `jiffies64` when the backend appeared; 0 = long ago.
    pub since: u32,
}

plain!(Load = 8);
