//! Data path decisions as pure functions, run in the kernel and tested on the host.
//!
//! Everything here works on plain values and on the [`frame::Frame`] trait: no maps, no helpers, no pointers. The glue
//! in `quilla-ebpf` fetches rows and does what is decided here. Invariant: nothing in this crate can panic, because a
//! reachable panic does not link for the kernel.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![allow(
    clippy::cast_possible_truncation,
    reason = "widths of header fields are cut on purpose, after masking"
)]
#![allow(clippy::inline_always, reason = "a call costs more than most of these functions")]

pub mod answer;
pub mod checksum;
pub mod connection;
pub mod embedded;
pub mod family;
pub mod frame;
pub mod hash;
pub mod headers;
pub mod ipv4;
pub mod ipv6;
pub mod nat;
pub mod neighbour;
pub mod protocol;
pub mod route;
pub mod service;
pub mod tunnel;

pub use family::{Family, V4, V6};
pub use frame::Frame;
pub use headers::Headers;
