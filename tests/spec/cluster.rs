//! Random Services and endpoints, and random changes of them.
//!
//! Few names, addresses and ports, so that Services share backends, collide and come back; most are sensible, some are
//! what nobody should write.

use std::net::IpAddr;
use std::sync::Arc;

use fastrand::Rng;
use ipnet::IpNet;
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Hints, LoadBalancing, ObjectName, Protocol, Service,
    ServicePort, ServiceType, TrafficPolicy,
};
use quilla_plan::HostPort;

use crate::peer::Location;
use crate::world::{HERE, World, service_address, virtual_address};

/// Services that may exist; their numbers are in their names and cluster IPs.
pub(crate) const SERVICES: u8 = 6;
const TARGET_PORTS: [u16; 3] = [53, 80, 8080];
/// Ports of the nodes, which Services and Pods may both want.
pub(crate) const NODE_PORTS: [u16; 6] = [30_000, 30_001, 30_002, 30_003, 30_004, 30_005];
/// Load balancers' and external addresses that may exist.
pub(crate) const VIRTUAL: u8 = 4;

/// Fills an empty world.
pub(crate) fn populate(world: &mut World, rng: &mut Rng) {
    for index in 0..world.pods.len() {
        if rng.u8(0..6) == 0 {
            world.pods[index].host_ports = vec![host_port(rng)];
        }
    }
    for number in 1..=rng.u8(2..=SERVICES) {
        put_service(world, rng, number);
        put_slices(world, rng, number);
    }
    world.settle();
}

/// One thing becomes different (S17, S45, S51).
pub(crate) fn change(world: &mut World, rng: &mut Rng) {
    let number = rng.u8(1..=SERVICES);
    let name = name(number);
    world.hash_seed = rng.u32(1..);
    match rng.u8(0..18) {
        0 => {
            world.snapshot.services.remove(&name);
            if rng.bool() {
                world.snapshot.slices.remove(&name);
            }
        }
        1..=3 => put_service(world, rng, number),
        4 => put_slices(world, rng, number),
        5 => {
            world.snapshot.slices.remove(&name);
        }
        6 | 7 => world.reroute(rng),
        _ => change_slice(world, rng, &name),
    }
}

fn host_port(rng: &mut Rng) -> HostPort {
    HostPort {
        host_port: rng.choice(NODE_PORTS).expect("not empty"),
        container_port: rng.choice(TARGET_PORTS).expect("not empty"),
        protocol: if rng.bool() { Protocol::Tcp } else { Protocol::Udp },
        host_ip: None,
    }
}

fn name(number: u8) -> ObjectName {
    ObjectName::new("shop", format!("service-{number}"))
}

fn put_service(world: &mut World, rng: &mut Rng, number: u8) {
    let [v4, v6] = service_address(number);
    let shapes = [vec![v4], vec![v6], vec![v4, v6], vec![v6, v4], vec![v4, v6], vec![v4, v6]];
    let mut service = Service {
        kind: rng
            .choice([ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer])
            .expect("not empty"),
        cluster_ips: rng.choice(shapes).expect("not empty"),
        ports: service_ports(rng),
        internal_policy: policy(rng),
        external_policy: policy(rng),
        affinity_seconds: rng.choice([None, None, Some(100), Some(10_800)]).expect("not empty"),
        load_balancing: rng
            .choice([LoadBalancing::Random, LoadBalancing::Maglev, LoadBalancing::LeastConnections])
            .expect("not empty"),
        slow_start_seconds: rng.choice([0, 0, 30]).expect("not empty"),
        ..Service::new(name(number))
    };
    if rng.bool() {
        service.load_balancer_ips = virtual_ips(rng);
        service.source_ranges = source_ranges(rng);
    }
    if rng.u8(0..3) == 0 {
        service.external_ips = virtual_ips(rng);
        // One of the node's own addresses may be an external one, too.
        service.external_ips.extend(world.host.into_iter().filter(|_| rng.u8(0..4) == 0));
    }
    world.snapshot.services.insert(service.name.clone(), Arc::new(service));
}

fn virtual_ips(rng: &mut Rng) -> Vec<IpAddr> {
    let [v4, v6] = virtual_address(rng.u8(1..=VIRTUAL));
    rng.choice([vec![v4], vec![v6], vec![v4, v6], vec![v4, v6]]).expect("not empty")
}

/// None; some that let clients through; one that is none (S2).
fn source_ranges(rng: &mut Rng) -> Vec<IpNet> {
    let all = [
        "203.0.113.0/24",
        "2001:db8::/64",
        "10.244.1.2/32",
        "fd00:244:0:1::2/128",
        "192.168.77.0/24",
        "0.0.0.0/0",
    ];
    let chosen = all.into_iter().filter(|_| rng.u8(0..5) == 0);
    chosen.map(|range| range.parse().expect("a range")).collect()
}

fn policy(rng: &mut Rng) -> TrafficPolicy {
    if rng.u8(0..4) == 0 { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

/// One to three ports; the same number on both protocols (S27), now and then twice.
fn service_ports(rng: &mut Rng) -> Vec<ServicePort> {
    let mut all: Vec<(u16, Protocol)> =
        [53, 80].into_iter().flat_map(|port| [(port, Protocol::Tcp), (port, Protocol::Udp)]).collect();
    all.push((80, Protocol::Sctp));
    all.push((80, Protocol::Tcp));
    rng.shuffle(&mut all);
    all.truncate(rng.usize(1..4));
    let named = |(index, (port, protocol))| ServicePort {
        name: format!("port-{index}").into(),
        port,
        protocol,
        node_port: rng
            .choice([None, Some(30_000), Some(30_001), Some(30_002), Some(30_003)])
            .expect("not empty"),
    };
    all.into_iter().enumerate().map(named).collect()
}

fn put_slices(world: &mut World, rng: &mut Rng, number: u8) {
    let mut slices = Vec::new();
    // Most often the controller gives all endpoints of a Service hints, or none.
    let hinted = [[false, false], [false, false], [true, true], [true, true], [false, true]][rng.usize(0..5)];
    for family in [Family::V4, Family::V6] {
        for index in 0..rng.u8(1..4) {
            let hinted = hinted[rng.usize(0..2)];
            let slice = slice(world, rng, &name(number), family, &format!("{family:?}-{index}"), hinted);
            slices.push((Arc::clone(&slice.name.name), Arc::new(slice)));
        }
    }
    world.snapshot.slices.insert(name(number), slices.into_iter().collect());
}

fn slice(
    world: &World,
    rng: &mut Rng,
    service: &ObjectName,
    family: Family,
    index: &str,
    hinted: bool,
) -> EndpointSlice {
    let served = world.snapshot.services.get(service).map_or_else(Vec::new, |service| service.ports.clone());
    let target = |port: &ServicePort| EndpointPort {
        name: port.name.clone(),
        port: TARGET_PORTS[which_target(port, index)],
        protocol: port.protocol,
    };
    let mut ports: Vec<EndpointPort> = served.iter().map(target).collect();
    if rng.u8(0..8) == 0 {
        ports.pop();
    }
    let endpoints = (0..rng.u8(0..4)).map(|_| endpoint(world, rng, family, hinted)).collect();
    EndpointSlice {
        name: ObjectName::new(&service.namespace, format!("{}-{index}", service.name)),
        service: service.clone(),
        family,
        ports,
        endpoints,
        weight: rng.choice([1, 1, 1, 1, 2, 5, 100, 0]).expect("not empty"),
    }
}

/// Slices of one Service may differ in what a named port is (S6).
fn which_target(port: &ServicePort, index: &str) -> usize {
    (usize::from(port.port) + index.len() + usize::from(index.as_bytes()[index.len() - 1]))
        % TARGET_PORTS.len()
}

fn endpoint(world: &World, rng: &mut Rng, family: Family, hinted: bool) -> Endpoint {
    let index = usize::from(family == Family::V6);
    let peer = &world.peers[rng.usize(0..world.peers.len())];
    let (address, node) = match rng.u8(0..12) {
        0..=4 => (world.pods[rng.usize(0..world.pods.len())].addresses[index], HERE.to_owned()),
        5..=7 => (peer.pods[rng.usize(0..peer.pods.len())][index], peer.name()),
        8 => (world.host[index], HERE.to_owned()),
        // A backend to which there is no way would have to be told from its neighbours.
        9 if peer.location() != Location::Nowhere => (peer.addresses[index], peer.name()),
        9 | 10 => (world.outside[index * 2], String::new()),
        _ => (odd_address(rng, index), HERE.to_owned()),
    };
    let mut endpoint = Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        node: (!node.is_empty()).then(|| node.into()),
        pod: None,
        hints: (hinted && rng.u8(0..24) != 0).then(|| Arc::new(hints(rng))),
    };
    set_state(&mut endpoint, rng);
    endpoint
}

/// What no endpoint can be, and what it may be but is not on this node.
fn odd_address(rng: &mut Rng, family: usize) -> IpAddr {
    let addresses = [["127.0.0.1", "169.254.1.1", "224.0.0.9"], ["::1", "fe80::9", "ff02::9"]];
    rng.choice(addresses[family]).expect("not empty").parse().expect("an address")
}

fn set_state(endpoint: &mut Endpoint, rng: &mut Rng) {
    (endpoint.ready, endpoint.serving, endpoint.terminating) = match rng.u8(0..16) {
        0..=8 => (true, true, false),
        9..=10 => (false, false, false),
        11..=13 => (false, true, true),
        14 => (false, false, true),
        _ => (true, true, true),
    };
}

fn hints(rng: &mut Rng) -> Hints {
    let some = |rng: &mut Rng, [here, there]: [&'static str; 2]| {
        let names: &[&str] = match rng.u8(0..8) {
            0..=2 => &[here],
            3..=5 => &[there],
            6 => &[here, there],
            _ => &[],
        };
        names.iter().copied().map(Arc::from).collect()
    };
    Hints { nodes: some(rng, [HERE, "peer-2"]), zones: some(rng, ["zone-1", "zone-2"]) }
}

fn change_slice(world: &mut World, rng: &mut Rng, name: &ObjectName) {
    let Some(slices) = world.snapshot.slices.get(name) else { return };
    let Some(key) = rng.choice(slices.keys().cloned().collect::<Vec<_>>()) else { return };
    let mut slice = slices[&key].as_ref().clone();
    let count = slice.endpoints.len();
    match rng.u8(0..8) {
        0..=2 if count > 0 => set_state(&mut slice.endpoints[rng.usize(0..count)], rng),
        3 | 4 if count > 0 => {
            slice.endpoints.remove(rng.usize(0..count));
        }
        5 => slice.endpoints.clear(),
        _ => slice.endpoints.push(endpoint(world, rng, slice.family, is_hinted(&slice))),
    }
    let slices = world.snapshot.slices.get_mut(name).expect("it was there");
    slices.insert(key, Arc::new(slice));
}

fn is_hinted(slice: &EndpointSlice) -> bool {
    slice.endpoints.iter().any(|endpoint| endpoint.hints.is_some())
}
