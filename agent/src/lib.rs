//! The node agent: watches the apiserver and programs the kernel.
//!
//! ```text
//! watch ──► snapshot ──► reconcile (plan, diff) ──► table, node ──► kernel
//! cni ──► endpoint ─────────┘                  health, admin ◄── view, counters
//! ```
//!
//! [`app`] wires it. Invariant: nothing in the kernel depends on the agent being alive.
#![forbid(unsafe_code)]

pub mod abandoned;
pub mod admin;
pub mod apiserver;
pub mod app;
pub mod cni;
pub mod endpoint;
pub mod events;
pub mod health;
pub mod health_check;
pub mod kernel_watch;
pub mod last_known;
pub mod masquerade;
pub mod metrics;
pub mod node;
pub mod options;
pub mod overlay;
pub mod progress;
pub mod proxy_health;
pub mod reconcile;
pub mod selftest;
pub mod snapshot;
pub mod sockets;
pub mod static_address;
pub mod table;
pub mod watch;
