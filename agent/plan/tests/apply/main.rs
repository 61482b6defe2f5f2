//! Properties of layouts, differences and their application, on random histories of a small cluster.

mod flows;
mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kernel::Kernel;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, proptest};
use quilla_abi::affinity::MemberKey;
use quilla_abi::backend::Backend;
use quilla_abi::service::{Service as Row, ServiceKey, SourceRangeKey};
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Node, ObjectName, Protocol, Reason, Service, ServicePort,
    ServiceType, Snapshot, TrafficPolicy,
};
use quilla_plan::family::AddressFamily;
use quilla_plan::pool::QUARANTINE;
use quilla_plan::{Desired, FamilyTables, Layout, LocalEndpoint, NodeFacts, Planner, Tables, diff, plan};

/// Which of a few possible things exist: small numbers, so that histories collide.
#[derive(Clone, Debug)]
struct World {
    services: Vec<Intent>,
    nodes: Vec<u8>,
    pods: Vec<u8>,
}

/// A Service: its number, what it asks for ([`shape`]), and its endpoints with their readiness.
type Intent = (u8, u8, Vec<(u8, bool)>);

/// Bits of what a Service asks for.
mod shape {
    pub(super) const AFFINITY: u8 = 1;
    /// A load balancer address with one source range, or two.
    pub(super) const GUARDED: u8 = 2;
    pub(super) const MORE_RANGES: u8 = 4;
    /// An external address that every second Service wants.
    pub(super) const CONTESTED: u8 = 8;
    pub(super) const SLOW_START: u8 = 16;
    pub(super) const LOCAL: u8 = 32;
}

fn worlds() -> impl Strategy<Value = World> {
    let endpoints = vec((0..12u8, any::<bool>()), 0..8);
    let services = vec((0..6u8, 0..64u8, endpoints), 0..6);
    (services, vec(0..5u8, 0..5), vec(0..6u8, 0..6)).prop_map(|(services, nodes, pods)| World {
        services,
        nodes,
        pods,
    })
}

/// Changes a snapshot into that of a world, as a watch would: what is equal stays the same object.
fn become_world(snapshot: &mut Snapshot, world: &World) {
    let mut new = Snapshot::default();
    for (number, shape, endpoints) in &world.services {
        add_service(&mut new, *number, *shape, endpoints);
    }
    for difference in snapshot.services.clone().difference(&new.services) {
        match difference.new {
            Some(service) => drop(snapshot.services.insert(difference.key.clone(), Arc::clone(service))),
            None => drop(snapshot.services.remove(difference.key)),
        }
    }
    for difference in snapshot.slices.clone().difference(&new.slices) {
        match difference.new {
            Some(slices) => drop(snapshot.slices.insert(difference.key.clone(), slices.clone())),
            None => drop(snapshot.slices.remove(difference.key)),
        }
    }
    snapshot.nodes.clear();
    for number in &world.nodes {
        let node = Node {
            name: format!("node-{number}"),
            addresses: vec![[192, 0, 2, *number + 1].into()],
            pod_cidrs: vec![format!("10.244.{number}.0/24").parse().unwrap()],
            zone: None,
            leaving: false,
        };
        snapshot.nodes.insert(node.name.clone(), Arc::new(node));
    }
}

fn facts(world: &World) -> NodeFacts {
    let mut facts = NodeFacts::new("node-0");
    facts.endpoints = world.pods.iter().map(|&number| pod(number)).collect();
    facts
}

fn desired(world: &World) -> Desired {
    let mut snapshot = Snapshot::default();
    become_world(&mut snapshot, world);
    plan(&snapshot, &facts(world)).0
}

fn add_service(snapshot: &mut Snapshot, number: u8, shape: u8, endpoints: &[(u8, bool)]) {
    let name = ObjectName::new("test", format!("service-{number}"));
    let endpoint = |address: std::net::IpAddr, ready| Endpoint {
        address,
        ready,
        serving: true,
        terminating: false,
        node: None,
        pod: None,
        hints: None,
    };
    for family in [Family::V4, Family::V6] {
        let address = |host: u8| match family {
            Family::V4 => [10, 244, 9, host].into(),
            Family::V6 => [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host].into(),
        };
        let slice = EndpointSlice {
            name: ObjectName::new("test", format!("service-{number}-{family:?}")),
            service: name.clone(),
            family,
            ports: vec![EndpointPort { name: "".into(), port: 8080, protocol: Protocol::Tcp }],
            endpoints: endpoints.iter().map(|&(host, ready)| endpoint(address(host), ready)).collect(),
            weight: 1,
        };
        snapshot.slices.or_default(name.clone()).insert(slice.name.name.clone(), Arc::new(slice));
    }
    let has = |bit| shape & bit != 0;
    let mut service = Service {
        cluster_ips: vec![
            [10, 96, 0, number].into(),
            [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number].into(),
        ],
        ports: vec![ServicePort { name: "".into(), port: 80, protocol: Protocol::Tcp, node_port: None }],
        affinity_seconds: has(shape::AFFINITY).then_some(60),
        slow_start_seconds: if has(shape::SLOW_START) { 30 } else { 0 },
        ..Service::new(name.clone())
    };
    if has(shape::LOCAL) {
        (service.internal_policy, service.external_policy) = (TrafficPolicy::Local, TrafficPolicy::Local);
    }
    if has(shape::CONTESTED) {
        service.external_ips = vec![[203, 0, 113, number % 2].into()];
    }
    if has(shape::GUARDED) {
        service.kind = ServiceType::LoadBalancer;
        service.load_balancer_ips = vec![[198, 51, 100, number].into()];
        service.source_ranges = vec!["192.0.2.0/24".parse().unwrap()];
    }
    if has(shape::MORE_RANGES) {
        service.source_ranges.push("172.16.0.0/12".parse().unwrap());
    }
    snapshot.services.insert(name, Arc::new(service));
}

fn pod(number: u8) -> LocalEndpoint {
    LocalEndpoint {
        pod: ObjectName::new("test", format!("pod-{number}")),
        ifindex: 100 + u32::from(number),
        pod_mac: [2, 0, 0, 0, 0, number],
        host_mac: [2, 0, 0, 0, 1, number],
        ipv4: Some([10, 244, 0, number + 2].into()),
        ipv6: None,
        host_ports: Vec::new(),
    }
}

/// Whatever kept its meaning kept its numbers.
fn assert_stable<A: AddressFamily>(old: &Tables, new: &Tables) {
    let (before, after) = (A::tables(old), A::tables(new));
    for (backend, id) in before.backend_ids.iter() {
        assert!(after.backend_ids.get(backend).is_none_or(|now| now == id), "{backend:?}");
    }
    for (key, row) in after.services.iter() {
        let Some(previous) = before.services.get(key) else { continue };
        let equal = old.slots_of(previous) == new.slots_of(row) && previous.id == row.id;
        assert!(!equal || previous.slot_base == row.slot_base, "{key:?}");
    }
}

/// A number means the same thing, or nothing, for as long as it rests.
fn assert_rested(history: &[Arc<Tables>], new: &Tables) {
    let old = history.iter().rev().take(usize::try_from(QUARANTINE).unwrap());
    for old in old {
        for (id, backend) in new.v4.backends.iter() {
            assert!(old.v4.backends.get(id).is_none_or(|before| before == backend), "backend {id}");
        }
        for (slot, node) in &new.nodes {
            assert!(old.nodes.get(slot).is_none_or(|before| before == node), "node slot {slot}");
        }
        for (ifindex, interface) in &new.interfaces {
            let another = old.interfaces.iter().any(|(i, row)| i != ifindex && row.id == interface.id);
            assert!(!another, "endpoint {}", interface.id);
        }
        let before = slots_of(old);
        for (slot, id) in slots_of(new) {
            assert!(before.get(&slot).is_none_or(|before| *before == id), "slot {slot}");
        }
    }
}

/// The set and the backend of each slot that a row names.
fn slots_of(tables: &Tables) -> BTreeMap<u32, (u32, u32)> {
    let rows = tables.v4.services.values().chain(tables.v6.services.values());
    let slots = |row: &Row| {
        let slots = tables.slots_of(row).expect("a whole range");
        (row.slot_base..).zip(slots.iter().map(|&id| (row.id, id)).collect::<Vec<_>>())
    };
    rows.flat_map(slots).collect()
}

/// What the rows of a family do, without the numbers: for each frontend its backends by slot, how they are chosen, who
/// may ask, and who may come back.
type Meaning<A> =
    BTreeMap<ServiceKey<A>, (Vec<Backend<A>>, u32, u32, u32, Vec<(u32, A)>, BTreeSet<Backend<A>>)>;

fn meaning<A: AddressFamily>(tables: &Tables) -> Meaning<A> {
    let of_family = A::tables(tables);
    let mean = |(key, row): (&ServiceKey<A>, &Row)| {
        let slots = tables.slots_of(row).expect("a whole range");
        let backends = slots.iter().map(|id| of_family.backends[id]).collect();
        let mut ranges: Vec<_> = of_family
            .source_ranges
            .keys()
            .filter(|range| range.id == row.id.to_be_bytes())
            .map(|range| (range.prefix_len, range.addr))
            .collect();
        ranges.sort_unstable();
        let members = tables.affinity_members.keys().filter(|member| member.service == row.id);
        let members = members.map(|member| of_family.backends[&member.backend]).collect();
        (*key, (backends, row.flags, row.affinity_seconds, row.slow_start_seconds, ranges, members))
    };
    of_family.services.iter().map(mean).collect()
}

fn assert_same_meaning(one: &Tables, other: &Tables) {
    assert_eq!(meaning::<[u8; 4]>(one), meaning::<[u8; 4]>(other));
    assert_eq!(meaning::<[u8; 16]>(one), meaning::<[u8; 16]>(other));
    assert_eq!(one.v4.routes.keys().count(), other.v4.routes.keys().count());
    assert_eq!(one.v4.backend_ids.len(), other.v4.backend_ids.len());
    assert_eq!(one.affinity_members.len(), other.affinity_members.len());
    assert_eq!(one.v4.source_ranges.len(), other.v4.source_ranges.len());
}

/// Promise 3: one endpoint more costs a handful of rows, whatever else there is.
#[test]
fn a_small_change_is_a_small_change() {
    let services: Vec<_> = (0..6).map(|service| (service, 0, vec![(0, true), (1, true)])).collect();
    let mut world = World { services, nodes: vec![0, 1, 2], pods: vec![0, 1] };
    let mut layout = Layout::default();
    let (old, _) = layout.lay_out(&desired(&world));
    world.services[3].2.push((2, true));
    let (new, _) = layout.lay_out(&desired(&world));
    let rows: Vec<_> = diff(&old, &new).iter().map(|step| (step.map(), step.rows())).collect();
    let expected = [
        ("backends_v4", 1),
        ("backends_v6", 1),
        ("backend_ids_v4", 1),
        ("backend_ids_v6", 1),
        ("slots", 6),
        ("services_v4", 1),
        ("services_v6", 1),
    ];
    assert_eq!(rows, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// apply(diff(a, b), a) = b, each row on the way leaves a consistent kernel, and numbers are stable and rested.
    #[test]
    fn every_state_on_the_way_is_consistent(history in vec(worlds(), 1..8)) {
        let mut kernel = Kernel::default();
        let mut layout = Layout::default();
        let mut laid = vec![];
        for world in &history {
            let old = Arc::clone(layout.tables());
            let (new, problems) = layout.lay_out(&desired(world));
            assert_eq!(problems, []);
            assert_stable::<[u8; 4]>(&old, &new);
            assert_stable::<[u8; 16]>(&old, &new);
            assert_rested(&laid, &new);
            kernel.apply(&diff(&old, &new), usize::MAX);
            assert_eq!(kernel.dump(), *new);
            laid.push(new);
        }
        let last = layout.tables();
        assert_eq!(diff(last, last), []);
    }

    /// A planner and a layout that follow a history one change at a time are where those are that start from nothing.
    #[test]
    fn keeping_the_plan_is_planning_anew(history in vec(worlds(), 1..8)) {
        let (mut planner, mut layout, mut kernel) = (Planner::default(), Layout::default(), Kernel::default());
        let mut snapshot = Snapshot::default();
        for world in &history {
            become_world(&mut snapshot, world);
            let (kept, problems) = planner.plan(&Arc::new(snapshot.clone()), &facts(world));
            let (anew, anew_problems) = plan(&snapshot, &facts(world));
            assert_eq!(kept, anew);
            assert_eq!(problems, anew_problems);
            assert!(problems.iter().all(|problem| problem.reason == Reason::Conflict), "{problems:?}");

            let old = Arc::clone(layout.tables());
            let (new, _) = layout.lay_out(&kept);
            assert_same_meaning(&new, &Layout::default().lay_out(&anew).0);
            kernel.apply(&diff(&old, &new), usize::MAX);
            assert_eq!(kernel.dump(), *new);
        }
    }

    /// S50: a new layout made from the maps alone is the same layout.
    #[test]
    fn a_restart_changes_nothing(before in vec(worlds(), 1..6)) {
        let mut layout = Layout::default();
        for world in &before {
            layout.lay_out(&desired(world));
        }
        let mut recovered = Layout::recover(layout.tables());
        assert_eq!(recovered.tables(), layout.tables());
        let (again, _) = recovered.lay_out(&desired(before.last().unwrap()));
        assert_eq!(&again, layout.tables());
    }

    /// An agent that dies anywhere in an apply is continued by the next one, and no flow of a backend that went can
    /// take another one for it: its generation ended before its id is given out again.
    #[test]
    fn a_death_in_the_middle_is_repaired(before in worlds(), interrupted in worlds(), after in worlds(), share in 0.0..1.0f64) {
        let mut kernel = Kernel::default();
        let mut layout = Layout::default();
        let (old, _) = layout.lay_out(&desired(&before));
        kernel.apply(&diff(&Tables::default(), &old), usize::MAX);
        let started: BTreeMap<_, _> = kernel.v4.backends.clone();

        let (new, _) = layout.lay_out(&desired(&interrupted));
        let steps = diff(&old, &new);
        let rows: usize = steps.iter().map(quilla_plan::Step::rows).sum();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
            reason = "a share of a small count")]
        kernel.apply(&steps, (rows as f64 * share) as usize);

        let found = kernel.dump();
        let (repaired, _) = Layout::recover(&found).lay_out(&desired(&after));
        kernel.apply(&diff(&found, &repaired), usize::MAX);
        assert_eq!(kernel.dump(), *repaired);
        for (id, backend) in started {
            let ended = kernel.epochs.contains_key(&(quilla_abi::epoch::BACKENDS_V4 + id));
            let same = kernel.v4.backends.get(&id) == Some(&backend);
            assert!(same || ended, "backend {id} became {:?} in one generation", kernel.v4.backends.get(&id));
        }
    }

    /// Whatever somebody wrote into the maps: nothing panics, no two things share a number, and what is laid out next
    /// is what is desired.
    #[test]
    fn corrupt_maps_are_survived(before in worlds(), after in worlds(), damage in vec(any::<[u32; 4]>(), 0..6)) {
        let (laid, _) = Layout::default().lay_out(&desired(&before));
        let mut found = Tables::clone(&laid);
        for harm in damage {
            corrupt(&mut found, harm);
        }
        let mut layout = Layout::recover(&found);
        for _ in 0..=QUARANTINE {
            let (tables, problems) = layout.lay_out(&desired(&after));
            assert_eq!(problems, []);
            assert_disjoint(&tables);
        }
        let (fresh, _) = Layout::default().lay_out(&desired(&after));
        assert_same_meaning(layout.tables(), &fresh);
    }
}

/// Damages one row, found by its position.
fn corrupt(tables: &mut Tables, [what, which, first, second]: [u32; 4]) {
    let position = |length: usize| if length == 0 { 0 } else { which as usize % length };
    match what % 8 {
        0 => harm_service(&mut tables.v4, which, |row| (row.slot_base, row.slot_count) = (first, second)),
        1 => harm_service(&mut tables.v6, which, |row| row.id = first % 8),
        2 => {
            let ids = tables.v4.backend_ids.clone();
            if let Some((row, _)) = ids.iter().nth(position(ids.len())) {
                tables.v4.backend_ids.insert(*row, first % 8);
            }
        }
        3 => {
            tables.v4.backends.insert(first % 8, Backend::default());
            tables.v4.backends.remove(&(second % 8));
        }
        4 => {
            let interfaces = tables.interfaces.len();
            if let Some(row) = tables.interfaces.values_mut().nth(position(interfaces)) {
                row.id = first % 4 + (second % 2) * 5000;
            }
        }
        5 => {
            tables.affinity_members.insert(MemberKey { service: first % 8, backend: second % 8 }, 1);
            tables.v4.source_ranges.insert(
                SourceRangeKey { id: [0, 0, 0, which.to_be_bytes()[3] % 8], ..Default::default() },
                1,
            );
        }
        6 => {
            let slots = tables.slots.clone();
            if let Some((base, slots)) = slots.iter().nth(position(slots.len())) {
                tables.slots.insert(*base, vec![second; slots.len()].into());
            }
        }
        _ => {
            tables.nodes.insert(first % 4, quilla_abi::node::Node::default());
            tables.node_slots.insert([7; 16], second);
        }
    }
}

fn harm_service<A: AddressFamily>(tables: &mut FamilyTables<A>, which: u32, harm: impl FnOnce(&mut Row)) {
    let services = tables.services.clone();
    if let Some((key, row)) = services.iter().nth(which as usize % services.len().max(1)) {
        let mut row = *row;
        harm(&mut row);
        tables.services.insert(*key, row);
    }
}

fn assert_disjoint(tables: &Tables) {
    let mut taken = BTreeSet::new();
    for (base, slots) in tables.slots.iter() {
        let length = u32::try_from(slots.len()).unwrap();
        assert!((*base..base + length).all(|slot| taken.insert(slot)), "slot ranges overlap");
    }
    let rows = || tables.v4.services.values().chain(tables.v6.services.values());
    let mut ranges = BTreeMap::new();
    for row in rows().filter(|row| row.id != 0) {
        let range = ranges.entry(row.id).or_insert((row.slot_base, row.slot_count));
        assert_eq!(*range, (row.slot_base, row.slot_count), "a set has one range");
    }
    assert_eq!(tables.v4.backends.len(), tables.v4.backend_ids.len(), "backend ids");
    let endpoints: BTreeSet<_> = tables.interfaces.values().map(|row| row.id).collect();
    assert_eq!(endpoints.len(), tables.interfaces.len(), "endpoint ids");
    assert!(!tables.nodes.contains_key(&0) && !endpoints.contains(&0), "0 is nobody's");
}
