//! Test harness: clusters of network namespaces on one machine.
//!
//! [`packet`] makes and compares frames. [`sandbox`], [`netns`] and [`cgroup`] give a topology a place that cannot touch
//! the machine and that vanishes with its process; [`suite`] is the `main` of test binaries that need one.
//! [`cluster`] puts the real controller, agents and CNI plugin into a [`topology`] and drives them with kubectl.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod ask;
pub mod bare_node;
pub mod binary;
pub mod cgroup;
pub mod client;
pub mod cluster;
pub mod cni;
pub mod command;
pub mod counters;
pub mod dump;
pub mod eventually;
pub mod netns;
pub mod node;
pub mod packet;
pub mod pod;
pub mod require;
pub mod sandbox;
pub mod suite;
pub mod topology;
pub mod workload;
