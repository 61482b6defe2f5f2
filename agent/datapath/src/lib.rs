//! The only crate that touches the kernel: programs, maps, links, netlink, namespaces.
//!
//! The agent, and the tests that stand in for it, call it with plain values; it knows neither Kubernetes nor plans.
//! Every function blocks, so the agent calls it from a thread of its own. What is made here stays when the agent goes:
//! pinned maps and links, devices, routes. Nothing is emptied or detached by starting or ending.

pub mod allocator;
pub mod bpffs;
pub mod cgroup;
mod datapath;
mod error;
pub mod kernel;
mod link;
mod map;
pub mod netlink;
pub mod netns;
mod object;
mod pin;
pub mod probe;
mod program;
mod sys;
pub mod sysctl;
mod testrun;

pub use datapath::{Datapath, Options, Status};
pub use error::{DatapathError, Result};
pub use kernel::jiffies;
pub use link::{LinkStatus, Mechanism};
pub use map::{ArrayTable, Counters, Maps, Sum, Table};
pub use netlink::{
    ConnectedSocket, Destroyed, Device, DeviceChanges, FilterChanges, Netlink, Overlay, PodRoute, Refused,
    RouteChanges, Sockets, Surroundings, Touched,
};
pub use object::Object;
pub use pin::Opened;
pub use testrun::{Outcome, TestContext, TestRunner};
