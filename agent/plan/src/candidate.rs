//! From the slices of a Service to the endpoints of one of its ports (S5), and to all that it has. Called by
//! [`crate::frontend`].
//!
//! Invariant: what no endpoint can be is left out and named, once for each slice and fault.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use quilla_model::address::unusable;
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, ObjectRef, Problem, Protocol, Reason, ServicePort,
};

use crate::choice::Candidate;
use crate::desired::BackendKey;
use crate::service_facts::ServiceFacts;

/// A slice with the positions of the endpoints that cannot be one.
pub(crate) struct UsableSlice<'a> {
    slice: &'a EndpointSlice,
    rejected: Vec<usize>,
}

/// Where clouds give secrets to whoever asks from a node: no Service leads there.
const METADATA: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

impl<'a> UsableSlice<'a> {
    /// Sorts out what no endpoint can be.
    pub(crate) fn new(slice: &'a EndpointSlice, facts: &ServiceFacts, problems: &mut Vec<Problem>) -> Self {
        let mut rejected = Vec::new();
        let mut faults: BTreeMap<&str, (IpAddr, usize)> = BTreeMap::new();
        for (index, endpoint) in slice.endpoints.iter().enumerate() {
            if let Some(fault) = fault(endpoint.address, slice.family, facts) {
                rejected.push(index);
                faults.entry(fault).or_insert((endpoint.address, 0)).1 += 1;
            }
        }
        for (fault, (first, count)) in faults {
            let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            let detail = format!("endpoint {first}{more}: {fault}");
            let object = ObjectRef::new("EndpointSlice", &slice.name);
            problems.push(Problem::new(object, Reason::UnusableAddress, detail));
        }
        Self { slice, rejected }
    }

    fn endpoints(&self) -> impl Iterator<Item = &'a Endpoint> {
        let usable = |(index, _): &(usize, _)| self.rejected.binary_search(index).is_err();
        self.slice.endpoints.iter().enumerate().filter(usable).map(|(_, endpoint)| endpoint)
    }

    /// Those of its ports that can be served.
    fn ports(&self) -> impl Iterator<Item = &'a EndpointPort> {
        self.slice.ports.iter().filter(|port| port.port != 0 && port.protocol != Protocol::Sctp)
    }

    fn candidates<'b>(
        &'b self,
        target: &'b EndpointPort,
        facts: &'b ServiceFacts,
    ) -> impl Iterator<Item = Candidate<'a>> + 'b {
        self.endpoints().map(move |endpoint| Candidate {
            key: key(endpoint, target),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.node.as_deref() == Some(facts.node.as_str()),
            hints: endpoint.hints.as_deref(),
            weight: self.slice.weight,
        })
    }
}

fn key(endpoint: &Endpoint, target: &EndpointPort) -> BackendKey {
    BackendKey { address: endpoint.address, port: target.port, protocol: target.protocol.number() }
}

/// Why an endpoint cannot have an address. An address of a node is fine: a Pod in its network namespace has it.
fn fault(address: IpAddr, family: Family, facts: &ServiceFacts) -> Option<&'static str> {
    if Family::of(address) != family {
        return Some("address of the other family");
    }
    let metadata = matches!(address, IpAddr::V6(v6) if METADATA.contains(&v6));
    let service = || facts.service_cidrs.iter().any(|cidr| cidr.contains(&address));
    unusable(address)
        .or_else(|| metadata.then_some("metadata address"))
        .or_else(|| service().then_some("address of a Service"))
}

/// The endpoints of one port and family, each address and port once (S5), sorted.
pub(crate) fn candidates<'a>(
    slices: &[UsableSlice<'a>],
    port: &ServicePort,
    family: Family,
    facts: &ServiceFacts,
) -> Vec<Candidate<'a>> {
    let mut found = Vec::new();
    for usable in slices.iter().filter(|usable| usable.slice.family == family) {
        let serves = |target: &&EndpointPort| target.name == port.name && target.protocol == port.protocol;
        for target in usable.ports().filter(serves) {
            found.extend(usable.candidates(target, facts));
        }
    }
    // An address in two slices: the one that is not terminating counts, then the first slice's.
    found.sort_by_key(|candidate| (candidate.key, candidate.terminating));
    found.dedup_by_key(|candidate| candidate.key);
    found
}

/// The backends that flows may stay with (S45), of the families and protocols that the Service has, whatever their ports
/// are called: a Service and its slices never change at the same time, and a port that gets a name is where it was.
///
/// Flows by UDP leave an endpoint that does not serve for one of the same port that does.
pub(crate) fn existing(
    slices: &[UsableSlice<'_>],
    has: impl Fn(Family, Protocol) -> bool,
) -> Vec<BackendKey> {
    let answers = |endpoint: &Endpoint| endpoint.ready || endpoint.serving;
    let mut served = BTreeSet::new();
    for usable in slices.iter().filter(|usable| usable.endpoints().any(answers)) {
        let datagrams = usable.ports().filter(|target| target.protocol == Protocol::Udp);
        served.extend(datagrams.map(|target| (usable.slice.family, &target.name)));
    }
    let mut found = Vec::new();
    for usable in slices {
        let family = usable.slice.family;
        for target in usable.ports().filter(|target| has(family, target.protocol)) {
            let others = target.protocol == Protocol::Udp && served.contains(&(family, &target.name));
            let stays = usable.endpoints().filter(|endpoint| !others || answers(endpoint));
            found.extend(stays.map(|endpoint| key(endpoint, target)));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}
