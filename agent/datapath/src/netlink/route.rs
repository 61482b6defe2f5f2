//! Routes of the host's stack to the Pods of other nodes, through the overlay device.
//!
//! Ours carry a protocol number of their own: nothing else is touched, and whatever of ours is not wanted any more goes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
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
}

/// What a synchronisation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteChanges {
    /// Routes that were missing or different.
    pub written: usize,
    /// Routes of ours that nobody wants.
    pub removed: usize,
}

/// What tells two of our routes to one destination apart.
type Via = (Option<u32>, Option<IpAddr>);

impl Netlink {
    /// Makes our routes exactly `wanted`, all through the device `ifindex`.
    pub fn sync_routes(&self, ifindex: u32, wanted: &[PodRoute]) -> Result<RouteChanges> {
        let mut present: BTreeMap<IpNet, (Via, RouteMessage)> = BTreeMap::new();
        let mut stale = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for route in self.routes(family)?.into_iter().filter(is_ours) {
                let Some(destination) = destination(&route) else { continue };
                // Two of ours to one destination: only one can be wanted.
                stale.extend(present.insert(destination, (via(&route), route)).map(|(_, route)| route));
            }
        }
        let destinations: BTreeSet<_> = wanted.iter().map(|route| route.destination.trunc()).collect();
        let unwanted = present.iter().filter(|(destination, _)| !destinations.contains(destination));
        stale.extend(unwanted.map(|(_, (_, route))| route.clone()));

        let mut changes = RouteChanges::default();
        for route in stale {
            changes.removed += usize::from(self.remove_route(route)?);
        }
        for route in wanted {
            let target = (Some(ifindex), route.source);
            match present.get(&route.destination.trunc()) {
                Some((via, _)) if *via == target => continue,
                // IPv6 would keep the old one beside the new one.
                Some((_, old)) => drop(self.remove_route(old.clone())?),
                None => {}
            }
            let add = self.handle.route().add(message(ifindex, route)?).replace().execute();
            self.request("write route", &route.destination.to_string(), add)?;
            changes.written += 1;
        }
        Ok(changes)
    }

    /// Addresses with a route of their own out of a device of this namespace, and the device's name.
    pub fn routes_to_hosts(&self) -> Result<Vec<(String, IpAddr)>> {
        let names = self.device_names()?;
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let single = if family == AddressFamily::Inet { 32 } else { 128 };
            for route in self.routes(family)? {
                let device = via(&route).0.and_then(|ifindex| names.get(&ifindex));
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

fn message(ifindex: u32, route: &PodRoute) -> Result<RouteMessage> {
    let PodRoute { destination, source } = *route;
    let scope = if destination.addr().is_ipv4() { RouteScope::Link } else { RouteScope::Universe };
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .output_interface(ifindex)
        .protocol(RouteProtocol::Other(PROTOCOL))
        .scope(scope)
        .build();
    message.header.address_family =
        if destination.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.destination_prefix_length = destination.prefix_len();
    message.attributes.push(RouteAttribute::Destination(destination.network().into()));
    if let Some(address) = source {
        if address.is_ipv4() != destination.addr().is_ipv4() {
            return Err(DatapathError::RouteFamily { destination, address });
        }
        message.attributes.push(RouteAttribute::PrefSource(address.into()));
    }
    Ok(message)
}

fn via(route: &RouteMessage) -> Via {
    let mut via = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => via.0 = Some(*ifindex),
            RouteAttribute::PrefSource(address) => via.1 = ip(address),
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
