//! The MTU of Pods' interfaces, which follows the node's while the Pods run.

use std::collections::BTreeMap;
use std::path::Path;

use rtnetlink::LinkUnspec;

use crate::error::Result;
use crate::netlink::Netlink;
use crate::netlink::device::describe;
use crate::netns;

/// A Pod's interface.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// Number of the host side.
    pub host_ifindex: u32,
    /// The Pod's network namespace.
    pub netns: &'a Path,
    /// The namespace's cookie: the file may be another one's by now.
    pub cookie: u64,
    /// Name of the Pod's side.
    pub ifname: &'a str,
}

impl Netlink {
    /// The MTU of every device, by its number.
    pub fn mtus(&self) -> Result<BTreeMap<u32, u32>> {
        let links = self.list("list", "devices", self.handle.link().get().execute())?;
        Ok(links.iter().map(describe).map(|device| (device.ifindex, device.mtu)).collect())
    }

    /// Changes both sides of a pair from one MTU to another, if both have the first: an interface whose sides differ is
    /// somebody else's doing. Says whether it did. Whatever fits both before and after gets through all the while, because
    /// no side takes more than the other.
    pub fn change_mtu(&self, pair: &Pair<'_>, from: u32, to: u32) -> Result<bool> {
        netns::in_netns(pair.netns, || {
            if netns::cookie()? != pair.cookie {
                return Ok(false);
            }
            let inside = Self::open()?;
            let Some(device) = inside.device(pair.ifname)?.filter(|device| device.mtu == from) else {
                return Ok(false);
            };
            if to > from {
                self.set_mtu(pair.host_ifindex, to)?;
            }
            inside.set_mtu(device.ifindex, to)?;
            if to < from {
                self.set_mtu(pair.host_ifindex, to)?;
            }
            Ok(true)
        })?
    }

    pub(super) fn set_mtu(&self, ifindex: u32, mtu: u32) -> Result<()> {
        let change = LinkUnspec::new_with_index(ifindex).mtu(mtu).build();
        self.request(
            "change the mtu of device",
            &ifindex.to_string(),
            self.handle.link().change(change).execute(),
        )
    }
}
