//! The plan of a node, kept from one round to the next. Owned by the agent's reconciler; [`crate::plan()`] is one round.
//!
//! Each Service is planned on its own ([`plan_service`]), and again only when it, one of its slices or the facts that all
//! plans depend on have changed; what differs in its plan is then carried into [`Desired`]. Invariant: whatever came
//! before, the result is that of a planner that starts from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use quilla_abi::config::flag;
use quilla_abi::service::scope;
use quilla_model::{Difference, ObjectName, ObjectRef, Problem, SharedMap, Snapshot};

use crate::claim::{Claims, Owner};
use crate::count::{compare, users};
use crate::desired::{BackendKey, Desired, Frontend, FrontendKey, FrontendKind, Marker, SetKey, Target};
use crate::facts::{LocalEndpoint, NodeFacts};
use crate::frontend::{ServicePlan, plan_service};
use crate::host_port::plan_host_ports;
use crate::maglev::Demand;
use crate::service_facts::ServiceFacts;
use crate::{node_port, parallel, route, taken, tunnel};

/// New plans that may wait for their place beside the old ones, so that there are never two of everything.
const AT_ONCE: usize = 2048;

/// Everything that was planned last, and for whom.
#[derive(Debug, Default)]
pub struct Planner {
    snapshot: Arc<Snapshot>,
    facts: Option<ServiceFacts>,
    plans: BTreeMap<Owner, Box<ServicePlan>>,
    /// Those of them with problems.
    faulty: BTreeSet<Owner>,
    claims: Claims,
    /// How many frontends have each set. Sets without one are not desired.
    users: SharedMap<Arc<SetKey>, u32>,
    demand: Demand,
    /// Plans that may choose the node itself for clients outside.
    node_backends: usize,
    /// How many plans have each marker.
    markers: SharedMap<Marker, u32>,
    network: Network,
    desired: Desired,
}

/// Nodes and routes, which are planned as a whole, and what they were planned from.
#[derive(Debug, Default)]
struct Network {
    facts: Option<NodeFacts>,
    markers: SharedMap<Marker, u32>,
    virtual_ips: BTreeSet<Marker>,
    /// Addresses that belong to somebody else and so have no markers.
    unmarked: BTreeSet<IpAddr>,
    /// Those of them that are Pods', and in which Pod CIDR.
    of_pods: BTreeMap<IpAddr, IpNet>,
    problems: Vec<Problem>,
}

/// Who came to use what, and who uses it no more, in one round.
#[derive(Default)]
struct Uses {
    backends: Vec<(BackendKey, bool)>,
    markers: Vec<(Marker, bool)>,
}

impl Planner {
    /// What the node's kernel should do now.
    ///
    /// Total: whatever cannot be done is left out and said in the problems; the rest works.
    pub fn plan(&mut self, snapshot: &Arc<Snapshot>, facts: &NodeFacts) -> (Desired, Vec<Problem>) {
        let service_facts = ServiceFacts::new(snapshot, facts);
        let frontends = self.desired.frontends.clone();
        let mut uses = Uses::default();
        let dirty: Vec<Owner> = self.dirty(snapshot, facts, &service_facts).into_iter().collect();
        for owners in dirty.chunks(AT_ONCE) {
            let plans = parallel::map(owners, |owner| plan_for(owner, snapshot, facts, &service_facts));
            for (owner, plan) in owners.iter().zip(plans) {
                self.replace(owner, plan, &mut uses);
            }
        }
        self.count(uses);
        self.plan_network(snapshot, facts);
        self.desired.endpoints =
            facts.endpoints.iter().map(|endpoint| (endpoint.ifindex, endpoint.clone())).collect();
        self.desired.maglev_density = self.demand.density();
        let former = (self.desired.config.frontend_port_min, self.desired.config.frontend_port_max);
        let unchanged =
            frontends.is_same(&self.desired.frontends) && self.facts.as_ref() == Some(&service_facts);
        self.desired.config = facts.config(snapshot);
        (self.desired.config.frontend_port_min, self.desired.config.frontend_port_max) =
            if unchanged { former } else { node_port::range(&self.desired.frontends, &service_facts) };
        if self.node_backends > 0 {
            self.desired.config.flags |= flag::NODE_BACKENDS;
        }
        self.facts = Some(service_facts);
        self.snapshot = Arc::clone(snapshot);
        (self.desired.clone(), self.problems())
    }

    fn problems(&self) -> Vec<Problem> {
        let of_plans = self.faulty.iter().filter_map(|owner| self.plans.get(owner));
        let mut found: Vec<Problem> = of_plans.flat_map(|plan| plan.problems.iter().cloned()).collect();
        found.extend(self.claims.conflicts());
        let of_pods = &self.network.of_pods;
        if !of_pods.is_empty() {
            let services = self.plans.iter().filter_map(|(owner, plan)| match owner {
                Owner::Service(name) => Some((name, &**plan)),
                Owner::Pod(..) => None,
            });
            found.extend(taken::problems(services, |address| of_pods.get(address).copied()));
        }
        found.sort_unstable();
        self.network.problems.iter().cloned().chain(found).collect()
    }

    /// Whose plan may be another one now.
    fn dirty(&self, snapshot: &Snapshot, facts: &NodeFacts, service_facts: &ServiceFacts) -> BTreeSet<Owner> {
        let service = |name: &ObjectName| Owner::Service(name.clone());
        let mut dirty: BTreeSet<Owner> = if self.facts.as_ref() == Some(service_facts) {
            let services = self.snapshot.services.difference(&snapshot.services);
            let slices = self.snapshot.slices.difference(&snapshot.slices);
            let changed =
                services.iter().map(|change| change.key).chain(slices.iter().map(|change| change.key));
            changed.map(service).collect()
        } else {
            self.plans.keys().cloned().chain(snapshot.services.keys().map(service)).collect()
        };
        // Few, so they are planned each time.
        let pods = self.plans.keys().rev().take_while(|owner| matches!(owner, Owner::Pod(..))).cloned();
        dirty.extend(pods);
        let with_ports = facts.endpoints.iter().filter(|endpoint| !endpoint.host_ports.is_empty());
        dirty.extend(with_ports.map(owner_of));
        dirty
    }

    /// Carries what differs between an owner's plans into what is desired; what has several users is counted later.
    fn replace(&mut self, owner: &Owner, new: Option<ServicePlan>, uses: &mut Uses) {
        let old = *self.plans.remove(owner).unwrap_or_default();
        let plan = new.unwrap_or_default();
        self.claim(owner, &old, &plan);
        for (key, set) in &plan.sets {
            if self.users.contains_key(key) && self.desired.sets.get(key) != Some(set) {
                self.desired.sets.insert(Arc::clone(key), Arc::clone(set));
            }
        }
        compare(&old.backends, &plan.backends, |backend, came| uses.backends.push((*backend, came)));
        compare(old.markers.keys(), plan.markers.keys(), |marker, came| uses.markers.push((*marker, came)));
        self.demand.replace(&old.maglev_members, &plan.maglev_members);
        self.node_backends += usize::from(plan.node_backends);
        self.node_backends -= usize::from(old.node_backends);
        if let Some((name, _)) = &old.health_check {
            self.desired.health_checks.remove(name);
        }
        self.desired.health_checks.extend(plan.health_check.clone());
        self.faulty.remove(owner);
        if !plan.problems.is_empty() {
            self.faulty.insert(owner.clone());
        }
        if plan != ServicePlan::default() {
            self.plans.insert(owner.clone(), Box::new(plan));
        }
    }

    fn claim(&mut self, owner: &Owner, old: &ServicePlan, new: &ServicePlan) {
        let differs = |key: &FrontendKey| old.frontends.get(key) != new.frontends.get(key);
        let keys = old.frontends.keys().chain(new.frontends.keys()).copied().filter(differs);
        for key in keys.collect::<BTreeSet<_>>() {
            let before = self.desired.frontends.get(&key).map(|frontend| Arc::clone(&frontend.set));
            if old.frontends.contains_key(&key) {
                self.claims.remove(key, owner, &mut self.desired.frontends);
            }
            if let Some(frontend) = new.frontends.get(&key) {
                let plans = &self.plans;
                let incumbent = |first: &Frontend| holder(plans, key, first);
                self.claims.add(key, (owner, frontend), incumbent, &mut self.desired.frontends);
            }
            self.follow(before, key, new);
        }
    }

    /// The set of a frontend is used, the one before it perhaps not any more.
    fn follow(&mut self, before: Option<Arc<SetKey>>, key: FrontendKey, plan: &ServicePlan) {
        let after = self.desired.frontends.get(&key).map(|frontend| Arc::clone(&frontend.set));
        if before == after {
            return;
        }
        if let Some(set) = after {
            *self.users.or_default(Arc::clone(&set)) += 1;
            let other =
                || self.desired.frontends.get(&key).map(|frontend| holder(&self.plans, key, frontend));
            let of_other = || self.plans.get(&other()?)?.sets.get(&set);
            if let Some(content) = plan.sets.get(&set).or_else(of_other).map(Arc::clone) {
                self.desired.sets.insert(set, content);
            }
        }
        if let Some(set) = before
            && let Some(users) = self.users.get_mut(&set)
        {
            *users -= 1;
            if *users == 0 {
                self.users.remove(&set);
                self.desired.sets.remove(&set);
            }
        }
    }

    fn count(&mut self, uses: Uses) {
        self.desired.backends.update(uses.backends, users);
        let before = self.markers.clone();
        self.markers.update(uses.markers, users);
        for Difference { key: marker, old, new } in before.difference(&self.markers) {
            if new.is_none() {
                self.desired.markers.remove(marker);
            } else if old.is_none() && !self.network.unmarked.contains(&marker.address) {
                self.desired.markers.insert(*marker, ());
            }
        }
    }
}

impl Planner {
    /// Nodes and routes: again only when something of the network or the set of virtual addresses changed.
    fn plan_network(&mut self, snapshot: &Snapshot, facts: &NodeFacts) {
        let facts = NodeFacts { endpoints: Vec::new(), ..facts.clone() };
        let outside = |marker: &&Marker| marker.scope == scope::EXTERNAL;
        let same_markers = self.markers.is_same(&self.network.markers);
        let same_cluster = self.snapshot.nodes == snapshot.nodes
            && self.snapshot.service_cidrs == snapshot.service_cidrs
            && self.network.facts.as_ref() == Some(&facts);
        if same_markers && same_cluster {
            return;
        }
        let virtual_ips: BTreeSet<Marker> = self.markers.keys().filter(outside).copied().collect();
        self.network.markers = self.markers.clone();
        if same_cluster && virtual_ips == self.network.virtual_ips {
            return;
        }
        let mut problems = Vec::new();
        let mut marked = virtual_ips.clone();
        self.desired.tunnels = tunnel::plan(snapshot, &facts, &mut problems);
        let routes = route::plan(snapshot, &facts, &mut marked, &mut problems);
        let unmarked: BTreeSet<IpAddr> =
            virtual_ips.difference(&marked).map(|marker| marker.address).collect();
        let of_pods = taken::of_pods(&unmarked, &routes);
        update(&mut self.desired.routes, routes);
        for &address in unmarked.symmetric_difference(&self.network.unmarked) {
            for scope in [scope::INTERNAL, scope::EXTERNAL] {
                let marker = Marker { address, scope };
                if self.markers.contains_key(&marker) && !unmarked.contains(&address) {
                    self.desired.markers.insert(marker, ());
                } else {
                    self.desired.markers.remove(&marker);
                }
            }
        }
        let markers = self.markers.clone();
        self.network = Network { facts: Some(facts), markers, virtual_ips, unmarked, of_pods, problems };
    }
}

/// Changes only what is not as it should be, so that the rest stays shared.
fn update(routes: &mut SharedMap<IpNet, Target>, wanted: BTreeMap<IpNet, Target>) {
    let gone: Vec<IpNet> = routes.keys().filter(|net| !wanted.contains_key(net)).copied().collect();
    for net in gone {
        routes.remove(&net);
    }
    for (net, target) in wanted {
        if routes.get(&net) != Some(&target) {
            routes.insert(net, target);
        }
    }
}

fn plan_for(
    owner: &Owner,
    snapshot: &Snapshot,
    facts: &NodeFacts,
    service_facts: &ServiceFacts,
) -> Option<ServicePlan> {
    match owner {
        Owner::Service(name) => {
            let service = snapshot.services.get(name)?;
            Some(plan_service(service, snapshot.slices_of(name), service_facts))
        }
        Owner::Pod(_, ifindex) => {
            let endpoint = facts.endpoints.iter().find(|endpoint| endpoint.ifindex == *ifindex)?;
            (owner_of(endpoint) == *owner).then(|| plan_host_ports(endpoint, service_facts))
        }
    }
}

fn owner_of(endpoint: &LocalEndpoint) -> Owner {
    Owner::Pod(endpoint.pod.clone(), endpoint.ifindex)
}

/// Who has a frontend that nobody else claimed so far.
fn holder(plans: &BTreeMap<Owner, Box<ServicePlan>>, key: FrontendKey, frontend: &Frontend) -> Owner {
    let ObjectRef { namespace, name, .. } = &frontend.set.owner;
    let name = ObjectName { namespace: Arc::clone(namespace), name: Arc::clone(name) };
    if frontend.kind != FrontendKind::HostPort {
        return Owner::Service(name);
    }
    let has = |plan: &ServicePlan| plan.frontends.get(&key) == Some(frontend);
    let of_pod = plans.range(Owner::Pod(name.clone(), 0)..=Owner::Pod(name.clone(), u32::MAX));
    let found = of_pod.into_iter().find(|(_, plan)| has(plan)).map(|(owner, _)| owner.clone());
    found.unwrap_or(Owner::Pod(name, 0))
}
