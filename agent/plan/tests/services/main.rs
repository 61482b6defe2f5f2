//! What the planner makes of Services, row by row: addresses, policies, conflicts, bad input (S1-S40).
//!
//! Through the public interface only: a cluster goes in, frontends and their backends come out.

mod cluster;

mod address;
mod category;
mod conflict;
mod existing;
mod host_port;
mod input;
mod masquerade;
mod random;
