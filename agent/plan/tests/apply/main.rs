//! Properties of layouts, differences and their application, on random histories of a small cluster.

mod kernel;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kernel::Kernel;
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, proptest};
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Node, ObjectName, Protocol, Service, ServicePort, Snapshot,
};
use quilla_plan::pool::QUARANTINE;
use quilla_plan::{Desired, FamilyTables, Layout, LocalEndpoint, NodeFacts, Tables, diff, plan};

/// Which of a few possible things exist: small numbers, so that histories collide.
#[derive(Clone, Debug)]
struct World {
    services: Vec<(u8, Vec<(u8, bool)>)>,
    nodes: Vec<u8>,
    pods: Vec<u8>,
}

fn worlds() -> impl Strategy<Value = World> {
    let endpoints = vec((0..12u8, any::<bool>()), 0..8);
    let services = vec((0..6u8, endpoints), 0..6);
    (services, vec(0..5u8, 0..5), vec(0..6u8, 0..6)).prop_map(|(services, nodes, pods)| World {
        services,
        nodes,
        pods,
    })
}

fn desired(world: &World) -> Desired {
    let mut snapshot = Snapshot::default();
    for (number, endpoints) in &world.services {
        add_service(&mut snapshot, *number, endpoints);
    }
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
    let mut facts = NodeFacts::new("node-0");
    facts.endpoints = world.pods.iter().map(|&number| pod(number)).collect();
    let (desired, problems) = plan(&snapshot, &facts);
    assert_eq!(problems, []);
    desired
}

fn add_service(snapshot: &mut Snapshot, number: u8, endpoints: &[(u8, bool)]) {
    let name = ObjectName::new("test", format!("service-{number}"));
    let endpoint = |address: std::net::IpAddr, ready| Endpoint {
        address,
        ready,
        serving: true,
        terminating: false,
        node: None,
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
            ports: vec![EndpointPort { name: String::new(), port: 8080, protocol: Protocol::Tcp }],
            endpoints: endpoints.iter().map(|&(host, ready)| endpoint(address(host), ready)).collect(),
            weight: 1,
        };
        snapshot.slices.or_default(name.clone()).insert(slice.name.name.clone(), Arc::new(slice));
    }
    let service = Service {
        cluster_ips: vec![
            [10, 96, 0, number].into(),
            [0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number].into(),
        ],
        ports: vec![ServicePort { name: String::new(), port: 80, protocol: Protocol::Tcp, node_port: None }],
        ..Service::new(name.clone())
    };
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
fn assert_stable<A: Ord + Copy + std::fmt::Debug + PartialEq>(old: &FamilyTables<A>, new: &FamilyTables<A>) {
    for (backend, id) in &new.backend_ids {
        assert!(old.backend_ids.get(backend).is_none_or(|before| before == id), "{backend:?}");
    }
    for (key, laid) in &new.services {
        let Some(before) = old.services.get(key) else { continue };
        assert_eq!(before.row.id, laid.row.id, "{key:?}");
        if before.slots == laid.slots {
            assert_eq!(before.row, laid.row, "{key:?}");
        }
    }
}

/// A number means the same thing, or nothing, for as long as it rests.
fn assert_rested(history: &[Arc<Tables>], new: &Tables) {
    let old = history.iter().rev().take(usize::try_from(QUARANTINE).unwrap());
    for old in old {
        for (id, backend) in &new.v4.backends {
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

fn slots_of(tables: &Tables) -> BTreeMap<u32, (u32, u32)> {
    let rows = tables.v4.services.values().chain(tables.v6.services.values());
    rows.flat_map(|laid| (laid.row.slot_base..).zip(laid.slots.iter().map(|&id| (laid.row.id, id)))).collect()
}

/// Promise 3: one endpoint more costs a handful of rows, whatever else there is.
#[test]
fn a_small_change_is_a_small_change() {
    let services: Vec<_> = (0..6).map(|service| (service, vec![(0, true), (1, true)])).collect();
    let mut world = World { services, nodes: vec![0, 1, 2], pods: vec![0, 1] };
    let mut layout = Layout::default();
    let (old, _) = layout.lay_out(&desired(&world));
    world.services[3].1.push((2, true));
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
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// apply(diff(a, b), a) = b, each row on the way leaves a consistent kernel, and numbers are stable and rested.
    #[test]
    fn every_state_on_the_way_is_consistent(history in vec(worlds(), 1..12)) {
        let mut kernel = Kernel::default();
        let mut layout = Layout::default();
        let mut laid = vec![];
        for world in &history {
            let old = Arc::clone(layout.tables());
            let (new, problems) = layout.lay_out(&desired(world));
            assert_eq!(problems, []);
            assert_stable(&old.v4, &new.v4);
            assert_stable(&old.v6, &new.v6);
            assert_rested(&laid, &new);
            kernel.apply(&diff(&old, &new), usize::MAX);
            assert_eq!(kernel.dump(), *new);
            laid.push(new);
        }
        let last = layout.tables();
        assert_eq!(diff(last, last), []);
    }

    /// A new layout made from the maps alone is the same layout.
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
        let meaning = |tables: &Tables| tables.v4.services.keys().copied().collect::<Vec<_>>();
        assert_eq!(meaning(layout.tables()), meaning(&fresh));
        assert_eq!(layout.tables().v4.routes.len(), fresh.v4.routes.len());
    }
}

/// Damages one row, found by its position.
fn corrupt(tables: &mut Tables, [what, which, first, second]: [u32; 4]) {
    let position = |length: usize| if length == 0 { 0 } else { which as usize % length };
    match what % 6 {
        0 => {
            let services = tables.v4.services.len();
            if let Some(laid) = tables.v4.services.values_mut().nth(position(services)) {
                (laid.row.slot_base, laid.row.slot_count) = (first, second);
            }
        }
        1 => {
            let services = tables.v6.services.len();
            if let Some(laid) = tables.v6.services.values_mut().nth(position(services)) {
                laid.row.id = first % 8;
                laid.slots = vec![second; laid.slots.len()].into();
            }
        }
        2 => {
            let ids = tables.v4.backend_ids.len();
            if let Some(id) = tables.v4.backend_ids.values_mut().nth(position(ids)) {
                *id = first % 8;
            }
        }
        3 => {
            tables.v4.backends.insert(first % 8, quilla_abi::backend::Backend::default());
            tables.v4.backends.remove(&(second % 8));
        }
        4 => {
            let interfaces = tables.interfaces.len();
            if let Some(row) = tables.interfaces.values_mut().nth(position(interfaces)) {
                row.id = first % 4 + (second % 2) * 5000;
            }
        }
        _ => {
            tables.nodes.insert(first % 4, quilla_abi::node::Node::default());
            tables.node_slots.insert([7; 16], second);
        }
    }
}

fn assert_disjoint(tables: &Tables) {
    let rows = || {
        let all = tables.v4.services.values().chain(tables.v6.services.values());
        all.filter(|laid| laid.row != quilla_abi::service::Service::default())
    };
    let slots: usize = rows().map(|laid| laid.slots.len()).sum();
    assert_eq!(slots_of(tables).len(), slots, "slot ranges overlap");
    let ids: BTreeSet<_> = rows().map(|laid| laid.row.id).collect();
    assert_eq!(ids.len(), rows().count(), "service ids");
    assert_eq!(tables.v4.backends.len(), tables.v4.backend_ids.len(), "backend ids");
    let endpoints: BTreeSet<_> = tables.interfaces.values().map(|row| row.id).collect();
    assert_eq!(endpoints.len(), tables.interfaces.len(), "endpoint ids");
    assert!(!tables.nodes.contains_key(&0) && !endpoints.contains(&0) && !ids.contains(&0), "0 is nobody's");
}
