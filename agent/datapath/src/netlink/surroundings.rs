//! What the host reaches without anybody's help, or helps it to reach everything else: its gateways, and the networks that
//! its devices are in. Read by whoever is about to refuse addresses to the host; changes nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType, RouteVia,
};

use super::{Netlink, PROTOCOL};
use crate::error::Result;

/// The host's own routes, without those that we write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Next hops of any route.
    pub gateways: BTreeSet<IpAddr>,
    /// Destinations of the main table that are reached without a next hop.
    pub networks: BTreeSet<IpNet>,
}

impl Netlink {
    /// The gateways and networks of this namespace.
    pub fn surroundings(&self) -> Result<Surroundings> {
        let mut found = Surroundings::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            self.routes(family)?
                .iter()
                .filter(|route| is_of_the_host(route))
                .for_each(|route| found.add(route));
        }
        Ok(found)
    }
}

impl Surroundings {
    fn add(&mut self, route: &RouteMessage) {
        let gateways = gateways(&route.attributes);
        let network = IpNet::new(destination(route), route.header.destination_prefix_length).ok();
        let main = route.header.table == RouteHeader::RT_TABLE_MAIN;
        if gateways.is_empty() && main {
            self.networks.extend(network.filter(|network| network.prefix_len() > 0));
        }
        self.gateways.extend(gateways);
    }
}

fn is_of_the_host(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Unicast && route.header.protocol != RouteProtocol::Other(PROTOCOL)
}

/// Of a route with one next hop or several.
fn gateways(attributes: &[RouteAttribute]) -> Vec<IpAddr> {
    let of = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address).into_iter().collect(),
        RouteAttribute::Via(RouteVia::Inet(address)) => vec![IpAddr::V4(*address)],
        RouteAttribute::Via(RouteVia::Inet6(address)) => vec![IpAddr::V6(*address)],
        RouteAttribute::MultiPath(hops) => hops.iter().flat_map(|hop| gateways(&hop.attributes)).collect(),
        _ => Vec::new(),
    };
    attributes.iter().flat_map(of).collect()
}

fn destination(route: &RouteMessage) -> IpAddr {
    let found = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let v4 = route.header.address_family == AddressFamily::Inet;
    found.unwrap_or(if v4 { [0; 4].into() } else { [0; 16].into() })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
