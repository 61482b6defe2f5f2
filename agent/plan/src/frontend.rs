//! From Services and their endpoint slices to frontends and backends (S1-S5, S13, S21). Called by [`crate::plan()`].
//!
//! Only ClusterIPs for clients inside the cluster are planned here. Node ports, load balancer and external addresses are
//! more frontends of the same port, with the set of their own policy; they belong in `frontends_of`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::IpAddr;

use quilla_abi::service::{flag, scope};
use quilla_model::address::unusable;
use quilla_model::{
    EndpointSlice, Family, ObjectRef, Problem, Protocol, Reason, Service, ServicePort, Snapshot,
    TrafficPolicy,
};

use crate::choice::{Candidate, Place, choose, has_any};
use crate::desired::{BackendKey, Frontend, FrontendKey};
use crate::facts::NodeFacts;

type Frontends = BTreeMap<FrontendKey, Frontend>;

/// Every frontend, and every backend whose endpoint exists.
pub(crate) fn plan(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    problems: &mut Vec<Problem>,
) -> (Frontends, Vec<BackendKey>) {
    let zone = snapshot.nodes.get(&facts.name).and_then(|node| node.zone.as_deref());
    let place = Place { node: &facts.name, zone };
    let mut frontends = Frontends::new();
    let mut backends = Vec::new();
    for service in snapshot.services.values() {
        let slices = usable_slices(snapshot, service, problems);
        for port in served_ports(service, problems) {
            for &address in &service.cluster_ips {
                let candidates = candidates(&slices, port, Family::of(address), place);
                backends.extend(candidates.iter().map(|candidate| candidate.key));
                frontends_of(service, port, address, &candidates, place, &mut frontends, problems);
            }
        }
    }
    backends.sort_unstable();
    backends.dedup();
    (frontends, backends)
}

/// The ports that can be served; a second port of the same number and protocol is a mistake of the object.
fn served_ports<'a>(service: &'a Service, problems: &mut Vec<Problem>) -> Vec<&'a ServicePort> {
    let mut served: Vec<&ServicePort> = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let object = || ObjectRef::new("Service", &service.name);
        let detail = || format!("port {} {}", port.port, port.protocol);
        if port.port == 0 {
            problems.push(Problem::new(object(), Reason::Malformed, detail()));
        } else if port.protocol == Protocol::Sctp {
            problems.push(Problem::new(object(), Reason::Unsupported, detail()));
        } else if served.iter().any(|other| (other.port, other.protocol) == (port.port, port.protocol)) {
            problems.push(Problem::new(object(), Reason::Duplicate, detail()));
        } else {
            served.push(port);
        }
    }
    served
}

/// A slice with, for each endpoint, whether it can be one at all.
struct UsableSlice<'a> {
    slice: &'a EndpointSlice,
    unusable: Vec<usize>,
}

fn usable_slices<'a>(
    snapshot: &'a Snapshot,
    service: &Service,
    problems: &mut Vec<Problem>,
) -> Vec<UsableSlice<'a>> {
    let mut usable_slices = Vec::new();
    for slice in snapshot.slices_of(&service.name) {
        let mut rejected = Vec::new();
        for (index, endpoint) in slice.endpoints.iter().enumerate() {
            let why = match unusable(endpoint.address) {
                None if Family::of(endpoint.address) != slice.family => Some("address of the other family"),
                why => why,
            };
            if let Some(why) = why {
                let object = ObjectRef::new("EndpointSlice", &slice.name);
                let detail = format!("endpoint {}: {why}", endpoint.address);
                problems.push(Problem::new(object, Reason::UnusableAddress, detail));
                rejected.push(index);
            }
        }
        usable_slices.push(UsableSlice { slice, unusable: rejected });
    }
    usable_slices
}

/// The endpoints of one port and family, each address and port once (S5), sorted.
fn candidates<'a>(
    slices: &[UsableSlice<'a>],
    port: &ServicePort,
    family: Family,
    place: Place<'_>,
) -> Vec<Candidate<'a>> {
    let mut found = Vec::new();
    for UsableSlice { slice, unusable } in slices.iter().filter(|usable| usable.slice.family == family) {
        let serves = |p: &&quilla_model::EndpointPort| p.name == port.name && p.protocol == port.protocol;
        for target in slice.ports.iter().filter(serves) {
            let endpoints = slice.endpoints.iter().enumerate();
            found.extend(endpoints.filter(|(index, _)| !unusable.contains(index)).map(|(_, endpoint)| {
                Candidate {
                    key: BackendKey {
                        address: endpoint.address,
                        port: target.port,
                        protocol: port.protocol.number(),
                    },
                    ready: endpoint.ready,
                    serving: endpoint.serving,
                    terminating: endpoint.terminating,
                    local: endpoint.node.as_deref() == Some(place.node),
                    hints: endpoint.hints.as_deref(),
                }
            }));
        }
    }
    // An address in two slices: the one that is not terminating counts.
    found.sort_by_key(|candidate| (candidate.key, candidate.terminating));
    found.dedup_by_key(|candidate| candidate.key);
    found
}

/// Adds the frontends of one Service port in one family.
fn frontends_of(
    service: &Service,
    port: &ServicePort,
    address: IpAddr,
    candidates: &[Candidate<'_>],
    place: Place<'_>,
    frontends: &mut Frontends,
    problems: &mut Vec<Problem>,
) {
    let object = || ObjectRef::new("Service", &service.name);
    if let Some(why) = unusable(address) {
        problems.push(Problem::new(object(), Reason::UnusableAddress, format!("clusterIP {address}: {why}")));
        return;
    }
    let key =
        FrontendKey { address, port: port.port, protocol: port.protocol.number(), scope: scope::INTERNAL };
    let backends = choose(candidates, service.internal_policy, place);
    let hidden =
        backends.is_empty() && service.internal_policy == TrafficPolicy::Local && has_any(candidates);
    let frontend = Frontend {
        service: service.name.clone(),
        port_name: port.name.clone(),
        backends,
        affinity_seconds: service.affinity_seconds.unwrap_or(0),
        flags: if hidden { flag::DROP_WHEN_EMPTY } else { 0 },
    };
    match frontends.entry(key) {
        Entry::Vacant(vacant) => {
            vacant.insert(frontend);
        }
        Entry::Occupied(occupied) => {
            let owner = &occupied.get().service;
            let detail = format!("{address} port {} {} belongs to {owner}", port.port, port.protocol);
            problems.push(Problem::new(object(), Reason::Conflict, detail));
        }
    }
}

#[cfg(test)]
#[path = "frontend_tests.rs"]
mod tests;
