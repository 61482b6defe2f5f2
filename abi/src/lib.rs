//! The bytes that the kernel programs and user space agree on.
//!
//! One file per map family. Every type is `repr(C)` without implicit padding, so that a key hashes the same on both
//! sides; each size is asserted at compile time. Addresses and ports are in network byte order and say so in their
//! type; everything else is in the machine's byte order. Nothing here knows Kubernetes, and nothing here does I/O.
#![cfg_attr(not(feature = "user"), no_std)]
#![warn(missing_docs)]

pub mod address;
pub mod affinity;
pub mod backend;
pub mod config;
pub mod counter;
pub mod drop_reason;
pub mod endpoint;
pub mod epoch;
pub mod flow;
pub mod fragment;
pub mod load;
pub mod map;
pub mod node;
pub mod program;
pub mod route;
pub mod service;
pub mod socket;
pub mod trace;
pub mod version;

pub use address::{Address, Be16, Mac};
pub use drop_reason::DropReason;

/// Marks types as plain bytes for aya's typed maps, and proves their size.
macro_rules! plain {
    ($($ty:ty = $size:expr),+ $(,)?) => {$(
        const _: () = assert!(size_of::<$ty>() == $size, concat!("size of ", stringify!($ty)));
        // SAFETY: `repr(C)` or `repr(transparent)`, Copy, made only of integers and byte arrays, without padding.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $ty {}
    )+};
}
pub(crate) use plain;
