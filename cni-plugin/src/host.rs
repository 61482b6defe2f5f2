//! The host's side of an attachment: the pair itself, and how the host reaches the Pod. Called by ADD, DEL and CHECK
//! in the host's namespace.

use std::os::fd::AsFd;

use quilla_cni_protocol::{CniError, ErrorCode, Reservation, failpoint};

use crate::netlink::{Batch, Link, Netlink, VethPair};
use crate::netns::Netns;
use crate::sysctl::{self, Family, Setting};

/// The host side is a router's port without an address of its own: it forwards, and neither filters by reverse path,
/// answers for others, listens to advertisements nor makes itself a link-local address.
const SETTINGS: &[Setting] = &[
    (Family::Ipv4, "rp_filter", "0"),
    (Family::Ipv4, "proxy_arp", "0"),
    (Family::Ipv4, "forwarding", "1"),
    (Family::Ipv6, "accept_ra", "0"),
    (Family::Ipv6, "proxy_ndp", "0"),
    (Family::Ipv6, "forwarding", "1"),
];

/// For a host where new interfaces are born with IPv6 off. The interface is down still, so that no address appears.
const IPV6_SETTINGS: &[Setting] = &[(Family::Ipv6, "disable_ipv6", "0")];

/// Creates the pair, the Pod's side directly in its namespace.
pub(crate) fn create(
    netlink: &mut Netlink,
    netns: &Netns,
    ifname: &str,
    mtu: u32,
    reservation: &Reservation,
) -> Result<(), CniError> {
    // What an ADD that was killed half-way left: its reservation is gone, so nobody uses it.
    if netlink.index(&reservation.host_ifname).is_ok() {
        netlink.delete_link(&reservation.host_ifname)?;
    }
    failpoint!(LeftoverDeleted);
    let pair = VethPair {
        host_name: &reservation.host_ifname,
        host_mac: reservation.host_mac,
        pod_name: ifname,
        pod_mac: reservation.pod_mac,
        netns: netns.as_fd(),
        mtu,
    };
    netlink.create_veth(&pair).map_err(|error| {
        if error.is_exists() && netlink.index(&reservation.host_ifname).is_ok() {
            let details = format!("{} exists on the host: {error}", reservation.host_ifname);
            CniError::new(ErrorCode::WIRING_FAILED, "interface exists", details)
        } else if error.is_exists() {
            let details = format!("{ifname} exists in the container: {error}");
            CniError::new(ErrorCode::WIRING_FAILED, "interface exists", details)
        } else {
            error.into()
        }
    })?;
    failpoint!(PairCreated);
    Ok(())
}

/// Settings, routes and neighbours of the host's side; returns its index.
pub(crate) fn configure(netlink: &mut Netlink, reservation: &Reservation) -> Result<u32, CniError> {
    sysctl::apply(&reservation.host_ifname, SETTINGS)?;
    if reservation.leases.iter().any(|lease| lease.address.is_ipv6()) {
        sysctl::apply(&reservation.host_ifname, IPV6_SETTINGS)?;
    }
    failpoint!(HostSettings);
    let index = netlink.index(&reservation.host_ifname)?;
    let mut batch = Batch::default();
    if Family::Ipv6.is_in_the_kernel() {
        batch.without_link_local(index);
    }
    batch.set_up(index);
    for lease in &reservation.leases {
        batch.add_host_route(index, lease.address);
        batch.pin_neighbour(index, lease.address, reservation.pod_mac);
    }
    netlink.apply(batch)?;
    failpoint!(HostRoutes);
    Ok(index)
}

/// What of the reservation is missing on the host, in words.
pub(crate) fn differences(netlink: &mut Netlink, reservation: &Reservation) -> Result<Vec<String>, CniError> {
    let name = &reservation.host_ifname;
    let link: Link = match netlink.link(name) {
        Err(error) if error.is_missing() => return Ok(vec![format!("host interface {name} is missing")]),
        link => link?,
    };
    let mut differences = Vec::new();
    if !link.up {
        differences.push(format!("host interface {name} is down"));
    }
    if link.mac != Some(reservation.host_mac) {
        differences.push(format!("host interface {name} has another mac than {}", reservation.host_mac));
    }
    for lease in &reservation.leases {
        if !netlink.has_host_route(link.index, lease.address)? {
            differences.push(format!("host route to {} is missing", lease.address));
        }
        let pinned = netlink.pinned_neighbours(link.index, lease.address)?;
        if !pinned.contains(&(lease.address, reservation.pod_mac)) {
            differences.push(format!("pinned neighbour {} of the host is missing", lease.address));
        }
    }
    Ok(differences)
}
