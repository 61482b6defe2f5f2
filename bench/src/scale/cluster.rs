//! A cluster as the watches would know it: Services, slices of at most 100 endpoints, one Service far larger than all
//! others. Invariant: no two endpoints have the same address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort, Snapshot,
};

/// As many as Kubernetes puts into one.
const SLICE: u32 = 100;
/// Which Services have both families: one in so many, never the largest.
const DUAL_STACK: u32 = 10;
/// Nodes that the endpoints are on.
const NODES: u32 = 500;

/// How large it is.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) services: u32,
    pub(super) endpoints: u32,
    pub(super) largest: u32,
}

pub(super) struct Cluster {
    snapshot: Snapshot,
    nodes: Vec<Arc<str>>,
    /// Service, slice and place in it of each endpoint.
    places: Vec<(ObjectName, Arc<str>, usize)>,
}

impl Cluster {
    pub(super) fn new(shape: Shape) -> Self {
        let nodes = (0..NODES).map(|number| format!("node-{number}").into()).collect();
        let mut cluster = Self { snapshot: Snapshot::default(), nodes, places: Vec::new() };
        let rest = shape.endpoints - shape.largest;
        let others = (shape.services - 1).max(1);
        for number in 0..shape.services {
            let share = match number {
                0 => shape.largest,
                _ => rest / others + u32::from(number <= rest % others),
            };
            cluster.add(number, share);
        }
        cluster
    }

    pub(super) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Takes the readiness of an endpoint, or gives it back; the new snapshot.
    pub(super) fn flip(&mut self, endpoint: u32) -> Snapshot {
        let (service, slice, place) = &self.places[endpoint as usize];
        if let Some(slice) = self.snapshot.slices.get_mut(service).and_then(|slices| slices.get_mut(&**slice))
        {
            let endpoint = &mut Arc::make_mut(slice).endpoints[*place];
            (endpoint.ready, endpoint.serving) = (!endpoint.ready, !endpoint.serving);
        }
        self.snapshot.clone()
    }

    fn add(&mut self, number: u32, endpoints: u32) {
        let name = ObjectName::new("default", format!("service-{number}"));
        let port = |name: &str, port| ServicePort {
            name: name.into(),
            port,
            protocol: Protocol::Tcp,
            node_port: None,
        };
        let dual_stack = number % DUAL_STACK == 1;
        let mut cluster_ips = vec![cluster_ip(Family::V4, number)];
        cluster_ips.extend(dual_stack.then(|| cluster_ip(Family::V6, number)));
        let service = Service {
            cluster_ips,
            ports: vec![port("http", 80), port("admin", 81)],
            ..Service::new(name.clone())
        };
        self.snapshot.services.insert(name.clone(), Arc::new(service));
        let of_v6 = if dual_stack { endpoints / 2 } else { 0 };
        for (family, mut left) in [(Family::V4, endpoints - of_v6), (Family::V6, of_v6)] {
            let mut part = 0;
            while left > 0 {
                let slice = self.slice(&name, family, part, left.min(SLICE));
                self.snapshot
                    .slices
                    .or_default(name.clone())
                    .insert(Arc::clone(&slice.name.name), Arc::new(slice));
                left -= left.min(SLICE);
                part += 1;
            }
        }
    }

    fn slice(&mut self, service: &ObjectName, family: Family, part: u32, endpoints: u32) -> EndpointSlice {
        let version = if family == Family::V4 { 4 } else { 6 };
        let name: Arc<str> = format!("{}-v{version}-{part}", service.name).into();
        let target = |name: &str, port| EndpointPort { name: name.into(), port, protocol: Protocol::Tcp };
        let endpoints = (0..endpoints as usize).map(|place| {
            let number = u32::try_from(self.places.len()).unwrap_or(u32::MAX);
            self.places.push((service.clone(), Arc::clone(&name), place));
            Endpoint {
                address: pod_ip(family, number),
                ready: true,
                serving: true,
                terminating: false,
                node: Some(Arc::clone(&self.nodes[(number % NODES) as usize])),
                pod: Some(format!("{}-7d4b9c6f5d-{:05x}", service.name, number).into()),
                hints: None,
            }
        });
        let endpoints = endpoints.collect();
        EndpointSlice {
            name: ObjectName { namespace: Arc::clone(&service.namespace), name },
            service: service.clone(),
            family,
            ports: vec![target("http", 8080), target("admin", 9090)],
            endpoints,
            weight: 1,
        }
    }
}

fn cluster_ip(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(0x0a60_0001 + number).into(),
        Family::V6 => Ipv6Addr::from_bits(0xfd00_0096 << 96 | u128::from(number + 1)).into(),
    }
}

fn pod_ip(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(0x0b00_0001 + number).into(),
        Family::V6 => Ipv6Addr::from_bits(0xfd00_0244 << 96 | u128::from(number + 1)).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::{Cluster, Shape};

    #[test]
    fn it_has_as_many_endpoints_as_asked_for_all_different() {
        let cluster = Cluster::new(Shape { services: 50, endpoints: 1_000, largest: 250 });
        let slices = cluster.snapshot().slices.values().flat_map(|slices| slices.values().map(Arc::as_ref));
        let addresses: Vec<_> =
            slices.flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address)).collect();
        assert_eq!((addresses.len(), addresses.iter().collect::<BTreeSet<_>>().len()), (1_000, 1_000));
        assert!(addresses.iter().any(std::net::IpAddr::is_ipv6));
        assert_eq!(cluster.snapshot().services.len(), 50);
    }
}
