//! What each range of addresses is to this node. Called by [`crate::plan()`] and by whoever configures the gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use quilla_abi::map::capacity;
use quilla_abi::service::scope;
use quilla_model::{ObjectRef, Problem, Reason, Snapshot};

use crate::desired::{Marker, Target};
use crate::facts::{Masquerade, NodeFacts};

type Routes = BTreeMap<IpNet, Target>;

/// Ranges that are never delivered from a Pod (E19): this network, loopback, multicast, reserved.
const UNROUTABLE: [&str; 8] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "::ffff:0:0/96",
    "ff00::/8",
];

/// Link-local addresses: not delivered either (E19), unless the operator says how.
const LINK_LOCAL: [&str; 2] = ["169.254.0.0/16", "fe80::/10"];

/// Routes of single addresses of Services: half of the map, the rest is for nodes.
const MAX_VIRTUAL_IPS: usize = (capacity::ROUTES / 2) as usize;

/// All routes; a more particular source of truth replaces a more general one of the same prefix.
///
/// Addresses of Services that belong to a node or a Pod lose their markers: only the Service's ports of them are the
/// Service's.
pub(crate) fn plan(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    markers: &mut BTreeSet<Marker>,
    problems: &mut Vec<Problem>,
) -> Routes {
    let mut routes = Routes::new();
    routes.extend(UNROUTABLE.iter().filter_map(|net| Some((net.parse().ok()?, Target::Unroutable))));
    let Masquerade { except, link_local, link_local_ipv6, enabled: _ } = &facts.masquerade;
    let links = LINK_LOCAL.into_iter().zip([*link_local, *link_local_ipv6]);
    routes.extend(links.filter_map(|(net, masqueraded)| {
        let target = match masqueraded {
            None => Target::Unroutable,
            Some(false) => Target::Native,
            Some(true) => return None,
        };
        Some((net.parse().ok()?, target))
    }));
    for (name, cidrs) in &snapshot.service_cidrs {
        for cidr in cidrs {
            claim(&mut routes, *cidr, Target::Services, || ObjectRef::cluster("ServiceCIDR", name), problems);
        }
    }
    add_pod_cidrs(&mut routes, snapshot, facts, problems);
    let virtual_ips = add_virtual_ips(&routes, snapshot, markers);
    let room = MAX_VIRTUAL_IPS.min(virtual_ips.len());
    if room < virtual_ips.len() {
        let detail = format!("no routes for {} addresses of Services", virtual_ips.len() - room);
        problems.push(Problem::new(ObjectRef::cluster("Node", &facts.name), Reason::Capacity, detail));
    }
    routes.extend(virtual_ips.into_iter().take(room).map(|address| (address, Target::Services)));
    add_exceptions(&mut routes, except);
    let (gateway_ipv4, gateway_ipv6) = gateways(snapshot, &facts.name);
    let gateways = gateway_ipv4.map(IpAddr::V4).into_iter().chain(gateway_ipv6.map(IpAddr::V6));
    routes
        .extend(facts.addresses.iter().copied().chain(gateways).map(|own| (IpNet::from(own), Target::Host)));
    routes
}

/// What Pods reach with their own address. The cluster is reached so anyway: nothing in it loses its route to a range.
fn add_exceptions(routes: &mut Routes, ranges: &[IpNet]) {
    let mut added = Vec::new();
    for range in ranges.iter().map(IpNet::trunc) {
        let cluster = std::iter::successors(Some(range), IpNet::supernet).any(|wider| {
            matches!(routes.get(&wider), Some(Target::LocalPods | Target::RemotePods(_) | Target::Services))
        });
        if !cluster {
            added.push(range);
        }
    }
    for range in added {
        routes.entry(range).or_insert(Target::Native);
    }
}

/// Load balancer and external addresses that need a route of their own, so that no packet for them leaves by the default
/// route (E8). `routes` are those of the cluster, which are disjoint.
fn add_virtual_ips(routes: &Routes, snapshot: &Snapshot, markers: &mut BTreeSet<Marker>) -> Vec<IpNet> {
    let nodes: BTreeSet<IpAddr> =
        snapshot.nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
    let mut wanted = Vec::new();
    let virtual_ips: Vec<_> =
        markers.iter().filter(|marker| marker.scope == scope::EXTERNAL).copied().collect();
    for Marker { address, .. } in virtual_ips {
        let host = IpNet::from(address);
        let around = routes.range(..=host).next_back().filter(|(net, _)| net.contains(&address));
        match around.map(|(_, target)| target) {
            _ if nodes.contains(&address) => unmark(markers, address),
            None => wanted.push(host),
            Some(Target::LocalPods | Target::RemotePods(_)) => unmark(markers, address),
            Some(_) => {}
        }
    }
    wanted
}

fn unmark(markers: &mut BTreeSet<Marker>, address: IpAddr) {
    for scope in [scope::INTERNAL, scope::EXTERNAL] {
        markers.remove(&Marker { address, scope });
    }
}

fn add_pod_cidrs(routes: &mut Routes, snapshot: &Snapshot, facts: &NodeFacts, problems: &mut Vec<Problem>) {
    // This node first: whatever another node claims, its own Pods stay its own.
    let (own, others): (Vec<_>, Vec<_>) = snapshot.nodes.values().partition(|node| node.name == facts.name);
    for node in own.into_iter().chain(others) {
        for cidr in &node.pod_cidrs {
            let target = if node.name == facts.name {
                Target::LocalPods
            } else {
                Target::RemotePods(node.name.clone())
            };
            claim(routes, *cidr, target, || ObjectRef::cluster("Node", &node.name), problems);
        }
    }
}

/// Adds a route of the cluster's, unless another object has an equal, wider or narrower one already.
fn claim(
    routes: &mut Routes,
    cidr: IpNet,
    target: Target,
    object: impl Fn() -> ObjectRef,
    problems: &mut Vec<Problem>,
) {
    let cidr = cidr.trunc();
    let clash = overlapping(routes, cidr);
    match clash {
        None => {
            routes.insert(cidr, target);
        }
        Some(other) => {
            let detail = format!("{cidr} overlaps {other} and is left out");
            problems.push(Problem::new(object(), Reason::Conflict, detail));
        }
    }
}

/// A route that shares addresses with `cidr`. Prefixes nest or are disjoint: one that starts within `cidr` is inside it
/// or around it, and any other one around it is found by shortening `cidr` bit by bit.
fn overlapping(routes: &Routes, cidr: IpNet) -> Option<IpNet> {
    let wider = std::iter::successors(cidr.supernet(), IpNet::supernet);
    let start = IpNet::new(cidr.network(), 0).ok()?;
    let next = routes.range(start..).next().map(|(net, _)| *net);
    next.filter(|net| cidr.contains(&net.network()))
        .or_else(|| wider.into_iter().find(|net| routes.contains_key(net)))
}

/// The least prefix of each family around all Pod CIDRs of a node: what comes for it may be for a Pod. Where that would be
/// half the world, around the first one; what comes plainly for the others is left to the host's stack.
pub(crate) fn around_pods(snapshot: &Snapshot, node: &str) -> (Option<Ipv4Net>, Option<Ipv6Net>) {
    let cidrs = snapshot.nodes.get(node).map_or(&[][..], |node| &node.pod_cidrs);
    let around = |v4: bool, least: u8| {
        let mut own = cidrs.iter().copied().filter(|cidr| cidr.addr().is_ipv4() == v4);
        let first = own.next()?.trunc();
        let all = own.try_fold(first, |around, cidr| {
            std::iter::successors(Some(around), IpNet::supernet).find(|wider| wider.contains(&cidr))
        });
        Some(all.filter(|all| all.prefix_len() >= least).unwrap_or(first))
    };
    let ipv4 = around(true, 8).and_then(|net| if let IpNet::V4(net) = net { Some(net) } else { None });
    let ipv6 = around(false, 16).and_then(|net| if let IpNet::V6(net) = net { Some(net) } else { None });
    (ipv4, ipv6)
}

/// The gateways of a node's Pods: the first address of its first Pod CIDR of each family.
pub fn gateways(snapshot: &Snapshot, node: &str) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let cidrs = snapshot.nodes.get(node).map_or(&[][..], |node| &node.pod_cidrs);
    let ipv4 = cidrs.iter().find_map(|cidr| match cidr {
        IpNet::V4(net) => net.network().to_bits().checked_add(1).map(Ipv4Addr::from_bits),
        IpNet::V6(_) => None,
    });
    let ipv6 = cidrs.iter().find_map(|cidr| match cidr {
        IpNet::V6(net) => net.network().to_bits().checked_add(1).map(Ipv6Addr::from_bits),
        IpNet::V4(_) => None,
    });
    (ipv4, ipv6)
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
