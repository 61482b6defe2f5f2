//! Routes of the main table.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::address::{family, host_prefix};
use super::{Batch, Existing, Netlink, NetlinkError};

impl Batch {
    /// Routes one address straight out of a link. Refuses when any link has that route already, so that two Pods
    /// cannot hold one address whatever the agent's memory says.
    pub(crate) fn add_host_route(&mut self, index: u32, address: IpAddr) {
        let mut message = new_route(index, address, RouteScope::Link);
        message.header.destination_prefix_length = host_prefix(address);
        message.attributes.push(RouteAttribute::Destination(route_address(address)));
        let request = RouteNetlinkMessage::NewRoute(message);
        self.push("add route to", address, request, Existing::Refuse.flags());
    }

    /// Routes everything of the gateway's family through it.
    pub(crate) fn add_default_route(&mut self, index: u32, gateway: IpAddr) {
        let mut message = new_route(index, gateway, RouteScope::Universe);
        message.attributes.push(RouteAttribute::Gateway(route_address(gateway)));
        let request = RouteNetlinkMessage::NewRoute(message);
        self.push("add default route via", gateway, request, Existing::Refuse.flags());
    }
}

impl Netlink {
    /// Whether the main table routes this one address straight out of the link.
    pub(crate) fn has_host_route(&mut self, index: u32, address: IpAddr) -> Result<bool, NetlinkError> {
        let destination = RouteAttribute::Destination(route_address(address));
        Ok(self.routes(index, address)?.iter().any(|route| {
            route.header.destination_prefix_length == host_prefix(address)
                && route.attributes.contains(&destination)
        }))
    }

    /// Whether the main table has a default route through the gateway.
    pub(crate) fn has_default_route(&mut self, index: u32, gateway: IpAddr) -> Result<bool, NetlinkError> {
        let next_hop = RouteAttribute::Gateway(route_address(gateway));
        Ok(self
            .routes(index, gateway)?
            .iter()
            .any(|route| route.header.destination_prefix_length == 0 && route.attributes.contains(&next_hop)))
    }

    fn routes(&mut self, index: u32, of_family: IpAddr) -> Result<Vec<RouteMessage>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(of_family);
        let answers = self.dump("list routes", RouteNetlinkMessage::GetRoute(message))?;
        let out = RouteAttribute::Oif(index);
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => Some(route),
                _ => None,
            })
            .filter(|route| {
                route.header.table == RouteHeader::RT_TABLE_MAIN && route.attributes.contains(&out)
            })
            .collect())
    }
}

fn new_route(index: u32, of_family: IpAddr, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(of_family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(index));
    message
}

const fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}
