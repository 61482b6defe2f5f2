//! Cluster-wide reconcilers and the binary that embeds the apiserver.
#![forbid(unsafe_code)]

pub mod admission;
pub mod app;
pub mod config;
pub mod credentials;
pub mod endpoint;
pub mod error;
pub mod event;
pub mod field;
pub mod health;
pub mod metrics;
pub mod pool;
pub mod reconcile;
pub mod selector;
pub mod service;
pub mod subnet;
pub mod syntax;
pub mod validation;
