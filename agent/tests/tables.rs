//! The planner's tables in the kernel's real maps: what is written is read back, and drift is put right. Needs root.

mod support;

use std::process::Command;
use std::sync::Arc;

use quilla_abi::epoch;
use quilla_abi::flow::{self, Flow, FlowKey};
use quilla_abi::load::Load;
use quilla_abi::service::{ServiceKey, flag, scope};
use quilla_agent::table::{apply, dump, recount};
use quilla_datapath::{Datapath, Options};
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Node, ObjectName, Protocol, Service, ServicePort, Snapshot,
};
use quilla_plan::{BackendSet, Desired, Layout, LocalEndpoint, NodeFacts, Step, Tables, diff, plan};

/// Maps in a BPF file system of the test's own; all is gone when it ends.
struct Maps {
    datapath: Datapath,
    directory: tempfile::TempDir,
}

impl Maps {
    fn new() -> Self {
        let (directory, datapath) = support::datapath(&Options::default());
        Self { datapath, directory }
    }

    fn go(&self, old: &Tables, new: &Tables) -> Vec<Step> {
        let steps = diff(old, new);
        apply(self.datapath.maps(), &steps).expect("apply");
        steps
    }

    fn dump(&self) -> Tables {
        dump(self.datapath.maps()).expect("dump")
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(self.directory.path()).status();
        assert!(
            unmounted.is_ok_and(|status| status.success()),
            "unmount {}",
            self.directory.path().display()
        );
    }
}

fn desired(services: u8, endpoints: u8) -> Desired {
    let mut snapshot = Snapshot::default();
    for number in 0..services {
        add_service(&mut snapshot, number, endpoints);
    }
    for (name, host) in [("here", 1), ("there", 2)] {
        let node = Node {
            name: name.into(),
            addresses: vec![[192, 0, 2, host].into()],
            pod_cidrs: vec![
                format!("10.244.{host}.0/24").parse().unwrap(),
                format!("fd00:244:0:{host}::/64").parse().unwrap(),
            ],
            zone: None,
            leaving: false,
        };
        snapshot.nodes.insert(name.into(), Arc::new(node));
    }
    let mut facts = NodeFacts::new("here");
    facts.endpoints = vec![LocalEndpoint {
        pod: ObjectName::new("test", "pod"),
        ifindex: 7,
        pod_mac: [2; 6],
        host_mac: [4; 6],
        ipv4: Some([10, 244, 1, 2].into()),
        ipv6: Some("fd00:244:0:1::2".parse().unwrap()),
        host_ports: Vec::new(),
    }];
    let (desired, problems) = plan(&snapshot, &facts);
    assert_eq!(problems, []);
    desired
}

fn add_service(snapshot: &mut Snapshot, number: u8, endpoints: u8) {
    let name = ObjectName::new("test", format!("service-{number}"));
    for family in [Family::V4, Family::V6] {
        let address = |host: u8| match family {
            Family::V4 => [10, 244, 2, host].into(),
            Family::V6 => format!("fd00:244:0:2::{host:x}").parse().unwrap(),
        };
        let endpoint = |host| Endpoint {
            address: address(host),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            pod: None,
            hints: None,
        };
        let slice = EndpointSlice {
            name: ObjectName::new("test", format!("{}-{family:?}", name.name)),
            service: name.clone(),
            family,
            ports: vec![EndpointPort { name: "".into(), port: 8080, protocol: Protocol::Udp }],
            endpoints: (1..=endpoints).map(endpoint).collect(),
            weight: 1,
        };
        snapshot.slices.or_default(name.clone()).insert(slice.name.name.clone(), Arc::new(slice));
    }
    let service = Service {
        cluster_ips: vec![[10, 96, 0, number].into(), format!("fd00:96::{number:x}").parse().unwrap()],
        ports: vec![ServicePort { name: "".into(), port: 53, protocol: Protocol::Udp, node_port: None }],
        ..Service::new(name.clone())
    };
    snapshot.services.insert(name, Arc::new(service));
}

#[test]
fn what_is_written_is_read_back_and_a_restart_finds_it() {
    let maps = Maps::new();
    let mut layout = Layout::recover(&maps.dump());
    for (services, endpoints) in [(20, 9), (20, 8), (3, 8), (0, 0), (40, 2)] {
        let found = maps.dump();
        let (tables, problems) = layout.lay_out(&desired(services, endpoints));
        assert_eq!(problems, []);
        maps.go(&found, &tables);
        assert_eq!(maps.dump(), *tables, "{services} services of {endpoints}");
    }
    assert_eq!(Layout::recover(&maps.dump()).tables(), layout.tables());
}

#[test]
fn drift_is_found_and_repaired() {
    let maps = Maps::new();
    let (tables, _) = Layout::default().lay_out(&desired(5, 3));
    maps.go(&maps.dump(), &tables);

    let key = ServiceKey {
        addr: [10, 96, 0, 1],
        port: quilla_abi::Be16::new(53),
        proto: 17,
        scope: scope::INTERNAL,
    };
    let rows = maps.datapath.maps();
    rows.slots.set(tables.v4.services[&key].slot_base, &999).unwrap();
    assert!(rows.services_v6.remove(tables.v6.services.keys().next().unwrap()).unwrap());
    assert!(rows.interfaces.remove(&7).unwrap());
    rows.node_slots.insert(&[9; 16], &77).unwrap();
    rows.backends_v4
        .set(tables.v4.backend_ids.values().copied().max().unwrap() + 5, &tables.v4.backends[&1])
        .unwrap();

    let steps = maps.go(&maps.dump(), &tables);
    assert_eq!(maps.dump(), *tables);
    let touched: Vec<_> = steps.iter().map(Step::map).collect();
    for map in ["slots", "services_v6", "interfaces", "node_slots", "backends_v4"] {
        assert!(touched.contains(&map), "{map} in {touched:?}");
    }
}

/// Connections that ended without a word do not count for ever; those that nobody counts by are left alone.
#[test]
fn least_connections_are_recounted_from_the_flows() {
    let maps = Maps::new();
    let mut least = desired(1, 2);
    for (key, set) in least.sets.clone().iter() {
        let content = BackendSet { flags: flag::LEAST_CONNECTIONS, ..BackendSet::clone(set) };
        least.sets.insert(Arc::clone(key), Arc::new(content));
    }
    let (tables, _) = Layout::default().lay_out(&least);
    maps.go(&maps.dump(), &tables);
    let rows = maps.datapath.maps();
    let connections = || [1, 2].map(|id| rows.loads_v4.get(id).unwrap().unwrap().connections);
    let flow = Flow {
        backend: 2,
        state: flow::state::ESTABLISHED,
        flags: flow::flag::COUNTED,
        last_seen: quilla_datapath::jiffies().unwrap(),
        ..Flow::default()
    };
    rows.flows_v4.insert(&FlowKey { proto: 6, ..FlowKey::default() }, &flow).unwrap();
    rows.loads_v4.set(1, &Load { connections: 5, since: 9 }).unwrap();
    assert_eq!(recount(rows, &tables).unwrap(), 2);
    assert_eq!(connections(), [0, 1]);
    assert_eq!(rows.loads_v4.get(1).unwrap().unwrap().since, 9, "how new it is stays");
    assert_eq!(recount(rows, &tables).unwrap(), 0);

    rows.loads_v4.set(1, &Load { connections: 5, since: 0 }).unwrap();
    let (random, _) = Layout::default().lay_out(&desired(1, 2));
    assert_eq!(recount(rows, &random).unwrap(), 0);
    assert_eq!(connections(), [5, 1]);
}

/// Slow start: a backend is new when it comes, and not again when another one does.
#[test]
fn a_backend_of_a_slow_start_appears_once() {
    let maps = Maps::new();
    let slow = |endpoints| {
        let mut desired = desired(1, endpoints);
        for (key, set) in desired.sets.clone().iter() {
            let content = BackendSet { slow_start_seconds: 30, ..BackendSet::clone(set) };
            desired.sets.insert(Arc::clone(key), Arc::new(content));
        }
        desired
    };
    let mut layout = Layout::recover(&maps.dump());
    let (one, _) = layout.lay_out(&slow(1));
    maps.go(&maps.dump(), &one);
    let since = |id| maps.datapath.maps().loads_v4.get(id).unwrap().unwrap().since;
    let first = since(1);
    assert!(first != 0 && since(2) == 0);
    let (two, _) = layout.lay_out(&slow(2));
    maps.go(&one, &two);
    assert_eq!(since(1), first);
    assert!(since(2).wrapping_sub(first) < u32::MAX / 2, "later, or in the same tick");
}

#[test]
fn the_generation_of_a_backend_ends_with_it() {
    let maps = Maps::new();
    let mut layout = Layout::recover(&maps.dump());
    let (old, _) = layout.lay_out(&desired(1, 2));
    maps.go(&maps.dump(), &old);
    let (new, _) = layout.lay_out(&desired(1, 1));
    maps.go(&old, &new);
    let generation = |id: &u32| maps.datapath.maps().epochs.get(epoch::BACKENDS_V4 + id).unwrap().unwrap();
    for (id, backend) in old.v4.backends.iter() {
        let ended = !new.v4.backends.contains_key(id);
        assert_eq!(generation(id), if ended { 2 } else { 0 }, "{backend:?}");
    }
}
