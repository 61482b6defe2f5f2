//! A small cluster in the maps: two Pods here, one on another node, a Service, the world.
//!
//! Two rows are not as an agent would write them: the host side of each Pod's veth has the *other* Pod's Ethernet
//! address, and the overlay device has the first Pod's. So a packet that was forwarded looks, to the hook that it came
//! from, as if the same Pod had sent it, and the same test run can send it again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use quilla_abi::address::v4_mapped;
use quilla_abi::backend::Backend;
use quilla_abi::config::{Config, OVERLAY_PORT, SNAT_PORT_MAX, SNAT_PORT_MIN, flag};
use quilla_abi::endpoint::{self, Endpoint, Interface};
use quilla_abi::node::{self, Node};
use quilla_abi::route::{Route, RouteKey, kind};
use quilla_abi::service::{Service, ServiceKey, scope};
use quilla_abi::version::SCHEMA;
use quilla_abi::{Be16, epoch};
use quilla_datapath::Maps;
use quilla_tests::bare_node;
use quilla_tests::netns::Netns;
use quilla_tests::packet::number::TCP;

/// The host sides of the Pods' veths, and the Pods' Ethernet addresses.
pub(super) const PODS: [(u32, [u8; 6]); 2] = [(11, [2, 0, 0, 0, 1, 1]), (12, [2, 0, 0, 0, 1, 2])];
pub(super) const UPLINK: u32 = 21;
pub(super) const OVERLAY: u32 = 22;
/// Port of the Service, and of the backend behind it, which is the second Pod.
pub(super) const PORTS: [u16; 2] = [80, 8080];
/// The other node's slot and underlay address.
pub(super) const PEER: (u32, Ipv4Addr) = (2, Ipv4Addr::new(192, 168, 77, 2));
/// The other node's Ethernet address on the underlay, and the uplink's own.
pub(super) const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 9, 9];
pub(super) const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];
pub(super) const VNI: u32 = 7;

/// The parties, in one family.
pub(super) struct Addresses {
    pub(super) pods: [IpAddr; 2],
    pub(super) remote: IpAddr,
    pub(super) service: IpAddr,
    pub(super) host: IpAddr,
    pub(super) world: [IpAddr; 2],
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(prefix: [u16; 4], host: u16) -> IpAddr {
    let [a, b, c, d] = prefix;
    IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, host))
}

pub(super) const FAMILIES: [Addresses; 2] = [
    Addresses {
        pods: [v4(10, 244, 1, 2), v4(10, 244, 1, 3)],
        remote: v4(10, 244, 2, 2),
        service: v4(10, 96, 0, 10),
        host: v4(192, 168, 77, 1),
        world: [v4(203, 0, 113, 9), v4(203, 0, 113, 77)],
    },
    Addresses {
        pods: [v6([0xfd00, 0x244, 0, 1], 2), v6([0xfd00, 0x244, 0, 1], 3)],
        remote: v6([0xfd00, 0x244, 0, 2], 2),
        service: v6([0xfd00, 0x96, 0, 0], 10),
        host: v6([0xfd00, 0x77, 0, 0], 1),
        world: [v6([0x2001, 0xdb8, 0, 0], 9), v6([0x2001, 0xdb8, 0, 0], 0x77)],
    },
];

/// A namespace with the devices, for whoever runs inside.
pub(super) fn namespace() -> Result<Netns> {
    let netns = bare_node::create("bench", &[PODS[0].0, PODS[1].0], UPLINK, OVERLAY)?;
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    netns.ip(&format!(
        "link set d{UPLINK} address {}\nneigh replace {} lladdr {} dev d{UPLINK} nud permanent",
        text(UPLINK_MAC),
        PEER.1,
        text(NEXT_HOP)
    ))?;
    Ok(netns)
}

/// Has the programs write and remove outer headers themselves.
pub(super) fn encapsulate(maps: &Maps) -> Result<()> {
    let config = config();
    let row =
        Config { flags: config.flags | flag::DIRECT | flag::OPEN, tunnel_ipv4: config.host_ipv4, ..config };
    maps.config.set(0, &row)?;
    bump(maps)
}

/// Makes every flow look at the maps again.
fn bump(maps: &Maps) -> Result<()> {
    let global = maps.epochs.get(epoch::GLOBAL)?.unwrap_or_default();
    Ok(maps.epochs.set(epoch::GLOBAL, &(global + 1))?)
}

/// Writes the cluster into empty maps.
pub(super) fn install(maps: &Maps) -> Result<()> {
    maps.nodes.set(PEER.0, &peer())?;
    maps.node_slots.insert(&v4_mapped(PEER.1.octets()), &PEER.0)?;
    for (number, addresses) in FAMILIES.iter().enumerate() {
        routes(maps, addresses)?;
        for pod in 0..PODS.len() {
            install_pod(maps, pod, addresses.pods[pod])?;
        }
        // Each family has backend 1 of its own, but they share the slots.
        install_service(maps, u32::try_from(number)?, addresses)?;
    }
    for (id, &(ifindex, pod_mac)) in (1..).zip(&PODS) {
        let [v4, v6] = [0, 1].map(|family| FAMILIES[family].pods[id as usize - 1]);
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (v4, v6) else { unreachable!("IPv4 comes first") };
        let flags = endpoint::flag::IPV4 | endpoint::flag::IPV6;
        let row = Interface { id, pod_mac, flags, ipv4: v4.octets(), ipv6: v6.octets() };
        maps.interfaces.insert(&ifindex, &row)?;
    }
    maps.config.set(0, &config())?;
    bump(maps)
}

fn peer() -> Node {
    Node { ipv4: PEER.1.octets(), ipv6: [0; 16], flags: node::flag::IPV4, vtep_mac: [2, 0, 0, 0, 3, 2] }
}

fn config() -> Config {
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (FAMILIES[0].host, FAMILIES[1].host) else {
        unreachable!("IPv4 comes first")
    };
    Config {
        schema: SCHEMA,
        flags: flag::MASQUERADE_V4 | flag::MASQUERADE_V6,
        uplink_ifindex: UPLINK,
        overlay_ifindex: OVERLAY,
        vni: VNI,
        hash_seed: 0x5eed,
        snat_port_min: SNAT_PORT_MIN,
        snat_port_max: SNAT_PORT_MAX,
        host_ipv4: v4.octets(),
        host_ipv6: v6.octets(),
        vtep_mac: PODS[0].1,
        overlay_port: OVERLAY_PORT,
        frontend_port_min: 1,
        ..Config::default()
    }
}

fn routes(maps: &Maps, addresses: &Addresses) -> Result<()> {
    let subnet = if addresses.host.is_ipv4() { 24 } else { 64 };
    let single = if addresses.host.is_ipv4() { 32 } else { 128 };
    for (address, prefix_len, kind, slot) in [
        (addresses.pods[0], subnet, kind::LOCAL_PODS, 0),
        (addresses.remote, subnet, kind::REMOTE_PODS, PEER.0),
        (addresses.service, subnet, kind::SERVICES, 0),
        (addresses.host, single, kind::HOST, 0),
    ] {
        let route = Route { kind, pad: 0, node_slot: u16::try_from(slot)? };
        match address {
            IpAddr::V4(addr) => {
                maps.routes_v4.insert(&RouteKey { prefix_len, addr: addr.octets() }, &route)?;
            }
            IpAddr::V6(addr) => {
                maps.routes_v6.insert(&RouteKey { prefix_len, addr: addr.octets() }, &route)?;
            }
        }
    }
    Ok(())
}

fn install_pod(maps: &Maps, pod: usize, address: IpAddr) -> Result<()> {
    let (ifindex, pod_mac) = PODS[pod];
    let id = u32::try_from(pod + 1)?;
    let row = Endpoint { ifindex, id, pod_mac, host_mac: PODS[1 - pod].1 };
    match address {
        IpAddr::V4(addr) => maps.endpoints_v4.insert(&addr.octets(), &row)?,
        IpAddr::V6(addr) => maps.endpoints_v6.insert(&addr.octets(), &row)?,
    }
    Ok(())
}

fn install_service(maps: &Maps, number: u32, addresses: &Addresses) -> Result<()> {
    const BACKEND: u32 = 1;
    let [port, target] = PORTS.map(Be16::new);
    let row = Service {
        id: number + 1,
        slot_base: number,
        slot_count: 1,
        affinity_seconds: 0,
        slow_start_seconds: 0,
        flags: 0,
    };
    maps.slots.set(number, &BACKEND)?;
    match (addresses.service, addresses.pods[1]) {
        (IpAddr::V4(service), IpAddr::V4(pod)) => {
            let backend = Backend { addr: pod.octets(), port: target, proto: TCP, pad: 0 };
            maps.backends_v4.set(BACKEND, &backend)?;
            maps.backend_ids_v4.insert(&backend, &BACKEND)?;
            let key = ServiceKey { addr: service.octets(), port, proto: TCP, scope: scope::INTERNAL };
            maps.services_v4.insert(&key, &row)?;
        }
        (IpAddr::V6(service), IpAddr::V6(pod)) => {
            let backend = Backend { addr: pod.octets(), port: target, proto: TCP, pad: 0 };
            maps.backends_v6.set(BACKEND, &backend)?;
            maps.backend_ids_v6.insert(&backend, &BACKEND)?;
            let key = ServiceKey { addr: service.octets(), port, proto: TCP, scope: scope::INTERNAL };
            maps.services_v6.insert(&key, &row)?;
        }
        _ => unreachable!("the parties are of one family"),
    }
    Ok(())
}
