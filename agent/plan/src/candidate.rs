//! From the slices of a Service to the endpoints of one of its ports (S5). Called by [`crate::frontend`].
//!
//! Invariant: what no endpoint can be is left out and named, once for each slice and fault.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use quilla_model::address::unusable;
use quilla_model::{EndpointPort, EndpointSlice, Family, ObjectRef, Problem, Reason, ServicePort};

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

    fn candidates<'b>(
        &'b self,
        target: &'b EndpointPort,
        facts: &'b ServiceFacts,
    ) -> impl Iterator<Item = Candidate<'a>> + 'b {
        let usable = |(index, _): &(usize, _)| self.rejected.binary_search(index).is_err();
        self.slice.endpoints.iter().enumerate().filter(usable).map(move |(_, endpoint)| Candidate {
            key: BackendKey {
                address: endpoint.address,
                port: target.port,
                protocol: target.protocol.number(),
            },
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.node.as_deref() == Some(facts.node.as_str()),
            hints: endpoint.hints.as_deref(),
            weight: self.slice.weight,
        })
    }
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
        let serves = |target: &&EndpointPort| {
            target.port != 0 && target.name == port.name && target.protocol == port.protocol
        };
        for target in usable.slice.ports.iter().filter(serves) {
            found.extend(usable.candidates(target, facts));
        }
    }
    // An address in two slices: the one that is not terminating counts, then the first slice's.
    found.sort_by_key(|candidate| (candidate.key, candidate.terminating));
    found.dedup_by_key(|candidate| candidate.key);
    found
}
