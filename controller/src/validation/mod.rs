//! Validation of the kinds Quilla reads, one file each: typed object in, complaints out. Called by `admission`. Pure.
//! The generic rules of metadata are the apiserver's.

mod endpoint;
mod namespace;
mod network_policy;
mod node;
mod pod;
mod service_cidr;

#[cfg(test)]
mod tests;

pub use endpoint::{endpoint_slice, endpoints};
pub use namespace::namespace;
pub use network_policy::network_policy;
pub use node::node;
pub use pod::pod;
pub use service_cidr::{networks, service_cidr};
