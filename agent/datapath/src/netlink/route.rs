//! Routes of the host's stack to the Pods of other nodes: through the overlay device, or by the nodes' addresses.
//!
//! Ours carry a protocol number of their own: nothing else is touched, and whatever of ours is not wanted any more goes.
//! Where somebody else has a route to the same Pods in the main table, theirs stays and there is none of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};

use crate::error::{DatapathError, Result};
use crate::netlink::{Netlink, answer, is};

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
    pub taken: BTreeSet<IpNet>,
    /// Routes that are not as they were wanted.
    pub refused: Vec<Refused>,
}

/// A route that could not be written, or not removed. What was to go by a node's address goes through the overlay instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it leads.
    pub destination: IpNet,
    /// The kernel's answer.
    pub reason: String,
    /// How it was to lead there.
    via: Option<Via>,
}

/// What tells two of our routes to one destination apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Via {
    device: Option<u32>,
    source: Option<IpAddr>,
    /// Of either family.
    gateway: Option<IpAddr>,
}

/// A route that is missing or different.
struct Wrong {
    destination: IpNet,
    target: Via,
    /// What is in its place.
    present: Option<Via>,
}

/// What is to be done.
#[derive(Default)]
struct Plan {
    stale: Vec<(IpNet, RouteMessage)>,
    wrong: Vec<Wrong>,
    taken: BTreeSet<IpNet>,
}

impl Netlink {
    /// Makes our routes exactly `wanted`; those through the overlay go by the device `ifindex`. A route that cannot be
    /// written leaves the others alone.
    pub fn sync_routes(&self, ifindex: u32, wanted: &[PodRoute]) -> Result<RouteChanges> {
        let Plan { stale, wrong, taken } = self.plan_routes(ifindex, wanted)?;
        let mut changes = RouteChanges { taken, ..RouteChanges::default() };
        for (destination, route) in stale {
            match self.remove_route(destination, route) {
                Ok(removed) => changes.removed += usize::from(removed),
                Err(error) => changes.refuse(destination, None, &error),
            }
        }
        for Wrong { destination, target, present } in wrong {
            match self.write_route(destination, target, present) {
                Ok(written) => changes.written += usize::from(written),
                Err(error) if is(&error, libc::EEXIST) => drop(changes.taken.insert(destination)),
                Err(error) => {
                    changes.refuse(destination, Some(target), &error);
                    let instead = Via { device: Some(ifindex), gateway: None, ..target };
                    // One that fails as well fails for the same reason.
                    let written = self.write_route(destination, instead, present).unwrap_or(false);
                    changes.written += usize::from(written);
                }
            }
        }
        Ok(changes)
    }

    /// Whether our routes are as the last synchronisation left them, and another one would find no other way.
    pub fn has_routes(&self, ifindex: u32, wanted: &[PodRoute], last: &RouteChanges) -> Result<bool> {
        let plan = self.plan_routes(ifindex, wanted)?;
        let known = |wrong: &Wrong| {
            let refused =
                |one: &Refused| one.destination == wrong.destination && one.via == Some(wrong.target);
            wrong.present.is_some() && last.refused.iter().any(refused)
        };
        let known_stale = |destination: &IpNet| {
            last.refused.iter().any(|one| one.destination == *destination && one.via.is_none())
        };
        let stale = plan.stale.iter().all(|(destination, _)| known_stale(destination));
        Ok(stale && plan.wrong.iter().all(known) && plan.taken == last.taken)
    }

    fn plan_routes(&self, ifindex: u32, wanted: &[PodRoute]) -> Result<Plan> {
        let wanted: BTreeMap<IpNet, &PodRoute> =
            wanted.iter().map(|route| (route.destination.trunc(), route)).collect();
        let mut present: BTreeMap<IpNet, RouteMessage> = BTreeMap::new();
        let mut plan = Plan::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for route in self.routes(family)? {
                let Some(destination) = destination(&route) else { continue };
                if is_ours(&route) {
                    // Two of ours to one destination: only one can be wanted.
                    plan.stale.extend(present.insert(destination, route).map(|route| (destination, route)));
                } else if is_main(&route) && wanted.contains_key(&destination) {
                    plan.taken.insert(destination);
                }
            }
        }
        let mut ways: BTreeMap<IpAddr, Option<Via>> = BTreeMap::new();
        for (destination, route) in wanted {
            if plan.taken.contains(&destination) {
                continue;
            }
            let way = match route.by {
                Some(node) => match ways.get(&node) {
                    Some(way) => *way,
                    None => *ways.entry(node).or_insert(self.way_to(node)?),
                },
                None => None,
            };
            let overlay = Via { device: Some(ifindex), ..Via::default() };
            let target = Via { source: route.source, ..way.unwrap_or(overlay) };
            let present = present.remove(&destination).as_ref().map(via);
            if present != Some(target) {
                plan.wrong.push(Wrong { destination, target, present });
            }
        }
        plan.stale.extend(present);
        Ok(plan)
    }

    /// Puts a route in the place of what is there of ours, which is never away; says whether that was a change.
    fn write_route(&self, destination: IpNet, via: Via, present: Option<Via>) -> Result<bool> {
        if present == Some(via) {
            return Ok(false);
        }
        let mut add = self.handle.route().add(message(destination, via)?);
        if present.is_some() {
            add = add.replace();
        }
        self.request("write route", &destination.to_string(), add.execute()).map(|()| true)
    }

    /// How the host sends to an address; nothing, if it does not.
    pub(super) fn routes_to(&self, address: IpAddr) -> Result<Vec<RouteMessage>> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        let route = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, length);
        let Ok(route) = route else { return Ok(Vec::new()) };
        let get = self.handle.route().get(route.build()).execute();
        match self.list("look up the route to", &address.to_string(), get) {
            // The last two: somebody forbids it, or wants it to vanish.
            Err(error)
                if [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL]
                    .iter()
                    .any(|&errno| is(&error, errno)) =>
            {
                Ok(Vec::new())
            }
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
                found.extend(device.cloned().zip(address).filter(|_| is_main(&route)));
            }
        }
        Ok(found)
    }

    fn remove_route(&self, destination: IpNet, route: RouteMessage) -> Result<bool> {
        let delete = self.handle.route().del(route).execute();
        match self.request("remove route", &destination.to_string(), delete) {
            Ok(()) => Ok(true),
            Err(error) if is(&error, libc::ESRCH) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl RouteChanges {
    fn refuse(&mut self, destination: IpNet, via: Option<Via>, error: &DatapathError) {
        let source = std::error::Error::source(error);
        let reason =
            answer(error).map(|answer| answer.to_string()).or_else(|| source.map(ToString::to_string));
        let reason = reason.unwrap_or_else(|| error.to_string());
        self.refused.push(Refused { destination, reason, via });
    }
}

fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(PROTOCOL)
}

fn is_main(route: &RouteMessage) -> bool {
    route.header.table == RouteHeader::RT_TABLE_MAIN
}

fn message(destination: IpNet, via: Via) -> Result<RouteMessage> {
    let (v4, family) = match destination {
        IpNet::V4(_) => (true, AddressFamily::Inet),
        IpNet::V6(_) => (false, AddressFamily::Inet6),
    };
    if let Some(address) = via.source.filter(|address| address.is_ipv4() != v4) {
        return Err(DatapathError::RouteFamily { destination, address });
    }
    let scope = if v4 && via.gateway.is_none() { RouteScope::Link } else { RouteScope::Universe };
    let mut message =
        RouteMessageBuilder::<IpAddr>::new().protocol(RouteProtocol::Other(PROTOCOL)).scope(scope).build();
    message.header.address_family = family;
    message.header.destination_prefix_length = destination.prefix_len();
    message.attributes.push(RouteAttribute::Destination(destination.network().into()));
    message.attributes.extend(via.device.map(RouteAttribute::Oif));
    if let Some(address) = via.gateway {
        // The kernel sends to it on this device, whichever networks the node has addresses of.
        message.header.flags |= RouteFlags::Onlink;
        let same = address.is_ipv4() == v4;
        let gateway =
            if same { RouteAttribute::Gateway(address.into()) } else { RouteAttribute::Via(address.into()) };
        message.attributes.push(gateway);
    }
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
            RouteAttribute::Via(RouteVia::Inet(address)) => via.gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => via.gateway = Some((*address).into()),
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
