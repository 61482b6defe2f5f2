//! Routes of the host's stack to the Pods of other nodes: through the overlay device, or by the nodes' addresses.
//!
//! Ours carry a protocol number of their own: nothing else is touched, and whatever of ours is not wanted any more goes.
//! Where somebody else has a route to the same Pods, theirs stays and ours is not written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::error::{DatapathError, Result};
use crate::netlink::{Netlink, is};

/// `rtm_protocol` of our routes; none of those that the kernel's headers assign.
pub const PROTOCOL: u8 = 81;

/// A route to the Pods of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRoute {
    /// The node's Pod CIDR.
    pub destination: IpNet,
    /// Source address of what the host itself sends there: the gateway of our own Pods.
    pub source: Option<IpAddr>,
    /// The node's address, if what is for its Pods goes the same way; else it goes through the overlay device.
    pub by: Option<IpAddr>,
}

/// What a synchronisation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteChanges {
    /// Routes that were missing or different.
    pub written: usize,
    /// Routes of ours that nobody wants.
    pub removed: usize,
    /// Destinations to which somebody else has a route.
    pub taken: Vec<IpNet>,
}

/// What tells two of our routes to one destination apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Via {
    device: Option<u32>,
    source: Option<IpAddr>,
    gateway: Option<IpAddr>,
}

/// What is to be done.
#[derive(Default)]
struct Plan {
    stale: Vec<RouteMessage>,
    /// The route, how it is to be reached, and what is in its place.
    wrong: Vec<(PodRoute, Via, Option<RouteMessage>)>,
}

impl Netlink {
    /// Makes our routes exactly `wanted`; those through the overlay go by the device `ifindex`.
    pub fn sync_routes(&self, ifindex: u32, wanted: &[PodRoute]) -> Result<RouteChanges> {
        let plan = self.plan_routes(ifindex, wanted)?;
        let mut changes = RouteChanges::default();
        for route in plan.stale {
            changes.removed += usize::from(self.remove_route(route)?);
        }
        for (route, via, old) in plan.wrong {
            let mut add = self.handle.route().add(message(&route, via)?);
            match old {
                // IPv4 has one route of a metric, IPv6 would keep the old one beside the new one.
                Some(_) if route.destination.addr().is_ipv4() => add = add.replace(),
                Some(old) => drop(self.remove_route(old)?),
                None => {}
            }
            match self.request("write route", &route.destination.to_string(), add.execute()) {
                Ok(()) => changes.written += 1,
                Err(error) if is(&error, libc::EEXIST) => changes.taken.push(route.destination),
                Err(error) => return Err(error),
            }
        }
        Ok(changes)
    }

    /// Whether our routes are exactly `wanted` but for those that somebody else has.
    pub fn has_routes(&self, ifindex: u32, wanted: &[PodRoute], taken: &[IpNet]) -> Result<bool> {
        let plan = self.plan_routes(ifindex, wanted)?;
        let missing = plan.wrong.iter().any(|(route, ..)| !taken.contains(&route.destination));
        Ok(plan.stale.is_empty() && !missing)
    }

    fn plan_routes(&self, ifindex: u32, wanted: &[PodRoute]) -> Result<Plan> {
        let mut present: BTreeMap<IpNet, RouteMessage> = BTreeMap::new();
        let mut plan = Plan::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for route in self.routes(family)?.into_iter().filter(is_ours) {
                let Some(destination) = destination(&route) else { continue };
                // Two of ours to one destination: only one can be wanted.
                plan.stale.extend(present.insert(destination, route));
            }
        }
        let destinations: BTreeSet<_> = wanted.iter().map(|route| route.destination.trunc()).collect();
        let unwanted = present.iter().filter(|(destination, _)| !destinations.contains(destination));
        plan.stale.extend(unwanted.map(|(_, route)| route.clone()));
        let mut ways: BTreeMap<IpAddr, Option<Via>> = BTreeMap::new();
        for route in wanted {
            let way = match route.by {
                Some(node) => match ways.get(&node) {
                    Some(way) => *way,
                    None => *ways.entry(node).or_insert(self.way_to(node)?),
                },
                None => None,
            };
            let overlay = Via { device: Some(ifindex), ..Via::default() };
            let target = Via { source: route.source, ..way.unwrap_or(overlay) };
            let old = present.get(&route.destination.trunc());
            if old.map(via) != Some(target) {
                plan.wrong.push((*route, target, old.cloned()));
            }
        }
        Ok(plan)
    }

    /// How the host sends to an address; nothing, if it does not.
    pub(super) fn routes_to(&self, address: IpAddr) -> Result<Vec<RouteMessage>> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, length);
        let Ok(route) = route else { return Ok(Vec::new()) };
        let get = self.handle.route().get(route.build()).execute();
        match self.list("look up the route to", &address.to_string(), get) {
            Err(error) if is(&error, libc::ENETUNREACH) || is(&error, libc::EHOSTUNREACH) => Ok(Vec::new()),
            routes => routes,
        }
    }

    /// The device and the next hop to an address of another node: the address itself, where it is a neighbour's.
    fn way_to(&self, node: IpAddr) -> Result<Option<Via>> {
        let found = self.routes_to(node)?;
        let unicast = found.iter().find(|route| route.header.kind == RouteType::Unicast).map(via);
        Ok(unicast.map(|way| Via { gateway: way.gateway.or(Some(node)), ..way }))
    }

    /// Addresses with a route of their own out of a device of this namespace, and the device's name.
    pub fn routes_to_hosts(&self) -> Result<Vec<(String, IpAddr)>> {
        let names = self.device_names()?;
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let single = if family == AddressFamily::Inet { 32 } else { 128 };
            for route in self.routes(family)? {
                let device = via(&route).device.and_then(|ifindex| names.get(&ifindex));
                let address =
                    destination(&route).filter(|net| net.prefix_len() == single).map(|net| net.addr());
                let main = route.header.table == RouteHeader::RT_TABLE_MAIN;
                found.extend(device.cloned().zip(address).filter(|_| main));
            }
        }
        Ok(found)
    }

    fn remove_route(&self, route: RouteMessage) -> Result<bool> {
        let name = destination(&route).map_or_else(String::new, |destination| destination.to_string());
        match self.request("remove route", &name, self.handle.route().del(route).execute()) {
            Ok(()) => Ok(true),
            Err(error) if is(&error, libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(PROTOCOL)
}

fn message(route: &PodRoute, via: Via) -> Result<RouteMessage> {
    let PodRoute { destination, .. } = *route;
    let direct = destination.addr().is_ipv4() && via.gateway.is_none();
    let scope = if direct { RouteScope::Link } else { RouteScope::Universe };
    let mut message =
        RouteMessageBuilder::<IpAddr>::new().protocol(RouteProtocol::Other(PROTOCOL)).scope(scope).build();
    message.header.address_family =
        if destination.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = destination.prefix_len();
    message.attributes.push(RouteAttribute::Destination(destination.network().into()));
    message.attributes.extend(via.device.map(RouteAttribute::Oif));
    for address in [via.source, via.gateway].into_iter().flatten() {
        if address.is_ipv4() != destination.addr().is_ipv4() {
            return Err(DatapathError::RouteFamily { destination, address });
        }
    }
    message.attributes.extend(via.gateway.map(|address| RouteAttribute::Gateway(address.into())));
    message.attributes.extend(via.source.map(|address| RouteAttribute::PrefSource(address.into())));
    Ok(message)
}

fn via(route: &RouteMessage) -> Via {
    let mut via = Via::default();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => via.device = Some(*ifindex),
            RouteAttribute::PrefSource(address) => via.source = ip(address),
            RouteAttribute::Gateway(address) => via.gateway = ip(address),
            _ => {}
        }
    }
    via
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
