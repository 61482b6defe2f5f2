//! The Pod's side of an attachment: everything done inside its namespace. Called by ADD after the pair exists, and by
//! CHECK to compare.

use quilla_cni_protocol::{CniError, ErrorCode, MacAddress, Reservation, failpoint};

use crate::netlink::{Batch, Link, Netlink};
use crate::netns::{self, Netns};
use crate::sysctl::{self, Family, Setting};

/// No router advertisement may change a Pod's routes, and its address is usable at once.
const SETTINGS: &[Setting] = &[
    (Family::Ipv6, "disable_ipv6", "0"),
    (Family::Ipv6, "accept_ra", "0"),
    (Family::Ipv6, "accept_dad", "0"),
];

/// A namespace may be born with IPv6 off; `::1` belongs to a Pod like `127.0.0.1`.
const LOOPBACK_SETTINGS: &[Setting] = &[(Family::Ipv6, "disable_ipv6", "0")];

/// Addresses, routes and neighbours inside the namespace; returns its cookie.
pub(crate) fn configure(netns: &Netns, ifname: &str, reservation: &Reservation) -> Result<u64, CniError> {
    netns.run(|| {
        let mut netlink = Netlink::open()?;
        if reservation.leases.iter().any(|lease| lease.address.is_ipv6()) {
            sysctl::apply("lo", LOOPBACK_SETTINGS)?;
            sysctl::apply(ifname, SETTINGS)?;
        }
        failpoint!(PodSettings);
        let index = netlink.index(ifname)?;
        let mut batch = Batch::default();
        batch.set_up(netlink.index("lo")?);
        for lease in &reservation.leases {
            batch.add_address(index, lease.address);
        }
        batch.set_up(index);
        for lease in &reservation.leases {
            batch.add_host_route(index, lease.gateway);
            batch.pin_neighbour(index, lease.gateway, reservation.host_mac);
            batch.add_default_route(index, lease.gateway);
        }
        netlink.apply(batch)?;
        failpoint!(PodRoutes);
        netns::cookie().map_err(|error| {
            CniError::new(ErrorCode::WIRING_FAILED, "read network namespace cookie", error.to_string())
        })
    })
}

/// What of the reservation is missing inside the namespace, in words; empty when all is there. Additions by others
/// are theirs.
pub(crate) fn differences(
    netns: &Netns,
    ifname: &str,
    reservation: &Reservation,
) -> Result<Vec<String>, CniError> {
    netns.run(|| {
        let mut netlink = Netlink::open()?;
        let link = match netlink.link(ifname) {
            Err(error) if error.is_missing() => return Ok(vec![format!("interface {ifname} is missing")]),
            link => link?,
        };
        let mut differences = Vec::new();
        if !link.up {
            differences.push(format!("interface {ifname} is down"));
        }
        if let Some(mac) = link.mac.filter(|mac| *mac != reservation.pod_mac) {
            let told = reservation.pod_mac;
            differences.push(format!("interface {ifname} has mac {mac}, and the data path was told {told}"));
        }
        differences.extend(lease_differences(&mut netlink, &link, reservation)?);
        Ok(differences)
    })
}

fn lease_differences(
    netlink: &mut Netlink,
    link: &Link,
    reservation: &Reservation,
) -> Result<Vec<String>, CniError> {
    let mut differences = Vec::new();
    let present = netlink.addresses(link.index)?;
    for lease in &reservation.leases {
        if !present.contains(&lease.address) {
            differences.push(format!("address {} is missing", lease.address));
        }
        if !netlink.has_default_route(link.index, lease.gateway)? {
            differences.push(format!("default route via {} is missing", lease.gateway));
        }
        if !netlink
            .pinned_neighbours(link.index, lease.gateway)?
            .contains(&(lease.gateway, reservation.host_mac))
        {
            differences.push(format!("pinned neighbour {} is missing", lease.gateway));
        }
    }
    Ok(differences)
}

/// The hardware address the interface has now; `None` when there is no such interface.
pub(crate) fn mac(netns: &Netns, ifname: &str) -> Result<Option<MacAddress>, CniError> {
    netns.run(|| match Netlink::open()?.link(ifname) {
        Err(error) if error.is_missing() => Ok(None),
        link => Ok(link?.mac),
    })
}
