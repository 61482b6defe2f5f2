//! The embedded apiserver as its clients see it: raw HTTP, kube-rs and the real kubectl.
//!
//! Each test starts a server of its own on a free loopback port, so they run in parallel.

mod admission;
mod delete;
mod errors;
mod fixture;
mod kubectl;
mod list;
mod storage;
mod watch;
mod write;
