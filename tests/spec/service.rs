//! What Services say, read from the API's objects in the plainest way (S1-S27). It shares nothing with the planner.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use quilla_model::{
    Endpoint, EndpointPort, Family, LoadBalancing, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};

use crate::world::{HERE, Pod, World};

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// In a Pod of this node.
    Inside,
    /// Behind the uplink.
    Outside,
}

/// What a client speaks to.
pub(crate) type Key = (Side, SocketAddr, u8);

/// Whom an affinity is with: a set of endpoints of one Service port (S18).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SetId {
    owner: String,
    port: String,
    proto: u8,
    family: Family,
    policy: TrafficPolicy,
    maglev: bool,
}

impl SetId {
    pub(crate) fn policy(&self) -> TrafficPolicy {
        self.policy
    }

    pub(crate) fn proto(&self) -> u8 {
        self.proto
    }
}

/// Who answers on an address and port.
#[derive(Clone, Debug)]
pub(crate) struct Frontend {
    pub set: SetId,
    /// The endpoints that new connections may get.
    pub backends: Vec<SocketAddr>,
    /// What it is, and how its endpoints were found: words of [`crate::coverage`].
    pub kind: &'static str,
    pub found: &'static str,
    /// Not all of them have the same share.
    pub uneven: bool,
    /// There are endpoints, but the policy hides them here (S21).
    pub hidden: bool,
    /// Where clients must be, if it matters (S24).
    pub ranges: Vec<IpNet>,
    /// What decides, on every node alike, which of them a client gets: the endpoints and their shares.
    pub table: Option<Vec<(SocketAddr, u8)>>,
    /// For how long a client stays with its endpoint, in seconds; 0 = not at all.
    pub affinity: u64,
    /// Of several claims the least has the address.
    rank: (u8, String),
}

/// Everything that Services say on this node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Services {
    pub frontends: HashMap<Key, Frontend>,
    /// Addresses that only Services have: nobody else is meant, whatever the port (S22).
    pub own: HashSet<(Side, IpAddr)>,
    /// Where traffic may have been sent, and flows may stay.
    pub backends: HashSet<(SocketAddr, u8)>,
    /// What the node sends may be an answer of a Service, or of one that was.
    pub node_backends: bool,
    /// The first and the last port at which clients outside find, or once found, a Service on the node's own addresses.
    pub node_ports: Option<(u16, u16)>,
}

/// Reads them all.
pub(crate) fn read(world: &World) -> Services {
    let mut all = Services::default();
    for service in world.snapshot.services.values() {
        let mut outside = false;
        for port in served(service) {
            for family in [Family::V4, Family::V6].into_iter().filter(|family| has(service, *family)) {
                let endpoints = endpoints(world, service, port, family);
                for (key, frontend) in claims(world, service, port, family, &endpoints) {
                    outside |= key.0 == Side::Outside;
                    all.claim(key, frontend);
                }
            }
        }
        let backends = existing(world, service);
        all.node_backends |= outside && backends.iter().any(|(backend, _)| world.is_host(backend.ip()));
        all.backends.extend(backends);
        for (kind, address) in addresses(service).into_iter().filter(|(_, address)| !world.is_host(*address))
        {
            all.own.insert((Side::Inside, address));
            if kind != CLUSTER_IP {
                all.own.insert((Side::Outside, address));
            }
        }
    }
    for pod in &world.pods {
        all.claim_host_ports(world, pod);
    }
    let own = |(side, address, _): &&Key| *side == Side::Outside && world.is_host(address.ip());
    let ports = || all.frontends.keys().filter(own).map(|(_, address, _)| address.port());
    all.node_ports = ports().min().zip(ports().max());
    all
}

impl Services {
    /// Connections outlive the ports of their Services: what was looked at is looked at from then on.
    pub(crate) fn remember_reach(&mut self, before: &Self) {
        self.node_backends |= before.node_backends;
        let both = || self.node_ports.into_iter().chain(before.node_ports);
        self.node_ports = both().map(|(first, _)| first).min().zip(both().map(|(_, last)| last).max());
    }

    fn claim(&mut self, key: Key, frontend: Frontend) {
        if self.frontends.get(&key).is_none_or(|other| frontend.rank < other.rank) {
            self.frontends.insert(key, frontend);
        }
    }

    fn claim_host_ports(&mut self, world: &World, pod: &Pod) {
        for port in &pod.host_ports {
            for address in pod.addresses {
                let backend = SocketAddr::new(address, port.container_port);
                let proto = port.protocol.number();
                self.backends.insert((backend, proto));
                for own in world.own_addresses().filter(|own| own.is_ipv4() == address.is_ipv4()) {
                    for side in [Side::Inside, Side::Outside] {
                        let key = (side, SocketAddr::new(own, port.host_port), proto);
                        self.claim(key, host_port(pod.ifindex, backend, proto));
                    }
                }
            }
        }
    }

    pub(crate) fn frontend(&self, side: Side, address: IpAddr, port: u16, proto: u8) -> Option<&Frontend> {
        self.frontends.get(&(side, SocketAddr::new(address, port), proto))
    }
}

/// In the order in which they are entitled to an address that two claim.
const CLUSTER_IP: u8 = 0;
const NODE_PORT: u8 = 1;
const LOAD_BALANCER: u8 = 2;
const EXTERNAL_IP: u8 = 3;
const HOST_PORT: u8 = 4;

fn host_port(pod: u32, backend: SocketAddr, proto: u8) -> Frontend {
    let set = SetId {
        owner: format!("pod {pod}"),
        port: backend.port().to_string(),
        proto,
        family: Family::of(backend.ip()),
        policy: TrafficPolicy::Cluster,
        maglev: false,
    };
    let rank = (HOST_PORT, pod.to_string());
    Frontend {
        set,
        backends: vec![backend],
        kind: "host port",
        found: ALL_READY,
        uneven: false,
        hidden: false,
        ranges: Vec::new(),
        table: None,
        affinity: 0,
        rank,
    }
}

/// Everything one port of a Service claims in one family.
fn claims(
    world: &World,
    service: &Service,
    port: &ServicePort,
    family: Family,
    endpoints: &[(SocketAddr, Member<'_>)],
) -> Vec<(Key, Frontend)> {
    let frontend = |policy, outside, kind| {
        let (mut shares, found) = match policy {
            TrafficPolicy::Cluster => cluster_set(world, endpoints),
            TrafficPolicy::Local => local_set(endpoints),
        };
        shares.sort_unstable();
        let backends: Vec<SocketAddr> = shares.iter().map(|(backend, _)| *backend).collect();
        let maglev = outside || service.load_balancing == LoadBalancing::Maglev;
        let steady = service.affinity_seconds.is_none();
        let any =
            endpoints.iter().any(|(_, member)| member.endpoint.ready || is_last_resort(member.endpoint));
        let hidden = backends.is_empty() && policy == TrafficPolicy::Local && any;
        Frontend {
            kind: ["cluster IP", "node port", "load balancer", "external IP"][usize::from(kind)],
            found: match backends.is_empty() {
                true if hidden => "hidden",
                true => "nobody",
                false => found,
            },
            uneven: shares.windows(2).any(|pair| pair[0].1 != pair[1].1),
            set: SetId {
                owner: service.name.to_string(),
                port: port.name.to_string(),
                proto: port.protocol.number(),
                family,
                policy,
                maglev,
            },
            hidden,
            backends,
            table: (maglev && steady).then_some(shares),
            ranges: if kind == LOAD_BALANCER { ranges(service, family) } else { Vec::new() },
            affinity: service.affinity_seconds.unwrap_or(0).into(),
            rank: (kind, service.name.to_string()),
        }
    };
    let key = |side, address, number| (side, SocketAddr::new(address, number), port.protocol.number());
    let mut found = Vec::new();
    for (kind, address) in
        addresses(service).into_iter().filter(|(_, address)| Family::of(*address) == family)
    {
        if kind == CLUSTER_IP {
            found.push((
                key(Side::Inside, address, port.port),
                frontend(service.internal_policy, false, kind),
            ));
        } else {
            found
                .push((key(Side::Inside, address, port.port), frontend(TrafficPolicy::Cluster, false, kind)));
            found.push((
                key(Side::Outside, address, port.port),
                frontend(service.external_policy, true, kind),
            ));
        }
    }
    // S23: the node's own address of the family; S36: for its processes localhost, too, but never ::1.
    if let Some(number) = port.node_port.filter(|_| service.kind != ServiceType::ClusterIp) {
        let own = world.host[usize::from(family == Family::V6)];
        found.push((key(Side::Inside, own, number), frontend(TrafficPolicy::Cluster, false, NODE_PORT)));
        found.push((key(Side::Outside, own, number), frontend(service.external_policy, true, NODE_PORT)));
        if family == Family::V4 {
            let localhost = Ipv4Addr::LOCALHOST.into();
            let inside = frontend(TrafficPolicy::Cluster, false, NODE_PORT);
            found.push((key(Side::Inside, localhost, number), inside));
        }
    }
    found
}

fn has(service: &Service, family: Family) -> bool {
    service.cluster_ips.iter().any(|address| Family::of(*address) == family)
}

/// S2-S4: the addresses with the Service's own ports, of its families only.
fn addresses(service: &Service) -> Vec<(u8, IpAddr)> {
    let balanced = service.kind == ServiceType::LoadBalancer;
    let mut all: Vec<(u8, IpAddr)> =
        service.cluster_ips.iter().map(|address| (CLUSTER_IP, *address)).collect();
    all.extend(
        service.load_balancer_ips.iter().filter(|_| balanced).map(|address| (LOAD_BALANCER, *address)),
    );
    all.extend(service.external_ips.iter().map(|address| (EXTERNAL_IP, *address)));
    all.retain(|(_, address)| has(service, Family::of(*address)) && is_possible(*address));
    all
}

/// S2: one that contains everything is no restriction.
fn ranges(service: &Service, family: Family) -> Vec<IpNet> {
    let of_family = service.source_ranges.iter().filter(|range| Family::of(range.addr()) == family);
    let ranges: Vec<IpNet> = of_family.copied().collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) { Vec::new() } else { ranges }
}

/// TCP and UDP; of two ports with one number or name and protocol the first.
fn served(service: &Service) -> Vec<&ServicePort> {
    let mut served: Vec<&ServicePort> = Vec::new();
    for port in service.ports.iter().filter(|port| port.port != 0 && port.protocol != Protocol::Sctp) {
        let same = |other: &&ServicePort| {
            other.protocol == port.protocol && (other.port == port.port || other.name == port.name)
        };
        if !served.iter().any(same) {
            served.push(port);
        }
    }
    served
}

/// An endpoint with its share.
#[derive(Clone, Copy, Debug)]
struct Member<'a> {
    endpoint: &'a Endpoint,
    weight: u8,
}

/// S5: each address and port once; of two that are the same, one that is not terminating, then the first slice's.
fn endpoints<'a>(
    world: &'a World,
    service: &Service,
    port: &ServicePort,
    family: Family,
) -> Vec<(SocketAddr, Member<'a>)> {
    let mut found: Vec<(SocketAddr, Member<'_>)> = Vec::new();
    for slice in world.snapshot.slices_of(&service.name).filter(|slice| slice.family == family) {
        for target in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| is_usable(endpoint, family)) {
                let address = SocketAddr::new(endpoint.address, target.port);
                let member = Member { endpoint, weight: slice.weight };
                match found.iter_mut().find(|(known, _)| *known == address) {
                    Some((_, known)) if known.endpoint.terminating && !endpoint.terminating => {
                        *known = member;
                    }
                    Some(_) => {}
                    None => found.push((address, member)),
                }
            }
        }
    }
    found
}

/// S45: all that slices list of the Service's families and protocols, whatever the ports' names. By UDP those that do not
/// serve only if no other of the same port does.
fn existing(world: &World, service: &Service) -> HashSet<(SocketAddr, u8)> {
    let mut listed = Vec::new();
    let of_service = |port: &&EndpointPort| served(service).iter().any(|one| one.protocol == port.protocol);
    for slice in world.snapshot.slices_of(&service.name).filter(|slice| has(service, slice.family)) {
        for port in slice.ports.iter().filter(of_service) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| is_usable(endpoint, slice.family)) {
                let answers = endpoint.ready || endpoint.serving;
                listed.push((SocketAddr::new(endpoint.address, port.port), port, answers));
            }
        }
    }
    let better = |address: &SocketAddr, port: &EndpointPort| {
        listed.iter().any(|(other, of, answers)| {
            *answers
                && of.name == port.name
                && of.protocol == port.protocol
                && other.is_ipv4() == address.is_ipv4()
        })
    };
    let stays = |(address, port, answers): &&(SocketAddr, &EndpointPort, bool)| {
        *answers || port.protocol == Protocol::Tcp || !better(address, port)
    };
    listed.iter().filter(stays).map(|(address, port, _)| (*address, port.protocol.number())).collect()
}

fn is_usable(endpoint: &Endpoint, family: Family) -> bool {
    let of_service = match endpoint.address {
        IpAddr::V4(v4) => matches!(v4.octets(), [10, 96, ..]),
        IpAddr::V6(v6) => matches!(v6.segments(), [0xfd00, 0x96, 0, 0, 0, 0, 0, _]),
    };
    Family::of(endpoint.address) == family && is_possible(endpoint.address) && !of_service
}

/// What a host can have at all.
fn is_possible(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !matches!(v4.octets(), [0 | 127 | 224..=255, ..] | [169, 254, ..]),
        IpAddr::V6(v6) => !matches!(
            v6.segments(),
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] | [0xfe80..=0xfebf | 0xff00..=0xffff, ..]
        ),
    }
}

fn is_last_resort(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

const ALL_READY: &str = "all ready";
const LAST_RESORT: &str = "last resort";

/// Endpoints with their shares, and how they were found.
type Found = (Vec<(SocketAddr, u8)>, &'static str);

/// S10, S14: those that hints allow among the ready ones; if nobody is ready, whoever still serves.
fn cluster_set(world: &World, endpoints: &[(SocketAddr, Member<'_>)]) -> Found {
    let ready: Vec<_> = endpoints.iter().filter(|(_, member)| member.endpoint.ready).collect();
    if ready.is_empty() {
        let resort = endpoints.iter().filter(|(_, member)| is_last_resort(member.endpoint));
        return (chosen(resort), LAST_RESORT);
    }
    let for_node = |endpoint: &Endpoint| hinted_nodes(endpoint).iter().any(|node| **node == *HERE);
    let for_zone = |endpoint: &Endpoint| {
        world.zone().is_some_and(|here| hinted_zones(endpoint).iter().any(|zone| **zone == *here))
    };
    let all =
        |has: fn(&Endpoint) -> &[Arc<str>]| ready.iter().all(|(_, found)| !has(found.endpoint).is_empty());
    let any = |has: &dyn Fn(&Endpoint) -> bool| ready.iter().any(|(_, found)| has(found.endpoint));
    if all(hinted_nodes) && any(&for_node) {
        (chosen(ready.into_iter().filter(|(_, member)| for_node(member.endpoint))), "same node")
    } else if all(hinted_zones) && any(&for_zone) {
        (chosen(ready.into_iter().filter(|(_, member)| for_zone(member.endpoint))), "same zone")
    } else {
        let hinted = ready.iter().any(|(_, member)| member.endpoint.hints.is_some());
        (chosen(ready.into_iter()), if hinted { "useless hints" } else { ALL_READY })
    }
}

fn hinted_nodes(endpoint: &Endpoint) -> &[Arc<str>] {
    endpoint.hints.as_ref().map_or(&[], |hints| &hints.nodes)
}

fn hinted_zones(endpoint: &Endpoint) -> &[Arc<str>] {
    endpoint.hints.as_ref().map_or(&[], |hints| &hints.zones)
}

/// S11, S15.
fn local_set(endpoints: &[(SocketAddr, Member<'_>)]) -> Found {
    let local = || endpoints.iter().filter(|(_, member)| member.endpoint.node.as_deref() == Some(HERE));
    let ready: Vec<_> = local().filter(|(_, member)| member.endpoint.ready).collect();
    if ready.is_empty() {
        return (chosen(local().filter(|(_, member)| is_last_resort(member.endpoint))), LAST_RESORT);
    }
    let hinted = ready.iter().any(|(_, member)| member.endpoint.hints.is_some());
    (chosen(ready.into_iter()), if hinted { "whatever the hints" } else { ALL_READY })
}

/// Those that get new connections at all, and their shares.
fn chosen<'a>(members: impl Iterator<Item = &'a (SocketAddr, Member<'a>)>) -> Vec<(SocketAddr, u8)> {
    members.map(|(address, member)| (*address, member.weight)).filter(|(_, weight)| *weight > 0).collect()
}
