//! Pure planning: what the kernel should hold, and in which order to get it there.
//!
//! ```text
//! Snapshot + NodeFacts ──plan──► Desired ──Layout::lay_out──► Tables ──diff(old, new)──► Vec<Step>
//! ```
//!
//! [`plan()`] decides *what*: frontends with their sets of backends, routes, nodes; [`plan_service`] is the part of it that
//! each Service has for itself, and a [`Planner`] keeps it from round to round. [`Layout`] decides *where*: ids, slot
//! ranges, node slots, the same ones as before for whatever did not change. [`diff()`] decides *when*: an order in which
//! no prefix shows a kernel reader half a change. All of them look only at what two states do not share. Nothing here
//! does I/O; the agent carries the steps out.
#![forbid(unsafe_code)]

mod address;
mod candidate;
pub mod choice;
mod claim;
mod count;
pub mod desired;
pub mod diff;
pub mod facts;
pub mod family;
pub mod frontend;
pub mod grace;
mod health;
pub mod host_port;
pub mod layout;
pub mod maglev;
mod node_port;
mod parallel;
mod planner;
pub mod pool;
pub mod route;
pub mod routing;
pub mod service_facts;
pub mod step;
pub mod tables;
mod taken;
pub mod tunnel;
mod weight;

use std::sync::Arc;

use quilla_model::{Problem, Snapshot};

pub use desired::{
    BackendKey, BackendSet, Desired, Frontend, FrontendKey, FrontendKind, HealthCheck, Marker, Member,
    SetKey, Target, Tunnel,
};
pub use diff::diff;
pub use facts::{HostPort, LocalEndpoint, NodeFacts, NodePortAddresses};
pub use frontend::{ServicePlan, plan_service};
pub use grace::Grace;
pub use host_port::plan_host_ports;
pub use layout::Layout;
pub use planner::Planner;
pub use routing::{Path, Routing, Why};
pub use service_facts::ServiceFacts;
pub use step::{Appearance, FamilyStep, Step};
pub use tables::{FamilyTables, Tables};

/// What this node's kernel should do, from what the cluster intends and what the node is.
///
/// One round of a [`Planner`] that starts from nothing: for whoever plans once, and what its later rounds are held to.
pub fn plan(snapshot: &Snapshot, facts: &NodeFacts) -> (Desired, Vec<Problem>) {
    Planner::default().plan(&Arc::new(snapshot.clone()), facts)
}
