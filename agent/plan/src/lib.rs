//! Pure planning: what the kernel should hold, and in which order to get it there.
//!
//! ```text
//! Snapshot + NodeFacts ──plan──► Desired ──Layout::lay_out──► Tables ──diff(old, new)──► Vec<Step>
//! ```
//!
//! [`plan()`] decides *what*: frontends with their backends, routes, nodes. [`Layout`] decides *where*: ids, slot ranges,
//! node slots, the same ones as before for whatever did not change. [`diff()`] decides *when*: an order in which no
//! prefix shows a kernel reader half a change. Nothing here does I/O; the agent carries the steps out.
#![forbid(unsafe_code)]

pub mod choice;
pub mod desired;
pub mod diff;
pub mod facts;
pub mod family;
pub mod frontend;
pub mod layout;
pub mod pool;
pub mod route;
pub mod step;
pub mod tables;
pub mod tunnel;

use quilla_model::{Problem, Snapshot};

pub use desired::{BackendKey, Desired, Frontend, FrontendKey, Target, Tunnel};
pub use diff::diff;
pub use facts::{HostPort, LocalEndpoint, NodeFacts};
pub use layout::Layout;
pub use step::{FamilyStep, Step};
pub use tables::{FamilyTables, LaidService, Tables};

/// What this node's kernel should do, from what the cluster intends and what the node is.
///
/// Total: whatever cannot be done is left out and said in the problems; the rest works.
pub fn plan(snapshot: &Snapshot, facts: &NodeFacts) -> (Desired, Vec<Problem>) {
    let mut problems = Vec::new();
    let (frontends, backends) = frontend::plan(snapshot, facts, &mut problems);
    let tunnels = tunnel::plan(snapshot, facts, &mut problems);
    let routes = route::plan(snapshot, facts, &mut problems);
    let endpoints = facts.endpoints.iter().map(|endpoint| (endpoint.ifindex, endpoint.clone())).collect();
    let config = facts.config(snapshot);
    (Desired { frontends, backends, tunnels, routes, endpoints, config }, problems)
}
