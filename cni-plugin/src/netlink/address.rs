//! Addresses and neighbours of a link.

use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use quilla_cni_protocol::MacAddress;

use super::{Batch, Existing, Netlink, NetlinkError};

impl Batch {
    /// Gives a link one address, alone in its prefix. Duplicate detection is off: the agent hands out no duplicates,
    /// and a Pod must be able to use its address at once.
    pub(crate) fn add_address(&mut self, index: u32, address: IpAddr) {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = host_prefix(address);
        message.header.index = index;
        message.attributes.push(AddressAttribute::Address(address));
        if address.is_ipv4() {
            message.attributes.push(AddressAttribute::Local(address));
        } else {
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        let request = RouteNetlinkMessage::NewAddress(message);
        self.push("add address", address, request, Existing::Refuse.flags());
    }

    /// Pins a neighbour, so that it is never asked for.
    pub(crate) fn pin_neighbour(&mut self, index: u32, address: IpAddr, mac: MacAddress) {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::Destination(address.into()));
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
        let request = RouteNetlinkMessage::NewNeighbour(message);
        self.push("pin neighbour", address, request, Existing::Replace.flags());
    }
}

impl Netlink {
    /// The addresses of a link.
    pub(crate) fn addresses(&mut self, index: u32) -> Result<Vec<IpAddr>, NetlinkError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = self.dump("list addresses", request)?;
        let of_link = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => Some(message),
            _ => None,
        });
        Ok(of_link.filter_map(|message| local_address(&message)).collect())
    }

    /// Neighbours of the link that are never asked for, of the address's family.
    pub(crate) fn pinned_neighbours(
        &mut self,
        index: u32,
        of_family: IpAddr,
    ) -> Result<Vec<(IpAddr, MacAddress)>, NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(of_family);
        let answers = self.dump("list neighbours", RouteNetlinkMessage::GetNeighbour(message))?;
        let of_link = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => Some(message),
            _ => None,
        });
        Ok(of_link
            .filter(|message| {
                message.header.ifindex == index && message.header.state == NeighbourState::Permanent
            })
            .filter_map(|message| neighbour(&message))
            .collect())
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<(IpAddr, MacAddress)> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })?;
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(MacAddress),
        _ => None,
    })?;
    Some((address, mac))
}

/// IPv4 has the link's own address in `Local`, IPv6 in `Address`.
fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    find(true).or_else(|| find(false))
}

/// The kernel's family of an address.
pub(super) const fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The prefix length that holds one address.
pub(super) const fn host_prefix(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}
