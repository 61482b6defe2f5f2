//! What the cluster intends, as plain values: no I/O, no Kubernetes types.
//!
//! The agent's watch fills these from API objects at one border; the planner reads them. Addresses and ports are in the
//! machine's order and typed (`IpAddr`, `u16`); nothing malformed gets past the border, and what did not is a
//! [`Problem`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod address;
pub mod endpoint;
pub mod name;
pub mod node;
pub mod pod;
pub mod problem;
pub mod service;
pub mod shared_map;
pub mod snapshot;

pub use address::Family;
pub use endpoint::{Endpoint, EndpointPort, EndpointSlice, Hints};
pub use name::ObjectName;
pub use node::Node;
pub use pod::{Namespace, Pod};
pub use problem::{ObjectRef, Problem, Reason};
pub use service::{LoadBalancing, Protocol, Service, ServicePort, ServiceType, TrafficPolicy};
pub use shared_map::{Difference, SharedMap};
pub use snapshot::Snapshot;
