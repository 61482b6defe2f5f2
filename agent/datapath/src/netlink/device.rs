//! Facts about devices, and exactly the addresses they should have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use quilla_abi::Mac;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeader, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};

use crate::error::Result;
use crate::netlink::{Netlink, is};

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its number in this namespace.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// The largest packet it takes.
    pub mtu: u32,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// It is switched on; not: it has a carrier.
    pub up: bool,
    /// Its addresses, with the length of the prefix on the link.
    pub addresses: Vec<IpNet>,
}

impl Netlink {
    /// The device of that name.
    pub fn device(&self, name: &str) -> Result<Option<Device>> {
        let Some(link) = self.link(name)? else { return Ok(None) };
        let mut device = describe(&link);
        device.addresses = self.addresses(device.ifindex, name)?;
        Ok(Some(device))
    }

    /// The device of that number.
    pub fn device_by_index(&self, ifindex: u32) -> Result<Option<Device>> {
        let get = self.handle.link().get().match_index(ifindex).execute();
        match self.list("look up device", &ifindex.to_string(), get) {
            Ok(links) => links.first().map_or(Ok(None), |link| self.device(&describe(link).name)),
            Err(error) if is(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The device by which the host sends to an address; none, if it does not.
    pub fn device_to(&self, address: IpAddr) -> Result<Option<u32>> {
        let routes = self.routes_to(address)?;
        Ok(routes.iter().find_map(output))
    }

    /// The names of all devices by their numbers.
    pub fn device_names(&self) -> Result<BTreeMap<u32, String>> {
        let links = self.list("list", "devices", self.handle.link().get().execute())?;
        Ok(links.iter().map(describe).map(|device| (device.ifindex, device.name)).collect())
    }

    /// The device of the default route, of IPv4 first: the uplink of a node whose operator names none.
    pub fn default_device(&self) -> Result<Option<Device>> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let Some(ifindex) = self.default_ifindex(family)? else { continue };
            let get = self.handle.link().get().match_index(ifindex).execute();
            let links = self.list("look up device", &ifindex.to_string(), get)?;
            if let Some(link) = links.first() {
                return self.device(&describe(link).name);
            }
        }
        Ok(None)
    }

    fn default_ifindex(&self, family: AddressFamily) -> Result<Option<u32>> {
        let mut routes = self.routes(family)?;
        routes.retain(|route| route.header.destination_prefix_length == 0);
        routes.retain(|route| route.header.kind == RouteType::Unicast);
        routes.sort_by_key(metric);
        Ok(routes.iter().find_map(output))
    }

    pub(super) fn routes(&self, family: AddressFamily) -> Result<Vec<RouteMessage>> {
        let mut filter = RouteMessageBuilder::<IpAddr>::new().build();
        filter.header.address_family = family;
        self.list("list", "routes", self.handle.route().get(filter).execute())
    }

    pub(super) fn link(&self, name: &str) -> Result<Option<LinkMessage>> {
        let get = self.handle.link().get().match_name(name.to_owned()).execute();
        match self.list("look up device", name, get) {
            Ok(links) => Ok(links.into_iter().next()),
            Err(error) if is(&error, libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn addresses(&self, ifindex: u32, name: &str) -> Result<Vec<IpNet>> {
        let get = self.handle.address().get().set_link_index_filter(ifindex).execute();
        let messages = self.list("list the addresses of", name, get)?;
        Ok(messages.iter().filter_map(prefix).collect())
    }

    /// The addresses of every device, in order.
    pub fn all_addresses(&self) -> Result<BTreeSet<IpAddr>> {
        let messages = self.list("list", "addresses", self.handle.address().get().execute())?;
        Ok(messages.iter().filter_map(prefix).map(|prefix| prefix.addr()).collect())
    }

    /// Gives `device` exactly `wanted`, each as a prefix of its own, beside the kernel's link-local addresses.
    pub(super) fn sync_addresses(&self, device: &Device, wanted: &[IpAddr]) -> Result<()> {
        let single = |address: &IpAddr| IpNet::from(*address);
        for stale in device.addresses.iter().filter(|address| !is_link_local(address.addr())) {
            if !wanted.iter().any(|address| single(address) == *stale) {
                let delete = self.handle.address().del(message(device.ifindex, stale)).execute();
                self.request("remove address", &stale.to_string(), delete)?;
            }
        }
        for address in wanted {
            let prefix = single(address);
            let mut add =
                self.handle.address().add(device.ifindex, prefix.addr(), prefix.prefix_len()).replace();
            // A tentative address could not be the source of a route yet, and there is nobody to ask for duplicates.
            add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            self.request("add address", &prefix.to_string(), add.execute())?;
        }
        Ok(())
    }
}

pub(super) fn describe(link: &LinkMessage) -> Device {
    let mut device = Device {
        ifindex: link.header.index,
        up: link.header.flags.contains(LinkFlags::Up),
        ..Device::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::Address(address) => device.mac = address.as_slice().try_into().ok(),
            _ => {}
        }
    }
    device
}

/// What `ip -d link` shows of a device's type.
pub(super) fn type_of(link: &LinkMessage) -> &[LinkInfo] {
    let info = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => Some(info.as_slice()),
        _ => None,
    });
    info.unwrap_or_default()
}

fn prefix(message: &AddressMessage) -> Option<IpNet> {
    // On a point-to-point device `Address` is the other end's; our own is `Local` wherever there is one.
    let own = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    let any = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    let attributes = &message.attributes;
    let address = attributes.iter().find_map(own).or_else(|| attributes.iter().find_map(any))?;
    IpNet::new(address, message.header.prefix_len).ok()
}

fn message(ifindex: u32, prefix: &IpNet) -> AddressMessage {
    let family = if prefix.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let mut message = AddressMessage::default();
    message.header =
        AddressHeader { family, prefix_len: prefix.prefix_len(), index: ifindex, ..message.header };
    message.attributes.push(AddressAttribute::Local(prefix.addr()));
    message.attributes.push(AddressAttribute::Address(prefix.addr()));
    message
}

fn output(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    })
}

fn metric(route: &RouteMessage) -> u32 {
    let metric = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    };
    route.attributes.iter().find_map(metric).unwrap_or(0)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
