//! Pure planning: what the kernel should hold, and in which order to get it there.
//!
//! ```text
//! Snapshot + NodeFacts ──plan──► Desired ──Layout::lay_out──► Tables ──diff(old, new)──► Vec<Step>
//! ```
//!
//! [`plan()`] decides *what*: frontends with their sets of backends, routes, nodes; [`plan_service`] is the part of it that
//! each Service has for itself. [`Layout`] decides *where*: ids, slot ranges,
//! node slots, the same ones as before for whatever did not change. [`diff()`] decides *when*: an order in which no
//! prefix shows a kernel reader half a change. Nothing here does I/O; the agent carries the steps out.
#![forbid(unsafe_code)]

mod address;
mod candidate;
pub mod choice;
mod claim;
pub mod desired;
pub mod diff;
pub mod facts;
pub mod family;
pub mod frontend;
mod health;
pub mod host_port;
pub mod layout;
pub mod maglev;
mod node_port;
pub mod pool;
pub mod route;
pub mod service_facts;
pub mod step;
pub mod tables;
pub mod tunnel;
mod weight;

use quilla_model::{Problem, Snapshot};

pub use desired::{
    BackendKey, BackendSet, Desired, Frontend, FrontendKey, FrontendKind, HealthCheck, Marker, Member,
    SetKey, Target, Tunnel,
};
pub use diff::diff;
pub use facts::{HostPort, LocalEndpoint, NodeFacts, NodePortAddresses};
pub use frontend::{ServicePlan, plan_service};
pub use host_port::plan_host_ports;
pub use layout::Layout;
pub use service_facts::ServiceFacts;
pub use step::{FamilyStep, Step};
pub use tables::{FamilyTables, LaidService, Tables};

/// What this node's kernel should do, from what the cluster intends and what the node is.
///
/// Total: whatever cannot be done is left out and said in the problems; the rest works.
pub fn plan(snapshot: &Snapshot, facts: &NodeFacts) -> (Desired, Vec<Problem>) {
    let mut problems = Vec::new();
    let for_services = ServiceFacts::new(snapshot, facts);
    let services = snapshot.services.values();
    let plans: Vec<ServicePlan> = services
        .map(|service| plan_service(service, snapshot.slices_of(&service.name), &for_services))
        .chain(facts.endpoints.iter().map(|endpoint| plan_host_ports(endpoint, &for_services)))
        .collect();
    let mut desired = Desired {
        tunnels: tunnel::plan(snapshot, facts, &mut problems),
        endpoints: facts.endpoints.iter().map(|endpoint| (endpoint.ifindex, endpoint.clone())).collect(),
        config: facts.config(snapshot),
        ..Desired::default()
    };
    claim::merge(&mut desired, plans.iter(), &mut problems);
    desired.routes = route::plan(snapshot, facts, &mut desired.markers, &mut problems);
    (desired.config.frontend_port_min, desired.config.frontend_port_max) =
        node_port::range(&desired.frontends, &for_services);
    if plans.iter().any(|plan| plan.node_backends) {
        desired.config.flags |= quilla_abi::config::flag::NODE_BACKENDS;
    }
    (desired, problems)
}
