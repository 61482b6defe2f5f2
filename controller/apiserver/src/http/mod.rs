//! The HTTP face: one request in, one response or stream out.
//!
//! `server` calls `Service::handle` for each request. Invariant: every answer is JSON, and every refusal a `Status`.

mod discovery;
mod dispatch;
mod openapi;
mod printer;
mod query;
mod route;

pub(crate) use dispatch::{Service, Settings};
