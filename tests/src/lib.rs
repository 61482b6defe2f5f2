//! Test harness: clusters of network namespaces on one machine.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod packet;
