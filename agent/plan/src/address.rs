//! The addresses at which clients find a Service (S2-S4, S24, S27). Called by [`crate::frontend`].
//!
//! Invariant: a Service has no address in a family in which it has no ClusterIP (S2).

use std::net::IpAddr;

use ipnet::IpNet;
use quilla_model::address::unusable;
use quilla_model::{Family, ObjectRef, Problem, Reason, Service, ServicePort, ServiceType};

use crate::desired::FrontendKind;
use crate::service_facts::ServiceFacts;

/// Where a Service is reached on its own ports, and by whom.
pub(crate) struct Addresses {
    /// All but addresses for node ports, each once.
    pub(crate) virtual_ips: Vec<(FrontendKind, IpAddr)>,
    /// Clients that may use load balancer addresses; none of a family = every client of that family. Sorted.
    pub(crate) source_ranges: Vec<IpNet>,
}

/// The usable addresses of a Service.
pub(crate) fn addresses(service: &Service, facts: &ServiceFacts, problems: &mut Vec<Problem>) -> Addresses {
    // A Service that was one of a load balancer may keep its addresses in the status for a while.
    let balanced =
        if service.kind == ServiceType::LoadBalancer { &service.load_balancer_ips[..] } else { &[] };
    let lists = [
        (FrontendKind::ClusterIp, &service.cluster_ips[..]),
        (FrontendKind::LoadBalancer, balanced),
        (FrontendKind::ExternalIp, &service.external_ips[..]),
    ];
    let mut virtual_ips: Vec<(FrontendKind, IpAddr)> = Vec::new();
    for (kind, list) in lists {
        for &address in list {
            if let Some(fault) = fault(service, kind, address, facts) {
                let object = ObjectRef::new("Service", &service.name);
                let detail = format!("{} {address}: {fault}", field(kind));
                problems.push(Problem::new(object, Reason::UnusableAddress, detail));
            } else if !virtual_ips.contains(&(kind, address)) {
                virtual_ips.push((kind, address));
            }
        }
    }
    Addresses { virtual_ips, source_ranges: source_ranges(service) }
}

fn fault(
    service: &Service,
    kind: FrontendKind,
    address: IpAddr,
    facts: &ServiceFacts,
) -> Option<&'static str> {
    let foreign = service.cluster_ip(Family::of(address)).is_none();
    // Else whoever may write a Service could answer for any other one (CVE-2020-8554).
    let allocated =
        kind != FrontendKind::ClusterIp && facts.service_cidrs.iter().any(|cidr| cidr.contains(&address));
    unusable(address)
        .or(foreign.then_some("the Service has no clusterIP of the family"))
        .or(allocated.then_some("in a service CIDR"))
}

fn field(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::LoadBalancer => "load balancer address",
        FrontendKind::ExternalIp => "externalIP",
        _ => "clusterIP",
    }
}

/// A range that contains everything is no restriction (S2).
fn source_ranges(service: &Service) -> Vec<IpNet> {
    let open = |family| {
        service
            .source_ranges
            .iter()
            .any(|range| range.prefix_len() == 0 && Family::of(range.addr()) == family)
    };
    let restricts = |range: &&IpNet| !open(Family::of(range.addr()));
    let mut ranges: Vec<IpNet> = service.source_ranges.iter().filter(restricts).map(IpNet::trunc).collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

impl Addresses {
    /// Whether clients outside the cluster can reach a port in a family (S13): the same on every node.
    pub(crate) fn externally_accessible(
        &self,
        service: &Service,
        port: &ServicePort,
        family: Family,
    ) -> bool {
        let outside = |(kind, address): &(FrontendKind, IpAddr)| {
            *kind != FrontendKind::ClusterIp && Family::of(*address) == family
        };
        service.node_port(port).is_some() || self.virtual_ips.iter().any(outside)
    }
}
