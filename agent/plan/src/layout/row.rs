//! From what is desired to rows of the maps, once ids are known. Called by the layout.

use std::collections::BTreeMap;
use std::net::IpAddr;

use quilla_abi::Be16;
use quilla_abi::address::v4_mapped;
use quilla_abi::backend::Backend;
use quilla_abi::endpoint::{Endpoint, Interface, flag as endpoint_flag};
use quilla_abi::node::{Node, UnderlayAddress, flag as node_flag};
use quilla_abi::route::{Route, RouteKey, kind};
use quilla_abi::service::ServiceKey;
use quilla_model::{ObjectRef, Problem, Reason};

use crate::desired::{BackendKey, FrontendKey, Marker, Target, Tunnel};
use crate::facts::LocalEndpoint;
use crate::family::AddressFamily;

pub(super) fn backend_row<A: AddressFamily>(key: &BackendKey) -> Option<Backend<A>> {
    let addr = A::from_ip(key.address)?;
    Some(Backend { addr, port: Be16::new(key.port), proto: key.protocol, pad: 0 })
}

pub(super) fn service_key<A: AddressFamily>(key: &FrontendKey) -> Option<ServiceKey<A>> {
    let addr = A::from_ip(key.address)?;
    Some(ServiceKey { addr, port: Be16::new(key.port), proto: key.protocol, scope: key.scope })
}

pub(super) fn marker_key<A: AddressFamily>(marker: &Marker) -> Option<ServiceKey<A>> {
    let addr = A::from_ip(marker.address)?;
    Some(ServiceKey { addr, port: Be16::new(0), proto: 0, scope: marker.scope })
}

pub(super) fn interface_row(id: u32, endpoint: &LocalEndpoint) -> Interface {
    let ipv4 = endpoint.ipv4.map_or(0, |_| endpoint_flag::IPV4);
    let ipv6 = endpoint.ipv6.map_or(0, |_| endpoint_flag::IPV6);
    Interface {
        id,
        pod_mac: endpoint.pod_mac,
        flags: ipv4 | ipv6,
        ipv4: endpoint.ipv4.map_or([0; 4], |address| address.octets()),
        ipv6: endpoint.ipv6.map_or([0; 16], |address| address.octets()),
    }
}

pub(super) fn endpoint_rows<A: AddressFamily>(
    endpoints: &BTreeMap<u32, LocalEndpoint>,
    interfaces: &BTreeMap<u32, Interface>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<A, Endpoint> {
    let mut rows = BTreeMap::new();
    for (&ifindex, endpoint) in endpoints {
        let addresses = [endpoint.ipv4.map(IpAddr::V4), endpoint.ipv6.map(IpAddr::V6)];
        let Some(address) = addresses.into_iter().flatten().find_map(A::from_ip) else { continue };
        let Some(interface) = interfaces.get(&ifindex) else { continue };
        let row =
            Endpoint { ifindex, id: interface.id, pod_mac: endpoint.pod_mac, host_mac: endpoint.host_mac };
        // Two Pods with one address: the newer device has it.
        if let Some(Endpoint { ifindex: loser, .. }) = rows.insert(address, row) {
            let detail = format!("{} is also on interface {loser}", address.to_ip());
            problems.push(Problem::new(ObjectRef::new("Pod", &endpoint.pod), Reason::Conflict, detail));
        }
    }
    rows
}

pub(super) fn route_row<A: AddressFamily>(
    net: &ipnet::IpNet,
    target: &Target,
    node_slots: &BTreeMap<&str, u32>,
) -> Option<(RouteKey<A>, Route)> {
    let addr = A::from_ip(net.network())?;
    let (kind, slot) = match target {
        Target::LocalPods => (kind::LOCAL_PODS, 0),
        // Slot 0 is always free: a node without a slot is dropped as unknown and does not leak to the world.
        Target::RemotePods(node) => (kind::REMOTE_PODS, node_slots.get(node.as_str()).copied().unwrap_or(0)),
        Target::Host => (kind::HOST, 0),
        Target::Services => (kind::SERVICES, 0),
        Target::Native => (kind::NATIVE, 0),
        Target::Unroutable => (kind::UNROUTABLE, 0),
    };
    let node_slot = u16::try_from(slot).ok()?;
    Some((RouteKey { prefix_len: u32::from(net.prefix_len()), addr }, Route { kind, pad: 0, node_slot }))
}

pub(super) fn node_row(tunnel: &Tunnel) -> Node {
    let ipv4 = tunnel.ipv4.map_or(0, |_| node_flag::IPV4);
    let ipv6 = tunnel.ipv6.map_or(0, |_| node_flag::IPV6);
    let native_v4 = if tunnel.path_ipv4.is_native() { node_flag::NATIVE_V4 } else { 0 };
    let native_v6 = if tunnel.path_ipv6.is_native() { node_flag::NATIVE_V6 } else { 0 };
    Node {
        ipv4: tunnel.ipv4.map_or([0; 4], |address| address.octets()),
        ipv6: tunnel.ipv6.map_or([0; 16], |address| address.octets()),
        flags: ipv4 | ipv6 | native_v4 | native_v6,
        vtep_mac: tunnel.mac,
    }
}

pub(super) fn underlay_addresses(tunnel: &Tunnel) -> impl Iterator<Item = UnderlayAddress> {
    let ipv4 = tunnel.ipv4.map(|address| v4_mapped(address.octets()));
    ipv4.into_iter().chain(tunnel.ipv6.map(|address| address.octets()))
}

pub(super) fn node_slots(
    tunnels: &BTreeMap<String, Tunnel>,
    slots: &BTreeMap<&str, u32>,
) -> BTreeMap<UnderlayAddress, u32> {
    let with_slot = tunnels.iter().filter_map(|(name, tunnel)| Some((tunnel, *slots.get(name.as_str())?)));
    with_slot
        .flat_map(|(tunnel, slot)| underlay_addresses(tunnel).map(move |address| (address, slot)))
        .collect()
}
