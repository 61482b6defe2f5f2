//! What one Service asks of this node: its frontends, the sets behind them, its backends (S1-S5, S13, S20-S27).
//!
//! Called by [`crate::plan()`] for each Service. Invariant: [`plan_service`] depends on nothing but its arguments, so that
//! its result can be kept for as long as these are the same; which of two Services has an address is settled later, by
//! [`crate::claim`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use litemap::{Entry, LiteMap};
use quilla_abi::service::{flag, scope};
use quilla_model::{
    EndpointSlice, Family, LoadBalancing, ObjectName, ObjectRef, Problem, Protocol, Reason, Service,
    ServicePort, TrafficPolicy,
};

use crate::address::{Addresses, addresses};
use crate::candidate::Endpoints;
use crate::choice::{Candidate, choose, has_any};
use crate::desired::{
    BackendKey, BackendSet, Frontend, FrontendKey, FrontendKind, HealthCheck, Marker, SetKey,
};
use crate::health::health_check;
use crate::service_facts::ServiceFacts;
use crate::weight::reduce;

/// What a Service, or a Pod with host ports, asks of this node. There are as many as Services, so each is kept as small
/// as it can be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServicePlan {
    /// Its sets, whether or not a frontend of this node has them.
    pub sets: LiteMap<Arc<SetKey>, Arc<BackendSet>>,
    /// What it would serve if nobody else claimed the same.
    pub frontends: LiteMap<FrontendKey, Frontend>,
    /// Addresses that are its own, whatever the port.
    pub markers: LiteMap<Marker, ()>,
    /// Every backend that flows may stay with; sorted, without duplicates.
    pub backends: Vec<BackendKey>,
    /// How many members each of its Maglev tables may have on any node.
    pub maglev_members: Vec<u32>,
    /// For clients outside it may choose the node itself.
    pub node_backends: bool,
    /// Its health check.
    pub health_check: Option<(ObjectName, HealthCheck)>,
    /// What had to be skipped.
    pub problems: Vec<Problem>,
}

/// The plan of one Service.
pub fn plan_service<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    facts: &ServiceFacts,
) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let problems = &mut plan.problems;
    let slices: Vec<_> = slices.into_iter().collect();
    let endpoints =
        [Family::V4, Family::V6].map(|family| (family, Endpoints::new(family, &slices, facts, problems)));
    let ports = served_ports(service, problems);
    let addresses = addresses(service, facts, problems);
    plan.add_markers(&addresses, facts);
    let mut local_ready = BTreeSet::new();
    for &port in &ports {
        for (family, endpoints) in &endpoints {
            if service.cluster_ip(*family).is_none() {
                continue;
            }
            let candidates = endpoints.candidates(port, facts);
            let local = candidates.iter().filter(|candidate| candidate.local && candidate.ready);
            local_ready.extend(local.map(|candidate| candidate.key.address));
            let served = Served { service, port, family: *family, facts, addresses: &addresses, candidates };
            served.add_to(&mut plan);
        }
    }
    plan.leave_overlay_alone(facts);
    let of_service = |protocol| ports.iter().any(|port| port.protocol == protocol);
    let served = endpoints.iter().filter(|(family, _)| service.cluster_ip(*family).is_some());
    plan.backends = served.flat_map(|(_, endpoints)| endpoints.existing(of_service)).collect();
    // What is wrong with an address is wrong with it in both scopes.
    plan.problems.sort_unstable();
    plan.problems.dedup();
    let outside = plan.frontends.keys().any(|key| key.scope == scope::EXTERNAL);
    plan.node_backends =
        outside && plan.backends.iter().any(|backend| facts.addresses.contains(&backend.address));
    plan.health_check = health_check(service, &local_ready).map(|check| (service.name.clone(), check));
    plan.shrink();
    plan
}

/// The ports that can be served. A second port of the same number or name and protocol is a mistake of the object.
fn served_ports<'a>(service: &'a Service, problems: &mut Vec<Problem>) -> Vec<&'a ServicePort> {
    let mut served: Vec<&ServicePort> = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let same = |other: &&ServicePort| {
            other.protocol == port.protocol && (other.port == port.port || other.name == port.name)
        };
        let reason = if port.port == 0 {
            Reason::Malformed
        } else if port.protocol == Protocol::Sctp {
            Reason::Unsupported
        } else if served.iter().any(same) {
            Reason::Duplicate
        } else {
            served.push(port);
            continue;
        };
        let object = ObjectRef::new("Service", &service.name);
        // An event calls the others skipped.
        let what = if reason == Reason::Unsupported { " is not served" } else { "" };
        let detail = format!("port {} {}{what}", port.port, port.protocol);
        problems.push(Problem::new(object, reason, detail));
    }
    served
}

impl ServicePlan {
    /// An address of the node has ports that are nobody's business here, so it has no marker.
    fn add_markers(&mut self, addresses: &Addresses, facts: &ServiceFacts) {
        for &(kind, address) in &addresses.virtual_ips {
            if facts.addresses.contains(&address) {
                continue;
            }
            self.markers.insert(Marker { address, scope: scope::INTERNAL }, ());
            if kind != FrontendKind::ClusterIp {
                self.markers.insert(Marker { address, scope: scope::EXTERNAL }, ());
            }
        }
    }

    /// Adds a frontend. Of two on one address and port the more entitled kind counts.
    fn claim(&mut self, key: FrontendKey, frontend: Frontend) {
        match self.frontends.entry(key) {
            Entry::Vacant(vacant) => drop(vacant.insert(frontend)),
            Entry::Occupied(mut occupied) => {
                let other = occupied.get();
                let lost = if other.kind <= frontend.kind { &frontend } else { other };
                if other.set.port_name != frontend.set.port_name {
                    let detail = format!("{} of another port is the same", describe(key, lost.kind));
                    self.problems.push(Problem::new(lost.set.owner.clone(), Reason::Duplicate, detail));
                }
                if other.kind > frontend.kind {
                    occupied.insert(frontend);
                }
            }
        }
    }
}

impl ServicePlan {
    /// No frontend takes the port that other nodes' packets arrive at.
    pub(crate) fn leave_overlay_alone(&mut self, facts: &ServiceFacts) {
        let overlay = |key: &FrontendKey| {
            let port = (key.port, key.protocol) == (facts.overlay_port, Protocol::Udp.number());
            port && facts.addresses.contains(&key.address)
        };
        let mut problems = BTreeSet::new();
        self.frontends.retain(|key, frontend| {
            let taken = overlay(key);
            if taken {
                let detail = format!("{} belongs to the overlay", describe(*key, frontend.kind));
                problems.insert(Problem::new(frontend.set.owner.clone(), Reason::Conflict, detail));
            }
            !taken
        });
        self.problems.extend(problems);
    }
}

impl ServicePlan {
    /// Gives back what was reserved for more.
    pub(crate) fn shrink(&mut self) {
        shrink(&mut self.sets);
        shrink(&mut self.frontends);
        shrink(&mut self.markers);
        self.backends.shrink_to_fit();
        self.problems.shrink_to_fit();
    }
}

fn shrink<K, V>(map: &mut LiteMap<K, V>) {
    let mut rows = std::mem::take(map).into_tuple_vec();
    rows.shrink_to_fit();
    *map = LiteMap::from_sorted_store_unchecked(rows);
}

/// A frontend in words.
pub(crate) fn describe(key: FrontendKey, kind: FrontendKind) -> String {
    let FrontendKey { address, port, protocol, .. } = key;
    let protocol = if protocol == Protocol::Udp.number() { Protocol::Udp } else { Protocol::Tcp };
    match kind {
        FrontendKind::NodePort => format!("nodePort {port} {protocol}"),
        FrontendKind::HostPort => format!("hostPort {port} {protocol}"),
        FrontendKind::ClusterIp => format!("clusterIP {address} port {port} {protocol}"),
        FrontendKind::LoadBalancer => format!("load balancer address {address} port {port} {protocol}"),
        FrontendKind::ExternalIp => format!("externalIP {address} port {port} {protocol}"),
        FrontendKind::Unknown => format!("{address} port {port} {protocol}"),
    }
}

/// One port of a Service in one family.
struct Served<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    family: Family,
    facts: &'a ServiceFacts,
    addresses: &'a Addresses,
    candidates: Vec<Candidate<'a>>,
}

impl Served<'_> {
    fn add_to(&self, plan: &mut ServicePlan) {
        let internal = self.add_set(plan, self.service.internal_policy, false);
        for (_, address) in self.virtual_ips(FrontendKind::ClusterIp) {
            let key = self.key(address, self.port.port, scope::INTERNAL);
            plan.claim(key, Frontend { set: Arc::clone(&internal), kind: FrontendKind::ClusterIp, flags: 0 });
        }
        if self.addresses.externally_accessible(self.service, self.port, self.family) {
            let outside = self.add_set(plan, self.service.external_policy, true);
            // A client inside is not bound to this node's endpoints (S26).
            let inside = self.add_set(plan, TrafficPolicy::Cluster, false);
            self.add_external_ips(plan, &outside, &inside);
            self.add_node_port(plan, &outside, &inside);
        }
    }

    fn add_external_ips(&self, plan: &mut ServicePlan, outside: &Arc<SetKey>, inside: &Arc<SetKey>) {
        let guard = self.guard();
        for (kind, flags) in [(FrontendKind::LoadBalancer, guard), (FrontendKind::ExternalIp, 0)] {
            for (_, address) in self.virtual_ips(kind) {
                for (scope, set) in [(scope::EXTERNAL, outside), (scope::INTERNAL, inside)] {
                    let key = self.key(address, self.port.port, scope);
                    plan.claim(key, Frontend { set: Arc::clone(set), kind, flags });
                }
            }
        }
    }

    fn add_node_port(&self, plan: &mut ServicePlan, outside: &Arc<SetKey>, inside: &Arc<SetKey>) {
        let Some(node_port) = self.service.node_port(self.port) else { return };
        let kind = FrontendKind::NodePort;
        let of_family = |address: &&IpAddr| Family::of(**address) == self.family;
        for &address in self.facts.node_port_addresses.iter().filter(of_family) {
            for (scope, set) in [(scope::EXTERNAL, outside), (scope::INTERNAL, inside)] {
                let key = self.key(address, node_port, scope);
                plan.claim(key, Frontend { set: Arc::clone(set), kind, flags: 0 });
            }
        }
        if self.family == Family::V4 && self.facts.localhost_node_ports {
            let key = self.key(Ipv4Addr::LOCALHOST.into(), node_port, scope::INTERNAL);
            plan.claim(key, Frontend { set: Arc::clone(inside), kind, flags: 0 });
        }
    }

    fn key(&self, address: IpAddr, port: u16, scope: u8) -> FrontendKey {
        FrontendKey { address, port, protocol: self.port.protocol.number(), scope }
    }

    fn virtual_ips(&self, wanted: FrontendKind) -> impl Iterator<Item = (FrontendKind, IpAddr)> {
        let of_family = move |(kind, address): &&(FrontendKind, IpAddr)| {
            *kind == wanted && Family::of(*address) == self.family
        };
        self.addresses.virtual_ips.iter().filter(of_family).copied()
    }

    /// The flags of load balancer addresses, which alone are guarded (S24).
    fn guard(&self) -> u32 {
        let ranges = || self.addresses.source_ranges.iter().filter(|range| self.same_family(range));
        let own = |address: &IpAddr| ranges().any(|range| range.contains(address));
        if ranges().next().is_none() {
            0
        } else if self.facts.addresses.iter().any(own) {
            flag::SOURCE_RANGES | flag::NODE_ALLOWED
        } else {
            flag::SOURCE_RANGES
        }
    }

    fn same_family(&self, range: &ipnet::IpNet) -> bool {
        Family::of(range.addr()) == self.family
    }

    /// The set of a policy, for clients outside or inside; made when it is first asked for.
    fn add_set(&self, plan: &mut ServicePlan, policy: TrafficPolicy, outside: bool) -> Arc<SetKey> {
        let key = self.set_key(policy, outside);
        if let Some((known, _)) =
            plan.sets.find_index(&key).ok().and_then(|index| plan.sets.get_indexed(index))
        {
            return Arc::clone(known);
        }
        let key = Arc::new(key);
        if key.maglev {
            plan.maglev_members.push(u32::try_from(self.candidates.len()).unwrap_or(u32::MAX));
        }
        plan.sets.insert(Arc::clone(&key), Arc::new(self.set(&key)));
        key
    }

    /// Clients outside get a table that is the same on every node, because any node may have to go on with their flows.
    fn set_key(&self, policy: TrafficPolicy, outside: bool) -> SetKey {
        SetKey {
            owner: ObjectRef::new("Service", &self.service.name),
            port_name: Arc::clone(&self.port.name),
            protocol: self.port.protocol.number(),
            family: self.family,
            policy,
            maglev: outside || self.service.load_balancing == LoadBalancing::Maglev,
        }
    }

    fn set(&self, key: &SetKey) -> BackendSet {
        let mut members = choose(&self.candidates, key.policy, self.facts.place());
        reduce(&mut members);
        members.shrink_to_fit();
        let mut flags = 0;
        if key.maglev {
            flags |= flag::MAGLEV;
        } else if self.service.load_balancing == LoadBalancing::LeastConnections {
            flags |= flag::LEAST_CONNECTIONS;
        }
        let hidden = members.is_empty() && key.policy == TrafficPolicy::Local && has_any(&self.candidates);
        if hidden && !self.facts.reject_without_local {
            flags |= flag::DROP_WHEN_EMPTY;
        }
        let guarded = self.virtual_ips(FrontendKind::LoadBalancer).next().is_some()
            && [
                self.set_key(self.service.external_policy, true),
                self.set_key(TrafficPolicy::Cluster, false),
            ]
            .contains(key);
        let ranges = self.addresses.source_ranges.iter().filter(|range| guarded && self.same_family(range));
        BackendSet {
            members,
            found: None,
            flags,
            affinity_seconds: self.service.affinity_seconds.unwrap_or(0),
            // A table is the same on every node, however long a node knows an endpoint.
            slow_start_seconds: if key.maglev { 0 } else { self.service.slow_start_seconds },
            source_ranges: ranges.copied().collect(),
        }
    }
}

#[cfg(test)]
#[path = "frontend_tests.rs"]
mod tests;
