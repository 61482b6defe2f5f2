//! An interface that an earlier plugin of the chain made: found, and described to the agent. Called by ADD when
//! `prevResult` names the very interface; we then attach programs to it and change nothing of it.

use std::net::IpAddr;
use std::path::Path;

use quilla_cni_protocol::{AddResult, CniError, ErrorCode, Given};

use crate::netlink::{Link, Netlink};
use crate::netns::{self, Netns};

/// An interface of the Pod with its host side.
#[derive(Debug)]
pub(crate) struct Chained {
    /// What the agent must know.
    pub(crate) given: Given,
    /// Index of the host side.
    pub(crate) host_ifindex: u32,
    /// `SO_NETNS_COOKIE` of the Pod's namespace.
    pub(crate) netns_cookie: u64,
}

impl Chained {
    /// The interface of that name in `previous`; `None` when no earlier plugin made it.
    pub(crate) fn find(previous: &AddResult, netns: &Netns, ifname: &str) -> Result<Option<Self>, CniError> {
        let mut named = previous.interfaces.iter().enumerate().filter(|(_, it)| it.name == ifname);
        let Some((position, sandbox)) = named.find_map(|(at, it)| Some((at, it.sandbox.as_ref()?))) else {
            return Ok(None);
        };
        if !netns.is_at(Path::new(sandbox)) {
            return Err(unusable(ifname, format_args!("{sandbox} is not the container's namespace")));
        }
        let addresses = addresses(previous, position)?;
        let (pod, netns_cookie) = netns.run(|| {
            let cookie = netns::cookie().map_err(|error| unusable(ifname, error))?;
            Ok((Netlink::open()?.link(ifname)?, cookie))
        })?;
        let (host_ifname, host) = host_side(previous, ifname, &pod)?;
        let mac = |link: &Link| link.mac.ok_or_else(|| unusable(ifname, "it is no ethernet interface"));
        let given = Given::Interface { host_ifname, host_mac: mac(&host)?, pod_mac: mac(&pod)?, addresses };
        Ok(Some(Self { given, host_ifindex: host.index, netns_cookie }))
    }
}

/// Of the interfaces on the host that `previous` lists, the one that is the other side of the Pod's.
fn host_side(previous: &AddResult, ifname: &str, pod: &Link) -> Result<(String, Link), CniError> {
    let mut netlink = Netlink::open()?;
    let on_host = previous.interfaces.iter().filter(|it| it.sandbox.is_none());
    for interface in on_host {
        match netlink.link(&interface.name) {
            Ok(link) if Some(link.index) == pod.peer => return Ok((interface.name.clone(), link)),
            Ok(_) => {}
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(unusable(ifname, "prevResult names no interface of the host that is its other side"))
}

/// The interface's addresses; one that belongs to no interface belongs to this one.
fn addresses(previous: &AddResult, position: usize) -> Result<Vec<IpAddr>, CniError> {
    let own = previous.ips.iter().filter(|ip| ip.interface.is_none_or(|index| index == position));
    let addresses: Vec<IpAddr> = own.map(|ip| ip.address.addr()).collect();
    let count = |ipv4: bool| addresses.iter().filter(|address| address.is_ipv4() == ipv4).count();
    if addresses.is_empty() || count(true) > 1 || count(false) > 1 {
        let ifname = &previous.interfaces[position].name;
        return Err(unusable(ifname, "it must have one address, or one of each family"));
    }
    Ok(addresses)
}

fn unusable(ifname: &str, why: impl std::fmt::Display) -> CniError {
    let details = format!("{ifname} of an earlier plugin cannot be used: {why}");
    CniError::new(ErrorCode::INVALID_CONFIG, "invalid prevResult", details)
}
