//! What load balancers are told about a Service's endpoints here (S40). Called by [`crate::frontend`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use quilla_model::{Family, Service, ServiceType, TrafficPolicy};

use crate::desired::HealthCheck;

/// Only a load balancer that must not choose a node without endpoints asks. `local_ready` are the addresses of ready
/// endpoints on this node; a Pod with an address of each family counts once.
pub(crate) fn health_check(service: &Service, local_ready: &BTreeSet<IpAddr>) -> Option<HealthCheck> {
    let asked = service.kind == ServiceType::LoadBalancer && service.external_policy == TrafficPolicy::Local;
    let port = service.health_check_node_port.filter(|_| asked)?;
    let of = |family| local_ready.iter().filter(|address| Family::of(**address) == family).count();
    Some(HealthCheck { port, local_endpoints: of(Family::V4).max(of(Family::V6)) })
}
