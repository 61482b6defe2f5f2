//! A small Kubernetes-compatible apiserver that knows nothing of networking.
//!
//! A library: the controller's binary starts it and hands it an `Admission`. Invariant: it names no kind outside the
//! table in `resource`, except Namespaces and Pods, whose life cycle is the API's own.
#![forbid(unsafe_code)]

mod admission;
mod auth;
mod collector;
mod http;
mod object;
mod patch;
mod read;
mod resource;
mod selector;
mod server;
mod status;
mod store;
mod tls;
mod watch;
mod write;

pub use admission::{Admission, AdmissionRequest, AdmitAll, Cause, Operation, Rejection};
pub use server::{Config, Error, RunningServer, Server};
pub use store::StoreError;
pub use tls::TlsError;
