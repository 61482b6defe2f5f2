//! A small cluster to plan for, and a look at what was planned.
//!
//! This node is `here`, at 192.0.2.1 and `2001:db8::1`, in zone `z1`; another is `there`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use quilla_abi::service::scope;
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Hints, Node, ObjectName, Problem, Protocol, Service,
    ServicePort, ServiceType, Snapshot,
};
use quilla_plan::{BackendSet, Desired, Frontend, FrontendKey, NodeFacts, plan};

pub(crate) const INSIDE: u8 = scope::INTERNAL;
pub(crate) const OUTSIDE: u8 = scope::EXTERNAL;

/// What goes in.
pub(crate) struct Cluster {
    pub(crate) snapshot: Snapshot,
    pub(crate) facts: NodeFacts,
}

/// What comes out.
pub(crate) struct Planned {
    pub(crate) desired: Desired,
    pub(crate) problems: Vec<Problem>,
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let node = |name: &str, number: u8, zone: &str| Node {
            name: name.into(),
            addresses: ips(&[&format!("192.0.2.{number}"), &format!("2001:db8::{number}")]),
            pod_cidrs: vec![
                format!("10.244.{number}.0/24").parse().expect("a prefix"),
                format!("fd00:244:{number}::/64").parse().expect("a prefix"),
            ],
            zone: Some(zone.into()),
            leaving: false,
        };
        let mut snapshot = Snapshot::default();
        for node in [node("here", 1, "z1"), node("there", 2, "z2")] {
            snapshot.nodes.insert(node.name.clone(), Arc::new(node));
        }
        let cidrs = ["10.96.0.0/16", "fd00:96::/112"].map(|cidr| cidr.parse().expect("a prefix"));
        snapshot.service_cidrs.insert("kubernetes".into(), cidrs.into());
        let facts = NodeFacts {
            addresses: ips(&["192.0.2.1", "198.51.100.1", "2001:db8::1"]),
            ..NodeFacts::new("here")
        };
        Self { snapshot, facts }
    }

    pub(crate) fn with(mut self, service: Service) -> Self {
        self.snapshot.services.insert(service.name.clone(), Arc::new(service));
        self
    }

    pub(crate) fn slice(mut self, slice: EndpointSlice) -> Self {
        let slices = self.snapshot.slices.or_default(slice.service.clone());
        slices.insert(slice.name.name.clone(), Arc::new(slice));
        self
    }

    /// Endpoints of the port without a name, at 8080 for TCP and 5353 for UDP, in a slice of each family that occurs.
    pub(crate) fn endpoints(self, service: &str, endpoints: &[Endpoint]) -> Self {
        [Family::V4, Family::V6].into_iter().fold(self, |cluster, family| {
            let of_family = endpoints.iter().filter(|endpoint| Family::of(endpoint.address) == family);
            let of_family: Vec<_> = of_family.cloned().collect();
            if of_family.is_empty() { cluster } else { cluster.slice(slice(service, family, of_family)) }
        })
    }

    pub(crate) fn plan(&self) -> Planned {
        let (desired, problems) = plan(&self.snapshot, &self.facts);
        Planned { desired, problems }
    }
}

pub(crate) fn slice(service: &str, family: Family, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let port = |port, protocol| EndpointPort { name: "".into(), port, protocol };
    EndpointSlice {
        name: ObjectName::new("shop", format!("{service}-{family:?}")),
        service: ObjectName::new("shop", service),
        family,
        ports: vec![port(8080, Protocol::Tcp), port(5353, Protocol::Udp)],
        endpoints,
        weight: 1,
    }
}

/// A `ClusterIP` Service of one TCP port, 80.
pub(crate) fn cluster_ip(name: &str, addresses: &[&str]) -> Service {
    Service {
        cluster_ips: ips(addresses),
        ports: vec![port("", 80, Protocol::Tcp, None)],
        ..Service::new(ObjectName::new("shop", name))
    }
}

/// The same with a node port, 30080.
pub(crate) fn node_port(name: &str, addresses: &[&str]) -> Service {
    Service {
        kind: ServiceType::NodePort,
        ports: vec![port("", 80, Protocol::Tcp, Some(30_080))],
        ..cluster_ip(name, addresses)
    }
}

/// The same with addresses of a load balancer.
pub(crate) fn load_balancer(name: &str, addresses: &[&str], virtual_ips: &[&str]) -> Service {
    Service {
        kind: ServiceType::LoadBalancer,
        load_balancer_ips: ips(virtual_ips),
        ..node_port(name, addresses)
    }
}

pub(crate) fn port(name: &str, port: u16, protocol: Protocol, node_port: Option<u16>) -> ServicePort {
    ServicePort { name: name.into(), port, protocol, node_port }
}

/// An endpoint in letters: `r`eady, `s`erving, `t`erminating, on this node (`l`); then hints: `@node` and zones.
pub(crate) fn endpoint(address: &str, letters: &str, hints: &str) -> Endpoint {
    let names = |node: bool| {
        let hints = hints.split_whitespace().filter(move |hint| hint.starts_with('@') == node);
        hints.map(|hint| hint.trim_start_matches('@').into()).collect()
    };
    Endpoint {
        address: ip(address),
        ready: letters.contains('r'),
        serving: letters.contains('s'),
        terminating: letters.contains('t'),
        node: Some(if letters.contains('l') { "here" } else { "there" }.into()),
        pod: None,
        hints: (!hints.is_empty()).then(|| Arc::new(Hints { nodes: names(true), zones: names(false) })),
    }
}

/// A ready endpoint on this node and one on the other.
pub(crate) fn two() -> [Endpoint; 2] {
    [endpoint("10.244.1.2", "rsl", ""), endpoint("10.244.2.2", "rs", "")]
}

impl Planned {
    /// The TCP frontend at an address and port.
    pub(crate) fn frontend(&self, at: &str, scope: u8) -> Option<&Frontend> {
        self.frontend_of(at, Protocol::Tcp, scope)
    }

    pub(crate) fn frontend_of(&self, at: &str, protocol: Protocol, scope: u8) -> Option<&Frontend> {
        let at: SocketAddr = at.parse().expect("an address and port");
        let key = FrontendKey { address: at.ip(), port: at.port(), protocol: protocol.number(), scope };
        self.desired.frontends.get(&key)
    }

    /// What stands behind the TCP frontend, which must be there.
    pub(crate) fn set(&self, at: &str, scope: u8) -> &BackendSet {
        let frontend = self.frontend(at, scope).unwrap_or_else(|| panic!("no frontend at {at} in {scope}"));
        &self.desired.sets[&frontend.set]
    }

    /// Its members; `None` without a frontend.
    pub(crate) fn backends(&self, at: &str, scope: u8) -> Option<Vec<String>> {
        let frontend = self.frontend(at, scope)?;
        Some(members(&self.desired.sets[&frontend.set]))
    }

    /// All frontends of a scope, as text.
    pub(crate) fn listed(&self, scope: u8) -> Vec<String> {
        let mut of_scope: Vec<_> = self.desired.frontends.keys().filter(|key| key.scope == scope).collect();
        of_scope.sort_unstable();
        of_scope
            .into_iter()
            .map(|key| {
                let protocol = if key.protocol == Protocol::Udp.number() { "udp" } else { "tcp" };
                format!("{} {protocol}", SocketAddr::new(key.address, key.port))
            })
            .collect()
    }

    pub(crate) fn markers(&self, scope: u8) -> Vec<String> {
        let of_scope = self.desired.markers.keys().filter(|marker| marker.scope == scope);
        let mut listed: Vec<_> = of_scope.map(|marker| marker.address.to_string()).collect();
        listed.sort_unstable();
        listed
    }

    /// Problems as text.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.problems.iter().map(Problem::to_string).collect()
    }
}

pub(crate) fn members(set: &BackendSet) -> Vec<String> {
    let text = |member: &quilla_plan::Member| {
        SocketAddr::new(member.backend.address, member.backend.port).to_string()
    };
    set.members.iter().map(text).collect()
}
