//! The crate against the real kernel, in namespaces and BPF file systems of its own. Needs root.

mod device;
mod links;
mod maps;
mod others;
mod pins;
mod routes;
mod rules;
mod sockets;
mod support;
mod testrun;
