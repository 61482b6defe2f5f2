//! A random small cluster as one node sees it: its intent as the API gives it, and nothing about how a data path would
//! store it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use fastrand::Rng;
use ipnet::IpNet;
use quilla_model::{Node, ObjectName, Snapshot};
use quilla_plan::{HostPort, LocalEndpoint, NodeFacts, Routing};

use crate::peer::{self, Peer};
use crate::service::{self, Services, SetId, Side};

pub(crate) const SNAT_PORTS: std::ops::RangeInclusive<u16> = 61_000..=61_400;
pub(crate) const OVERLAY_PORT: u16 = 8472;
pub(crate) const VNI: u32 = 7;
/// This node's name.
pub(crate) const HERE: &str = "here";

/// A Pod on this node.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub host_mac: [u8; 6],
    pub addresses: [IpAddr; 2],
    /// Ports of the node that lead to it.
    pub host_ports: Vec<HostPort>,
}

/// Everything this node knows.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub pods: Vec<Pod>,
    pub peers: Vec<Peer>,
    /// Nodes, Services and endpoints, as the planner reads them.
    pub snapshot: Snapshot,
    /// The node's own addresses, by family.
    pub host: [IpAddr; 2],
    /// More addresses that the node has, of which its object says nothing.
    pub second: [IpAddr; 2],
    /// Gateway of the Pods, by family; also the host's.
    pub gateway: [IpAddr; 2],
    pub vtep_mac: [u8; 6],
    pub uplink: u32,
    pub overlay: u32,
    /// The family of the tunnels that the programs make and open themselves; `None` where the overlay device does.
    pub tunnels: Option<usize>,
    /// How packets get to other nodes' Pods, as the operator has it.
    pub routing: Routing,
    /// How often that was changed.
    pub reroutes: u32,
    /// The largest packet that fits a tunnel; 0: any.
    pub mtu: usize,
    /// Hosts outside of the cluster.
    pub outside: Vec<IpAddr>,
    /// Of the flow hash. It changes, as if another node had its turn: the choices of some Services must not.
    pub hash_seed: u32,
    /// What the Services of the snapshot say.
    pub services: Services,
}

/// What an address is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Index into `pods`.
    Local(usize),
    /// This node's Pod CIDR, but nobody.
    Nobody,
    /// Index into `peers`: anything in that node's Pod CIDR.
    Remote(usize),
    Host,
    /// Of the service CIDRs, or of a Service outside of them.
    ServiceAddress,
    /// Multicast, broadcast.
    Multicast,
    /// Link-local, loopback, unspecified, reserved.
    Unroutable,
    /// What the host's routing forwards nowhere: broadcast and router anycast of the uplink's own link, and nodes to which
    /// it has no way.
    NoRoute,
    Outside,
}

/// 10.244.`node`.`host`/24 and fd00:244:0:`node`::`host`/64: the Pod CIDR of node `node`.
pub(crate) fn pod_address(node: u8, host: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 244, node, host).into(),
        Ipv6Addr::new(0xfd00, 0x244, 0, u16::from(node), 0, 0, 0, u16::from(host)).into(),
    ]
}

/// A load balancer's or external address: 198.51.100.`host` and `2001:db8:51::host`.
pub(crate) fn virtual_address(host: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(198, 51, 100, host).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, u16::from(host)).into(),
    ]
}

/// An address of the service CIDRs 10.96.0.0/16 and `fd00:96::/112`.
pub(crate) fn service_address(host: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 96, 0, host).into(),
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(host)).into(),
    ]
}

impl World {
    /// A random cluster on the given devices: one veth per Pod, one uplink, one stand-in for the overlay device.
    pub(crate) fn random(rng: &mut Rng, pod_devices: &[u32], uplink: u32, overlay: u32) -> Self {
        let pods: Vec<Pod> = pod_devices
            .iter()
            .zip(2u8..)
            .map(|(&ifindex, host)| Pod {
                ifindex,
                mac: [2, 0, 0, 0, 1, host],
                host_mac: [2, 0, 0, 0, 2, host],
                addresses: pod_address(1, host),
                host_ports: Vec::new(),
            })
            .collect();
        let tunnels = rng.choice([None, None, Some(0), Some(1)]).expect("not empty");
        let mut world = Self {
            pods,
            snapshot: Snapshot::default(),
            peers: peer::some(rng, tunnels),
            host: peer::address(1),
            second: [
                Ipv4Addr::new(192, 168, 88, 1).into(),
                Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 1).into(),
            ],
            gateway: pod_address(1, 1),
            vtep_mac: quilla_plan::tunnel::mac_of(HERE),
            uplink,
            overlay,
            tunnels,
            routing: routing(rng),
            reroutes: 0,
            mtu: rng.choice([0, 1_400]).expect("not empty"),
            outside: ["192.168.77.200", "203.0.113.9", "fd00:77::200", "2001:db8::9"]
                .map(|address| address.parse().expect("an address"))
                .to_vec(),
            hash_seed: 0x5eed,
            services: Services::default(),
        };
        world.declare_nodes(rng);
        world
    }

    fn declare_nodes(&mut self, rng: &mut Rng) {
        let services = ["10.96.0.0/16", "fd00:96::/112"].map(|net| net.parse().expect("a range"));
        self.snapshot.service_cidrs.insert("kubernetes".into(), services.to_vec());
        let zone = (rng.u8(0..6) != 0).then(|| "zone-1".to_owned());
        let here = (HERE.to_owned(), 1, self.host.to_vec(), zone);
        let named = |peer: &Peer| peer.named().collect();
        let others = self.peers.iter().map(|peer| (peer.name(), peer.number, named(peer), None));
        for (name, number, addresses, zone) in std::iter::once(here).chain(others) {
            let [v4, v6] = pod_address(number, 0);
            let cidrs = [(v4, 24), (v6, 64)].map(|(net, length)| IpNet::new(net, length).expect("a range"));
            let node = Node { name: name.clone(), addresses, pod_cidrs: cidrs.into(), zone, leaving: false };
            self.snapshot.nodes.insert(name, Arc::new(node));
        }
    }

    /// What the agent knows of the node itself.
    pub(crate) fn facts(&self) -> NodeFacts {
        let v4 = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(_) => unreachable!("the first of a pair is IPv4"),
        };
        let v6 = |address: IpAddr| match address {
            IpAddr::V6(v6) => v6,
            IpAddr::V4(_) => unreachable!("the second of a pair is IPv6"),
        };
        let endpoints = self.pods.iter().map(|pod| LocalEndpoint {
            pod: ObjectName::new("default", format!("pod-{}", pod.ifindex)),
            ifindex: pod.ifindex,
            pod_mac: pod.mac,
            host_mac: pod.host_mac,
            ipv4: Some(v4(pod.addresses[0])),
            ipv6: Some(v6(pod.addresses[1])),
            host_ports: pod.host_ports.clone(),
        });
        let mut facts = NodeFacts {
            uplink_ifindex: self.uplink,
            overlay_ifindex: self.overlay,
            vni: VNI,
            overlay_port: OVERLAY_PORT,
            host_ipv4: Some(v4(self.host[0])),
            host_ipv6: Some(v6(self.host[1])),
            addresses: [self.host, self.second].concat(),
            routing: self.routing,
            networks: self.peers.iter().flat_map(Peer::networks).collect(),
            overlay_mtu: u16::try_from(self.mtu).expect("a small one"),
            hash_seed: self.hash_seed,
            endpoints: endpoints.collect(),
            ..NodeFacts::new(HERE)
        };
        facts.encapsulation.direct = self.tunnels.is_some();
        facts.encapsulation.open = self.tunnels.is_some();
        facts
    }

    /// The operator changes how packets get to other nodes, or networks are joined and left.
    pub(crate) fn reroute(&mut self, rng: &mut Rng) {
        let before: Vec<_> =
            self.peers.iter().map(|peer| [0, 1].map(|of| self.is_native(peer, of))).collect();
        self.routing = routing(rng);
        self.peers.iter_mut().for_each(|peer| peer.near = [rng.bool(), rng.bool()]);
        self.reroutes += 1;
        for (index, before) in before.into_iter().enumerate() {
            if [0, 1].map(|of| self.is_native(&self.peers[index], of)) != before {
                self.peers[index].rerouted = self.reroutes;
            }
        }
    }

    /// Whether packets of a family are for a node's Pods without a tunnel.
    pub(crate) fn is_native(&self, peer: &Peer, family: usize) -> bool {
        peer.names[family]
            && match self.routing {
                Routing::Overlay => false,
                Routing::Native => true,
                Routing::Auto => peer.near[family],
            }
    }

    /// To be called after every change of the snapshot. The endpoints that are gone.
    pub(crate) fn settle(&mut self) -> HashSet<(SocketAddr, u8)> {
        let mut services = service::read(self);
        services.remember_reach(&self.services);
        let before = std::mem::replace(&mut self.services, services).backends;
        before.difference(&self.services.backends).copied().collect()
    }

    /// The sets of endpoints that somebody may use.
    pub(crate) fn sets(&self) -> HashSet<SetId> {
        self.services.frontends.values().map(|frontend| frontend.set.clone()).collect()
    }

    /// Whether some Service may have sent traffic there.
    pub(crate) fn is_backend(&self, address: IpAddr, port: u16, proto: u8) -> bool {
        self.services.backends.contains(&(SocketAddr::new(address, port), proto))
    }

    /// Whether a client outside may find a Service at this port of the node: no other port is looked at.
    pub(crate) fn may_be_node_port(&self, port: u16) -> bool {
        self.services.node_ports.is_some_and(|(first, last)| (first..=last).contains(&port))
    }

    /// Every address of the node.
    pub(crate) fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        [self.host, self.second, self.gateway].concat().into_iter()
    }

    pub(crate) fn zone(&self) -> Option<&str> {
        self.snapshot.nodes[HERE].zone.as_deref()
    }

    pub(crate) fn is_host(&self, address: IpAddr) -> bool {
        self.own_addresses().any(|own| own == address)
    }

    pub(crate) fn place(&self, address: IpAddr) -> Place {
        if self.is_host(address) {
            return Place::Host;
        }
        if let Some(pod) = self.pods.iter().position(|pod| pod.addresses.contains(&address)) {
            return Place::Local(pod);
        }
        if self.services.own.contains(&(Side::Outside, address)) {
            return Place::ServiceAddress;
        }
        if peer::is_nowhere(address) {
            return Place::NoRoute;
        }
        match address {
            IpAddr::V4(v4) => match v4.octets() {
                [192, 168, 77, 255] => Place::NoRoute,
                [10, 244, 1, _] => Place::Nobody,
                [10, 244, node, _] => self.peer_place(node),
                [10, 96, _, _] => Place::ServiceAddress,
                [255, 255, 255, 255] | [224..=239, ..] => Place::Multicast,
                [0 | 127 | 240..=255, ..] | [169, 254, ..] => Place::Unroutable,
                _ => Place::Outside,
            },
            IpAddr::V6(v6) => match v6.segments() {
                [0xfd00, 0x77, 0, 0, 0, 0, 0, 0] => Place::NoRoute,
                [0xfd00, 0x244, 0, 1, ..] => Place::Nobody,
                [0xfd00, 0x244, 0, node, ..] => {
                    u8::try_from(node).map_or(Place::Outside, |node| self.peer_place(node))
                }
                [0xfd00, 0x96, 0, 0, 0, 0, 0, _] => Place::ServiceAddress,
                [0xff00..=0xffff, ..] => Place::Multicast,
                [0xfe80..=0xfebf, ..] | [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Place::Unroutable,
                _ => Place::Outside,
            },
        }
    }

    fn peer_place(&self, node: u8) -> Place {
        self.peers.iter().position(|peer| peer.number == node).map_or(Place::Outside, Place::Remote)
    }
}

fn routing(rng: &mut Rng) -> Routing {
    rng.choice([Routing::Overlay, Routing::Native, Routing::Auto, Routing::Auto]).expect("not empty")
}

/// 0 for IPv4, 1 for IPv6: the index of `[IpAddr; 2]`.
pub(crate) fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}
