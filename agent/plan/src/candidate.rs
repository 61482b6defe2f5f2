//! From the slices of a Service to the endpoints of one of its ports (S5), and to all that it has. Called by
//! [`crate::frontend`].
//!
//! Invariant: what no endpoint can be is left out and named, once for each slice and fault.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use quilla_model::address::unusable;
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, ObjectRef, Problem, Protocol, Reason, ServicePort,
};

use crate::choice::Candidate;
use crate::desired::{BackendKey, rank};
use crate::service_facts::ServiceFacts;

/// The usable endpoints that a Service has in one family.
pub(crate) struct Endpoints<'a> {
    slices: Vec<&'a EndpointSlice>,
    /// Each with the position of its slice. By address; of several with one address those that are not terminating come
    /// first, then those of the first slice. So whatever is made of them is in order already.
    sorted: Vec<(&'a Endpoint, usize)>,
}

impl<'a> Endpoints<'a> {
    /// Sorts out what no endpoint can be.
    pub(crate) fn new(
        family: Family,
        slices: &[&'a EndpointSlice],
        facts: &ServiceFacts,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let slices: Vec<_> = slices.iter().copied().filter(|slice| slice.family == family).collect();
        let mut sorted = Vec::with_capacity(slices.iter().map(|slice| slice.endpoints.len()).sum());
        for (position, slice) in slices.iter().enumerate() {
            sorted.extend(usable_endpoints(slice, facts, problems).map(|endpoint| (endpoint, position)));
        }
        sorted.sort_by_key(|(endpoint, _)| (rank(endpoint.address), endpoint.terminating));
        Self { slices, sorted }
    }

    /// The endpoints of one port, each address and port once (S5), sorted.
    pub(crate) fn candidates(&self, port: &ServicePort, facts: &ServiceFacts) -> Vec<Candidate<'a>> {
        let targets = self.targets(|target| target.name == port.name && target.protocol == port.protocol);
        let mut found: Vec<_> = self.with(&targets).map(|pair| self.candidate(pair, facts)).collect();
        // An address in two slices: the one that is not terminating counts, then the first slice's.
        found.sort_by_key(|candidate| (candidate.key, candidate.terminating));
        found.dedup_by_key(|candidate| candidate.key);
        found
    }

    fn candidate(
        &self,
        (endpoint, slice, target): (&'a Endpoint, usize, &EndpointPort),
        facts: &ServiceFacts,
    ) -> Candidate<'a> {
        Candidate {
            key: key(endpoint, target),
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.node.as_deref() == Some(facts.node.as_str()),
            hints: endpoint.hints.as_deref(),
            weight: self.slices[slice].weight,
        }
    }

    /// The backends that flows may stay with (S45), of the protocols that the Service has, whatever their ports are
    /// called: a Service and its slices never change at the same time, and a port that gets a name is where it was.
    ///
    /// Flows by UDP leave an endpoint that does not serve for one of the same port that does. Sorted.
    pub(crate) fn existing(&self, has: impl Fn(Protocol) -> bool) -> Vec<BackendKey> {
        let answers = |endpoint: &Endpoint| endpoint.ready || endpoint.serving;
        let datagrams = self.targets(|target| target.protocol == Protocol::Udp);
        let served: BTreeSet<&str> = self
            .with(&datagrams)
            .filter(|(endpoint, ..)| answers(endpoint))
            .map(|(.., target)| &*target.name)
            .collect();
        let targets = self.targets(|target| has(target.protocol));
        let stays = |&(endpoint, _, target): &(&Endpoint, usize, &EndpointPort)| {
            target.protocol != Protocol::Udp || !served.contains(&*target.name) || answers(endpoint)
        };
        let mut found: Vec<_> =
            self.with(&targets).filter(stays).map(|(endpoint, _, target)| key(endpoint, target)).collect();
        found.sort();
        found.dedup();
        found
    }

    /// Those ports of each slice that can be served and are wanted, in the order of backends.
    fn targets(&self, wanted: impl Fn(&EndpointPort) -> bool) -> Vec<Vec<&'a EndpointPort>> {
        let served = |port: &&EndpointPort| port.port != 0 && port.protocol != Protocol::Sctp && wanted(port);
        let of_slice = |slice: &&'a EndpointSlice| {
            let mut ports: Vec<_> = slice.ports.iter().filter(served).collect();
            ports.sort_by_key(|port| (port.port, port.protocol.number()));
            ports
        };
        self.slices.iter().map(of_slice).collect()
    }

    /// Each endpoint with each of its slice's targets.
    fn with<'b>(
        &'b self,
        targets: &'b [Vec<&'a EndpointPort>],
    ) -> impl Iterator<Item = (&'a Endpoint, usize, &'a EndpointPort)> + 'b {
        let of_endpoint = |&(endpoint, slice): &'b (&'a Endpoint, usize)| {
            targets[slice].iter().map(move |&target| (endpoint, slice, target))
        };
        self.sorted.iter().flat_map(of_endpoint)
    }
}

/// The endpoints of a slice that can be one; the others are problems.
fn usable_endpoints<'a>(
    slice: &'a EndpointSlice,
    facts: &ServiceFacts,
    problems: &mut Vec<Problem>,
) -> impl Iterator<Item = &'a Endpoint> {
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
    let usable = move |(index, _): &(usize, _)| rejected.binary_search(index).is_err();
    slice.endpoints.iter().enumerate().filter(usable).map(|(_, endpoint)| endpoint)
}

fn key(endpoint: &Endpoint, target: &EndpointPort) -> BackendKey {
    BackendKey { address: endpoint.address, port: target.port, protocol: target.protocol.number() }
}

/// Why an endpoint cannot have an address. An address of a node is fine: a Pod in its network namespace has it.
fn fault(address: IpAddr, family: Family, facts: &ServiceFacts) -> Option<&'static str> {
    if Family::of(address) != family {
        return Some("address of the other family");
    }
    let service = || facts.service_cidrs.iter().any(|cidr| cidr.contains(&address));
    unusable(address).or_else(|| service().then_some("address of a Service"))
}
