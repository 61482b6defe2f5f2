//! What flows depend on, over histories of snapshots at their times: a backend's generation ends when the backend has
//! been missing for a while, and for no other reason.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};
use quilla_abi::backend::Backend;
use quilla_abi::epoch;
use quilla_model::{
    EndpointPort, EndpointSlice, ObjectName, Protocol, Service, ServicePort, ServiceType, Snapshot,
};
use quilla_plan::grace::PERIOD;
use quilla_plan::{Grace, Layout, NodeFacts, Planner, Step, diff, plan};

use crate::kernel::Kernel;
use crate::{Intent, World, add_service, become_world, facts, worlds};

/// The rounds of one node.
struct Rounds {
    planner: Planner,
    grace: Grace,
    layout: Layout,
    kernel: Kernel,
    now: Instant,
}

impl Rounds {
    fn new() -> Self {
        Self {
            planner: Planner::default(),
            grace: Grace::default(),
            layout: Layout::default(),
            kernel: Kernel::default(),
            now: Instant::now(),
        }
    }

    /// One round after so long; what it wrote.
    fn after(&mut self, pause: Duration, snapshot: &Snapshot, facts: &NodeFacts) -> Vec<Step> {
        self.now += pause;
        let (mut desired, _) = self.planner.plan(&Arc::new(snapshot.clone()), facts);
        self.grace.extend(&mut desired, self.now);
        let old = Arc::clone(self.layout.tables());
        let (new, _) = self.layout.lay_out(&desired);
        let steps = diff(&old, &new);
        self.kernel.apply(&steps, usize::MAX);
        assert_eq!(self.kernel.dump(), *new);
        steps
    }

    /// The backends of IPv4 with their ids and how often these were started anew.
    fn generations(&self) -> BTreeMap<Backend<[u8; 4]>, (u32, u32)> {
        let epoch = |id: u32| self.kernel.epochs.get(&(epoch::BACKENDS_V4 + id)).copied().unwrap_or_default();
        self.kernel.v4.backend_ids.iter().map(|(backend, &id)| (*backend, (id, epoch(id)))).collect()
    }
}

/// A Service of the first world with ports of these names, 80 and on, and its slices with ports of those.
fn named(service: &[&str], slices: &[&str]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    add_service(&mut snapshot, 1, 0, &[(1, true), (2, false)]);
    let name = ObjectName::new("test", "service-1");
    let ports = service.iter().zip(80..).map(|(name, port)| ServicePort {
        name: (*name).into(),
        port,
        protocol: Protocol::Tcp,
        node_port: None,
    });
    let changed = Service { ports: ports.collect(), ..snapshot.services[&name].as_ref().clone() };
    snapshot.services.insert(name.clone(), Arc::new(changed));
    let of_service = snapshot.slices.get_mut(&name).expect("its slices");
    let keys: Vec<_> = of_service.keys().cloned().collect();
    for key in keys {
        let ports = slices.iter().zip(8080..).map(|(name, port)| EndpointPort {
            name: (*name).into(),
            port,
            protocol: Protocol::Tcp,
        });
        let changed = EndpointSlice { ports: ports.collect(), ..of_service[&key].as_ref().clone() };
        of_service.insert(key, Arc::new(changed));
    }
    snapshot
}

/// S17, S45: a port that gets a name, another one, or a second port beside it is where it was, whether the Service's
/// change comes before that of its slices or after it, and however long after.
#[test]
fn s17_a_port_that_is_renamed_keeps_its_flows() {
    let renames: [(&[&str], &[&str]); 4] =
        [(&[""], &["http"]), (&["http"], &["web"]), (&[""], &["http", "admin"]), (&["http", "admin"], &[""])];
    for (before, after) in renames {
        for halfway in [named(after, before), named(before, after)] {
            let mut rounds = Rounds::new();
            let facts = NodeFacts::new("here");
            rounds.after(Duration::ZERO, &named(before, before), &facts);
            let flows = rounds.generations();
            for snapshot in [&halfway, &named(after, after)] {
                rounds.after(10 * PERIOD, snapshot, &facts);
                rounds.after(10 * PERIOD, snapshot, &facts);
                let now = rounds.generations();
                for (backend, generation) in flows.iter().filter(|(backend, _)| backend.port.get() == 8080) {
                    assert_eq!(now.get(backend), Some(generation), "{before:?} {after:?}");
                }
            }
        }
    }
}

/// Slices that lose an endpoint, all of them or their Service, for less than the period: rows lose it at once.
#[test]
fn s17_an_endpoint_between_two_slices_keeps_its_flows() {
    let full = named(&[""], &[""]);
    let mut without_slices = full.clone();
    without_slices.slices.clear();
    let mut without_service = full.clone();
    without_service.services.clear();
    let mut without_one = full.clone();
    add_service(&mut without_one, 1, 0, &[(2, false)]);
    let facts = NodeFacts::new("here");
    for lacking in [without_slices, without_service, without_one] {
        let mut rounds = Rounds::new();
        rounds.after(Duration::ZERO, &full, &facts);
        let flows = rounds.generations();
        assert_eq!(flows.len(), 2);
        rounds.after(PERIOD, &lacking, &facts);
        let slots: u32 = rounds.kernel.v4.services.values().map(|row| row.slot_count).sum();
        assert_eq!((slots, rounds.generations()), (0, flows.clone()));
        rounds.after(PERIOD / 2, &full, &facts);
        rounds.after(PERIOD, &full, &facts);
        assert_eq!(rounds.generations(), flows);
        rounds.after(PERIOD, &lacking, &facts);
        rounds.after(PERIOD, &lacking, &facts);
        let left = rounds.generations();
        assert!(flows.keys().any(|backend| !left.contains_key(backend)), "it is really gone");
        assert!(!rounds.kernel.epochs.is_empty(), "and its flows know");
    }
}

/// A Service that changes its type in each snapshot, 100 times a second (bad input, S50): no flow looks again, and each
/// round writes a few rows and, where clients outside appear, their table.
#[test]
fn s50_a_type_that_flaps_costs_no_flow_and_few_rows() {
    let types = [ServiceType::NodePort, ServiceType::LoadBalancer, ServiceType::ClusterIp];
    let endpoints: Vec<_> = (0..12).map(|host| (host, host % 3 > 0)).collect();
    let steady: Vec<Intent> = vec![(2, 0, endpoints.clone()), (3, 1, endpoints.clone())];
    let world = World { services: steady, nodes: vec![0, 1], pods: vec![0, 1] };
    let mut snapshot = Snapshot::default();
    become_world(&mut snapshot, &world);
    add_service(&mut snapshot, 1, 2 | 1, &endpoints);
    let name = ObjectName::new("test", "service-1");
    let mut described = snapshot.services[&name].as_ref().clone();
    described.ports[0].node_port = Some(30_080);
    let mut facts = facts(&world);
    facts.addresses = vec![[192, 0, 2, 1].into()];
    let mut rounds = Rounds::new();
    let mut reach = None;
    let mut most = 0;
    for (number, kind) in types.into_iter().cycle().take(300).enumerate() {
        snapshot.services.insert(name.clone(), Arc::new(Service { kind, ..described.clone() }));
        let steps = rounds.after(Duration::from_millis(10), &snapshot, &facts);
        // The first change of each kind makes room and says what the uplinks look at.
        if number >= types.len() {
            assert_eq!(steps.iter().find(|step| matches!(step, Step::Bump(_))), None, "{number}");
            let other = |step: &&Step| !matches!(step, Step::SetSlots(_));
            most = most.max(steps.iter().filter(other).map(Step::rows).sum());
            assert_eq!(*reach.get_or_insert(rounds.generations()), rounds.generations());
        }
        assert!(number == 0 || !steps.is_empty(), "the type changed");
    }
    assert!((1..100).contains(&most), "{most} rows in a round");
    let fresh = Layout::default().lay_out(&plan(&snapshot, &facts).0).0;
    crate::assert_same_meaning(rounds.layout.tables(), &fresh);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// S17, S45: whatever comes and goes, a backend keeps its number and its generation until it has been in no slice for
    /// the period, and not one round longer.
    #[test]
    fn s45_generations_end_with_the_period(history in vec((worlds(), 0..300u64), 1..12)) {
        let (mut rounds, mut snapshot) = (Rounds::new(), Snapshot::default());
        let mut missing: BTreeMap<Backend<[u8; 4]>, Instant> = BTreeMap::new();
        for (world, pause) in &history {
            let before = rounds.generations();
            become_world(&mut snapshot, world);
            rounds.after(Duration::from_millis(*pause), &snapshot, &facts(world));
            let (planned, _) = Layout::default().lay_out(&plan(&snapshot, &facts(world)).0);
            let now = rounds.generations();
            missing.retain(|backend, _| planned.v4.backend_ids.get(backend).is_none());
            for backend in before.keys().filter(|backend| planned.v4.backend_ids.get(backend).is_none()) {
                missing.entry(*backend).or_insert(rounds.now);
            }
            for (backend, generation) in before {
                let over = missing.get(&backend).is_some_and(|since| rounds.now - *since >= PERIOD);
                prop_assert_eq!(now.get(&backend), Some(&generation).filter(|_| !over), "{:?}", backend);
                let bumped = rounds.kernel.epochs.get(&(epoch::BACKENDS_V4 + generation.0));
                prop_assert!(!over || bumped.is_some_and(|now| *now > generation.1), "{:?} goes on", backend);
            }
        }
    }
}
