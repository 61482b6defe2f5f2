//! Which of the node's addresses and ports are used for what. Pure; called by [`super::Node`].

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use quilla_abi::config::{SNAT_PORT_MAX, SNAT_PORT_MIN};
use quilla_datapath::Device;
use quilla_model::address::unusable;

/// Addresses that somebody else could send to.
pub(super) fn usable(addresses: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    addresses.into_iter().filter(|address| unusable(*address).is_none()).collect()
}

/// What Pods leave the cluster with, of each family: the node's address in its Node object, if the node has it; else
/// the first routed address of the first uplink.
pub(super) fn masquerade(
    named: &[IpAddr],
    own: &BTreeSet<IpAddr>,
    uplink: Option<&Device>,
) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let named = named.iter().copied().filter(|address| own.contains(address));
    let found = uplink.into_iter().flat_map(|device| &device.addresses).map(IpNet::addr);
    let found = found.filter(|address| unusable(*address).is_none());
    let mut ends = (None, None);
    for address in named.chain(found) {
        match address {
            IpAddr::V4(v4) => drop(ends.0.get_or_insert(v4)),
            IpAddr::V6(v6) => drop(ends.1.get_or_insert(v6)),
        }
    }
    ends
}

/// Says which source ports both the node's own sockets and masquerading would use: a connection of the node that has
/// one of them may be taken for a Pod's.
pub(super) fn shared_ports(ephemeral: &[RangeInclusive<u16>]) -> Option<String> {
    let masquerading = SNAT_PORT_MIN..=SNAT_PORT_MAX;
    let shared = ephemeral.iter().find_map(|ports| overlap(ports, &masquerading))?;
    let (first, last) = shared.into_inner();
    Some(format!(
        "ports {first}-{last} are both masquerading's and ephemeral: change net.ipv4.ip_local_port_range or add them \
         to net.ipv4.ip_local_reserved_ports"
    ))
}

fn overlap(one: &RangeInclusive<u16>, other: &RangeInclusive<u16>) -> Option<RangeInclusive<u16>> {
    let both = *one.start().max(other.start())..=*one.end().min(other.end());
    (!both.is_empty()).then_some(both)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use quilla_datapath::Device;

    use super::{masquerade, shared_ports, usable};

    fn addresses(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn s52_masquerade_follows_the_node_object_then_the_uplink() {
        let uplink = Device {
            addresses: ["fe80::1/64", "192.0.2.1/24", "192.0.2.7/24", "2001:db8::1/64"]
                .map(|prefix| prefix.parse().unwrap())
                .into(),
            ..Device::default()
        };
        let own = addresses(&["192.0.2.1", "192.0.2.7", "198.51.100.1", "2001:db8::1", "fe80::1"]);
        let own = usable(own.into_iter().collect());
        let chosen = |named: &[&str]| masquerade(&addresses(named), &own, Some(&uplink));
        let v6 = Some("2001:db8::1".parse().unwrap());
        assert_eq!(chosen(&[]), (Some([192, 0, 2, 1].into()), v6));
        assert_eq!(chosen(&["192.0.2.7"]), (Some([192, 0, 2, 7].into()), v6));
        assert_eq!(chosen(&["198.51.100.1"]).0, Some([198, 51, 100, 1].into()), "on another device");
        assert_eq!(chosen(&["203.0.113.1"]).0, Some([192, 0, 2, 1].into()), "the node does not have it");
        assert_eq!(masquerade(&[], &own, None), (None, None));
    }

    #[test]
    fn ports_of_masquerading_that_are_ephemeral_are_named() {
        assert_eq!(shared_ports(&[32768..=60999]), None);
        assert_eq!(shared_ports(&[]), None);
        let said = shared_ports(&[1024..=60999, 62000..=65535]).unwrap();
        assert!(said.starts_with("ports 62000-65535 are both"), "{said}");
    }
}
