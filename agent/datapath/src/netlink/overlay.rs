//! The overlay device: one VXLAN device for all nodes and both families, whose tunnel the programs choose per packet.
//!
//! The device never resolves a neighbour: it is set to do without (`NOARP`), and the programs write the addresses of
//! the inner frames. Ensuring is idempotent; a device that must be made anew loses its packets in flight, no more.

use std::net::IpAddr;

use quilla_abi::Mac;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkInfo, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVxlan};

use crate::error::{DatapathError, Result};
use crate::netlink::device::type_of;
use crate::netlink::{Device, Netlink};
use crate::sysctl;

/// The overlay device as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its name.
    pub name: String,
    /// UDP port that all nodes use.
    pub port: u16,
    /// The Pods' MTU: what is left of the underlay's.
    pub mtu: u32,
    /// Its Ethernet address, which the other nodes know.
    pub mac: Mac,
    /// The Pods' gateways: addresses of this node that are the source of what its stack sends to Pods elsewhere.
    pub gateways: Vec<IpAddr>,
}

impl Overlay {
    /// The name where nobody chooses another.
    pub const NAME: &str = "quilla_vxlan";
}

impl Netlink {
    /// Makes the device, or makes it what it should be, and switches it on.
    pub fn ensure_overlay(&self, overlay: &Overlay) -> Result<Device> {
        let name = &overlay.name;
        if let Some(link) = self.link(name)?
            && !fits(&link, overlay)
        {
            tracing::warn!(device = name, "overlay device has another type or port, made anew");
            self.request("remove device", name, self.handle.link().del(link.header.index).execute())?;
        }
        if self.link(name)?.is_none() {
            self.request("make device", name, self.handle.link().add(vxlan(overlay)).execute())?;
        }
        let present = self.required(name)?;
        // Without an address of its own the device does not look for multicast groups and routers.
        sysctl::set_device("ipv6", name, "addr_gen_mode", "1")?;
        let change = LinkUnspec::new_with_index(present.ifindex)
            .mtu(overlay.mtu)
            .address(overlay.mac.to_vec())
            .arp(false)
            .up()
            .build();
        self.request("change device", name, self.handle.link().change(change).execute())?;
        self.sync_addresses(&present, &overlay.gateways)?;
        self.required(name)
    }

    /// Removes a device; one that is not there is gone already.
    pub fn remove_device(&self, name: &str) -> Result<()> {
        match self.link(name)? {
            Some(link) => {
                self.request("remove device", name, self.handle.link().del(link.header.index).execute())
            }
            None => Ok(()),
        }
    }

    fn required(&self, name: &str) -> Result<Device> {
        self.device(name)?.ok_or_else(|| DatapathError::NoDevice { name: name.to_owned() })
    }
}

fn vxlan(overlay: &Overlay) -> LinkMessage {
    LinkMessageBuilder::<LinkVxlan>::new(&overlay.name)
        .collect_metadata(true)
        .learning(false)
        .port(overlay.port)
        .udp_zero_csum6_rx(true)
        .udp_zero_csum6_tx(true)
        .mtu(overlay.mtu)
        .address(overlay.mac.to_vec())
        .build()
}

/// Type, port and mode cannot be changed on a device that exists.
fn fits(link: &LinkMessage, overlay: &Overlay) -> bool {
    let kind = type_of(link).iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vxlan)));
    let data = type_of(link).iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data.as_slice()),
        _ => None,
    });
    let data = data.unwrap_or_default();
    kind && data.contains(&InfoVxlan::CollectMetadata(true)) && data.contains(&InfoVxlan::Port(overlay.port))
}
