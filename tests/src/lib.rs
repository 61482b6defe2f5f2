//! Test harness: clusters of network namespaces on one machine.
//!
//! [`packet`] makes and compares frames. [`sandbox`], [`netns`] and [`cgroup`] give a topology a place that cannot touch
//! the machine and that vanishes with its process; [`suite`] is the `main` of test binaries that need one.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod cgroup;
pub mod command;
pub mod eventually;
pub mod netns;
pub mod packet;
pub mod require;
pub mod sandbox;
pub mod suite;
