//! Times a plan, a layout and a difference of a large cluster: 10,000 Services of two ports, 100,000 backends.
//!
//! `cargo run --release -p quilla-plan --example scale`

use std::sync::Arc;
use std::time::{Duration, Instant};

use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort, Snapshot,
};
use quilla_plan::{Layout, NodeFacts, Step, Tables, diff, plan};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 5;

fn main() {
    let mut snapshot = Snapshot::default();
    for number in 0..SERVICES {
        add(&mut snapshot, number, ENDPOINTS);
    }
    let mut layout = Layout::default();
    let empty = Tables::default();
    let old = round("first", &snapshot, &mut layout, &empty);
    add(&mut snapshot, SERVICES / 2, ENDPOINTS - 1);
    let new = round("one endpoint less", &snapshot, &mut layout, &old);
    round("nothing", &snapshot, &mut layout, &new);
}

fn round(what: &str, snapshot: &Snapshot, layout: &mut Layout, old: &Tables) -> Arc<Tables> {
    let (planning, (desired, problems)) = timed(|| plan(snapshot, &NodeFacts::new("here")));
    let (laying_out, (new, more)) = timed(|| layout.lay_out(&desired));
    let (comparing, steps) = timed(|| diff(old, &new));
    let rows: usize = steps.iter().map(Step::rows).sum();
    println!(
        "{what}: plan {planning:.1?}, layout {laying_out:.1?}, diff {comparing:.1?}, {rows} rows, {} problems",
        problems.len() + more.len(),
    );
    new
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
        address: std::net::Ipv4Addr::from_bits(0x0b00_0000 + number * 100 + index).into(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("elsewhere".into()),
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
