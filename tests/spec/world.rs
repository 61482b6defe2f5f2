//! A random small cluster as one node sees it, and nothing about how a data path would store it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;

use crate::wire::{TCP, UDP};

pub(crate) const SNAT_PORTS: std::ops::RangeInclusive<u16> = 61_000..=61_400;
pub(crate) const OVERLAY_PORT: u16 = 8472;

/// A Pod on this node.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub host_mac: [u8; 6],
    pub addresses: [IpAddr; 2],
}

/// Another node.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub slot: u32,
    pub underlay: Ipv4Addr,
    pub vtep_mac: [u8; 6],
    /// Its Pods; all inside its Pod CIDRs.
    pub pods: Vec<[IpAddr; 2]>,
}

/// A frontend and what stands behind it.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    pub frontend: SocketAddr,
    pub proto: u8,
    pub backends: Vec<SocketAddr>,
}

/// Everything this node knows.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub pods: Vec<Pod>,
    pub peers: Vec<Peer>,
    pub services: Vec<Service>,
    /// Node addresses, by family.
    pub host: [IpAddr; 2],
    /// Gateway of the Pods, by family; also the host's.
    pub gateway: [IpAddr; 2],
    pub vtep_mac: [u8; 6],
    pub uplink: u32,
    pub overlay: u32,
    /// Hosts outside of the cluster.
    pub outside: Vec<IpAddr>,
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
    ServiceCidr,
    /// Multicast, broadcast.
    Multicast,
    /// Link-local, loopback, unspecified, reserved.
    Unroutable,
    /// Addresses of the uplink's own link that the host's routing forwards nowhere: broadcast and router anycast.
    OwnLink,
    Outside,
}

/// 10.244.`node`.`host`/24 and fd00:244:0:`node`::`host`/64: the Pod CIDR of node `node`.
pub(crate) fn pod_address(node: u8, host: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 244, node, host).into(),
        Ipv6Addr::new(0xfd00, 0x244, 0, u16::from(node), 0, 0, 0, u16::from(host)).into(),
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
            })
            .collect();
        let peers: Vec<Peer> = (2..=2 + rng.u8(1..3))
            .map(|node| Peer {
                slot: u32::from(node),
                underlay: Ipv4Addr::new(192, 168, 77, node),
                vtep_mac: [2, 0, 0, 0, 3, node],
                pods: (2..=2 + rng.u8(0..3)).map(|host| pod_address(node, host)).collect(),
            })
            .collect();
        let mut world = Self {
            pods,
            peers,
            services: Vec::new(),
            host: [Ipv4Addr::new(192, 168, 77, 1).into(), "fd00:77::1".parse().expect("an address")],
            gateway: pod_address(1, 1),
            vtep_mac: [2, 0, 0, 0, 3, 1],
            uplink,
            overlay,
            outside: ["192.168.77.200", "203.0.113.9", "fd00:77::200", "2001:db8::9"]
                .map(|address| address.parse().expect("an address"))
                .to_vec(),
        };
        for number in 1..=rng.u8(2..6) {
            world.add_service(rng, number);
        }
        world
    }

    /// One dual-stack Service on TCP or UDP, or the same port on both (S27).
    fn add_service(&mut self, rng: &mut Rng, number: u8) {
        let protos: &[u8] = [&[TCP][..], &[UDP], &[TCP, UDP]][rng.usize(0..3)];
        let (port, target) =
            (rng.choice([53, 80]).expect("not empty"), rng.choice([53, 80, 8080]).expect("not empty"));
        for &proto in protos {
            for family in 0..2 {
                let mut candidates: Vec<IpAddr> = self.pods.iter().map(|pod| pod.addresses[family]).collect();
                candidates.extend(self.peers.iter().flat_map(|peer| &peer.pods).map(|pod| pod[family]));
                candidates.push(self.host[family]);
                candidates.push(self.outside[family * 2]);
                rng.shuffle(&mut candidates);
                candidates.truncate(rng.usize(0..5));
                self.services.push(Service {
                    frontend: SocketAddr::new(service_address(number)[family], port),
                    proto,
                    backends: candidates
                        .into_iter()
                        .map(|address| SocketAddr::new(address, target))
                        .collect(),
                });
            }
        }
    }

    pub(crate) fn service(&self, address: IpAddr, port: u16, proto: u8) -> Option<usize> {
        let frontend = SocketAddr::new(address, port);
        self.services.iter().position(|service| service.frontend == frontend && service.proto == proto)
    }

    /// Whether some Service sends traffic there.
    pub(crate) fn is_backend(&self, address: IpAddr, port: u16, proto: u8) -> bool {
        let backend = SocketAddr::new(address, port);
        self.services.iter().any(|service| service.proto == proto && service.backends.contains(&backend))
    }

    pub(crate) fn is_host(&self, address: IpAddr) -> bool {
        self.host.contains(&address) || self.gateway.contains(&address)
    }

    pub(crate) fn place(&self, address: IpAddr) -> Place {
        if self.is_host(address) {
            return Place::Host;
        }
        if let Some(pod) = self.pods.iter().position(|pod| pod.addresses.contains(&address)) {
            return Place::Local(pod);
        }
        match address {
            IpAddr::V4(v4) => match v4.octets() {
                [192, 168, 77, 255] => Place::OwnLink,
                [10, 244, 1, _] => Place::Nobody,
                [10, 244, node, _] => self.peer_place(node),
                [10, 96, _, _] => Place::ServiceCidr,
                [255, 255, 255, 255] | [224..=239, ..] => Place::Multicast,
                [0 | 127 | 240..=255, ..] | [169, 254, ..] => Place::Unroutable,
                _ => Place::Outside,
            },
            IpAddr::V6(v6) => match v6.segments() {
                [0xfd00, 0x77, 0, 0, 0, 0, 0, 0] => Place::OwnLink,
                [0xfd00, 0x244, 0, 1, ..] => Place::Nobody,
                [0xfd00, 0x244, 0, node, ..] => {
                    u8::try_from(node).map_or(Place::Outside, |node| self.peer_place(node))
                }
                [0xfd00, 0x96, 0, 0, 0, 0, 0, _] => Place::ServiceCidr,
                [0xff00..=0xffff, ..] => Place::Multicast,
                [0xfe80..=0xfebf, ..] | [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Place::Unroutable,
                _ => Place::Outside,
            },
        }
    }

    fn peer_place(&self, node: u8) -> Place {
        self.peers.iter().position(|peer| peer.slot == u32::from(node)).map_or(Place::Outside, Place::Remote)
    }
}

/// 0 for IPv4, 1 for IPv6: the index of `[IpAddr; 2]`.
pub(crate) fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}
