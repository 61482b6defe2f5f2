//! Times rounds of a planner, a layout and a difference of a large cluster: 10,000 Services of two ports, one of them with
//! 5,000 endpoints, 100,000 endpoints in all. Without a kernel; `cargo xtask bench scale` has one.
//!
//! `cargo run --release -p quilla-plan --example scale`

use std::sync::Arc;
use std::time::{Duration, Instant};

use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort, Snapshot,
};
use quilla_plan::{Layout, NodeFacts, Planner, Step, diff};

const SERVICES: u32 = 10_000;
const LARGEST: u32 = 5_000;
const OTHERS: u32 = 10;

fn main() {
    let mut snapshot = Snapshot::default();
    for number in 0..SERVICES {
        add(&mut snapshot, number, if number == 0 { LARGEST } else { OTHERS });
    }
    let mut state = State { planner: Planner::default(), layout: Layout::default() };
    state.round("everything", &snapshot);
    for _ in 0..2 {
        add(&mut snapshot, SERVICES / 2, OTHERS - 1);
        state.round("one endpoint less", &snapshot);
        add(&mut snapshot, SERVICES / 2, OTHERS);
        state.round("one endpoint more", &snapshot);
    }
    add(&mut snapshot, 0, LARGEST - 1);
    state.round("one less of the largest", &snapshot);
    state.round("nothing", &snapshot);
}

struct State {
    planner: Planner,
    layout: Layout,
}

impl State {
    fn round(&mut self, what: &str, snapshot: &Snapshot) {
        let snapshot = Arc::new(snapshot.clone());
        let old = Arc::clone(self.layout.tables());
        let (planning, (desired, problems)) = timed(|| self.planner.plan(&snapshot, &NodeFacts::new("here")));
        let (laying_out, (new, more)) = timed(|| self.layout.lay_out(&desired));
        let (comparing, steps) = timed(|| diff(&old, &new));
        let rows: usize = steps.iter().map(Step::rows).sum();
        println!(
            "{what}: plan {planning:.1?}, layout {laying_out:.1?}, diff {comparing:.1?}, {rows} rows, {} problems",
            problems.len() + more.len(),
        );
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

fn add(snapshot: &mut Snapshot, number: u32, endpoints: u32) {
    let name = ObjectName::new("scale", format!("service-{number}"));
    let port =
        |name: &str, port| ServicePort { name: name.into(), port, protocol: Protocol::Tcp, node_port: None };
    let service = Service {
        cluster_ips: vec![std::net::Ipv4Addr::from_bits(0x0a60_0000 + number).into()],
        ports: vec![port("http", 80), port("admin", 81)],
        ..Service::new(name.clone())
    };
    let target = |name: &str, port| EndpointPort { name: name.into(), port, protocol: Protocol::Tcp };
    let endpoint = |index: u32| Endpoint {
        address: std::net::Ipv4Addr::from_bits(0x0b00_0000 + number * LARGEST + index).into(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("elsewhere".into()),
        pod: None,
        hints: None,
    };
    let slice = EndpointSlice {
        name: name.clone(),
        service: name.clone(),
        family: Family::V4,
        ports: vec![target("http", 8080), target("admin", 9090)],
        endpoints: (0..endpoints).map(endpoint).collect(),
        weight: 1,
    };
    snapshot.services.insert(name.clone(), Arc::new(service));
    snapshot.slices.or_default(name.clone()).insert(name.name, Arc::new(slice));
}
