//! What Services say, read from the API's objects for one packet at a time (S1-S27). It shares nothing with the planner.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use quilla_model::{Endpoint, Family, Protocol, Service, ServicePort, TrafficPolicy};

use crate::world::{HERE, World};

/// The Service port that answers on an address, and who may answer for it.
#[derive(Clone, Debug)]
pub(crate) struct Frontend {
    /// The endpoints that new connections may get.
    pub backends: Vec<SocketAddr>,
}

/// Who answers a client inside the cluster on this address and port.
pub(crate) fn frontend(world: &World, address: IpAddr, number: u16, proto: u8) -> Option<Frontend> {
    for service in world.snapshot.services.values() {
        for port in served(service).filter(|port| port.protocol.number() == proto) {
            if service.cluster_ips.contains(&address) && port.port == number {
                return Some(of(world, service, port, service.internal_policy, address));
            }
        }
    }
    None
}

fn of(
    world: &World,
    service: &Service,
    port: &ServicePort,
    policy: TrafficPolicy,
    address: IpAddr,
) -> Frontend {
    let endpoints = endpoints(world, service, port, Family::of(address));
    let backends = match policy {
        TrafficPolicy::Cluster => cluster_set(world, &endpoints),
        TrafficPolicy::Local => local_set(&endpoints),
    };
    Frontend { backends }
}

/// TCP and UDP; of two ports with one number and protocol the first.
fn served(service: &Service) -> impl Iterator<Item = &ServicePort> {
    let first = |index: usize, port: &ServicePort| {
        let same = |other: &ServicePort| other.port == port.port && other.protocol == port.protocol;
        !service.ports[..index].iter().any(same)
    };
    let ports = service.ports.iter().enumerate().filter(move |(index, port)| first(*index, port));
    ports.map(|(_, port)| port).filter(|port| port.port != 0 && port.protocol != Protocol::Sctp)
}

/// S5: each address and port once; of two that are the same, one that is not terminating, then the first slice's.
fn endpoints<'a>(
    world: &'a World,
    service: &Service,
    port: &ServicePort,
    family: Family,
) -> Vec<(SocketAddr, &'a Endpoint)> {
    let mut found: Vec<(SocketAddr, &Endpoint)> = Vec::new();
    for slice in world.snapshot.slices_of(&service.name).filter(|slice| slice.family == family) {
        for target in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for endpoint in slice.endpoints.iter().filter(|endpoint| is_usable(endpoint, family)) {
                let address = SocketAddr::new(endpoint.address, target.port);
                match found.iter_mut().find(|(known, _)| *known == address) {
                    Some((_, known)) if known.terminating && !endpoint.terminating => *known = endpoint,
                    Some(_) => {}
                    None => found.push((address, endpoint)),
                }
            }
        }
    }
    found
}

fn is_usable(endpoint: &Endpoint, family: Family) -> bool {
    let odd = match endpoint.address {
        IpAddr::V4(v4) => matches!(v4.octets(), [0 | 127, ..] | [169, 254, ..] | [224..=255, ..]),
        IpAddr::V6(v6) => {
            matches!(v6.segments(), [0, 0, 0, 0, 0, 0, 0, 0 | 1] | [0xfe80..=0xfebf | 0xff00..=0xffff, ..])
        }
    };
    Family::of(endpoint.address) == family && !odd
}

fn is_last_resort(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// S10, S14: those that hints allow among the ready ones; if nobody is ready, whoever still serves.
fn cluster_set(world: &World, endpoints: &[(SocketAddr, &Endpoint)]) -> Vec<SocketAddr> {
    let ready: Vec<_> = endpoints.iter().filter(|(_, endpoint)| endpoint.ready).collect();
    if ready.is_empty() {
        return addresses(endpoints.iter().filter(|(_, endpoint)| is_last_resort(endpoint)));
    }
    let for_node = |endpoint: &Endpoint| hinted_nodes(endpoint).iter().any(|node| **node == *HERE);
    let for_zone = |endpoint: &Endpoint| {
        world.zone().is_some_and(|here| hinted_zones(endpoint).iter().any(|zone| **zone == *here))
    };
    let all = |has: fn(&Endpoint) -> &[Arc<str>]| ready.iter().all(|(_, found)| !has(found).is_empty());
    let any = |has: &dyn Fn(&Endpoint) -> bool| ready.iter().any(|(_, found)| has(found));
    if all(hinted_nodes) && any(&for_node) {
        addresses(ready.into_iter().filter(|(_, endpoint)| for_node(endpoint)))
    } else if all(hinted_zones) && any(&for_zone) {
        addresses(ready.into_iter().filter(|(_, endpoint)| for_zone(endpoint)))
    } else {
        addresses(ready.into_iter())
    }
}

fn hinted_nodes(endpoint: &Endpoint) -> &[Arc<str>] {
    endpoint.hints.as_ref().map_or(&[], |hints| &hints.nodes)
}

fn hinted_zones(endpoint: &Endpoint) -> &[Arc<str>] {
    endpoint.hints.as_ref().map_or(&[], |hints| &hints.zones)
}

/// S11, S15.
fn local_set(endpoints: &[(SocketAddr, &Endpoint)]) -> Vec<SocketAddr> {
    let local = || endpoints.iter().filter(|(_, endpoint)| endpoint.node.as_deref() == Some(HERE));
    let ready = addresses(local().filter(|(_, endpoint)| endpoint.ready));
    if ready.is_empty() { addresses(local().filter(|(_, endpoint)| is_last_resort(endpoint))) } else { ready }
}

fn addresses<'a>(chosen: impl Iterator<Item = &'a (SocketAddr, &'a Endpoint)>) -> Vec<SocketAddr> {
    chosen.map(|(address, _)| *address).collect()
}

/// Every endpoint of every Service port, in whatever state.
pub(crate) fn backends(world: &World) -> HashSet<(SocketAddr, u8)> {
    let mut all = HashSet::new();
    for service in world.snapshot.services.values() {
        for port in served(service) {
            for address in &service.cluster_ips {
                let endpoints = endpoints(world, service, port, Family::of(*address));
                all.extend(endpoints.iter().map(|(backend, _)| (*backend, port.protocol.number())));
            }
        }
    }
    all
}
