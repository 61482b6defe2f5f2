//! Cluster-wide reconcilers and the binary that embeds the apiserver.
#![forbid(unsafe_code)]

pub mod endpoint;
pub mod field;
pub mod pool;
pub mod selector;
pub mod service;
pub mod syntax;
