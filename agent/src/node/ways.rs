//! What packets need on their way to the other nodes: which of the uplinks, and room for outer headers. Called by
//! [`super::Node`].
//!
//! As the planner has it, not the Node objects: a node that has not got the address by which others know it, or another's,
//! gets and sends in tunnels in every mode.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use quilla_datapath::{DatapathError, Device, Netlink};
use quilla_model::{Node as ModelNode, Snapshot};
use quilla_plan::{NodeFacts, Routing, Tunnel, tunnel};

use super::NodeSettings;

/// Outer Ethernet, IPv4, UDP and VXLAN headers.
const OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 70;
/// What every link with IPv4 has.
const LEAST: u32 = 68;

/// What was found out, for as long as the uplinks and the node's addresses are as they were then.
#[derive(Debug, Default)]
pub(super) struct Ways {
    nodes: Option<BTreeMap<String, Arc<ModelNode>>>,
    needs: Needs,
    /// By which devices the host sends to the other nodes, if that was asked.
    devices: BTreeSet<u32>,
}

/// What packets for the Pods of all other nodes need.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    /// What is added to a packet at most, by tunnels.
    overhead: u32,
    /// Where they are sent: addresses of the nodes.
    ends: BTreeSet<IpAddr>,
}

impl Ways {
    /// The largest packet that gets to every other node in one piece, or what was chosen, if that is less (E5). Nothing,
    /// while no uplink is there.
    pub(super) fn mtu(
        &mut self,
        netlink: &Netlink,
        uplinks: &[Device],
        settings: &NodeSettings,
        snapshot: &Snapshot,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<Option<u32>, DatapathError> {
        if self.nodes.as_ref() != Some(&snapshot.nodes) {
            let facts = NodeFacts {
                routing: settings.routing,
                addresses: addresses.iter().copied().collect(),
                networks: uplinks.iter().flat_map(|uplink| uplink.addresses.clone()).collect(),
                ..NodeFacts::new(&settings.name)
            };
            let needs = Needs::new(snapshot, &facts);
            let differ = uplinks.iter().any(|uplink| uplink.mtu != uplinks[0].mtu);
            if differ && self.needs.ends != needs.ends {
                let devices = needs.ends.iter().map(|end| netlink.device_to(*end));
                self.devices = devices.filter_map(Result::transpose).collect::<Result<_, _>>()?;
            }
            (self.needs, self.nodes) = (needs, Some(snapshot.nodes.clone()));
        }
        let least = least(uplinks, &self.devices);
        Ok(least.map(|least| carried(least, self.needs.overhead, settings.overlay_mtu)))
    }
}

impl Needs {
    fn new(snapshot: &Snapshot, facts: &NodeFacts) -> Self {
        let own = tunnel::own_ends(snapshot, facts);
        // As the node itself would be reached, while there is nobody else.
        let mut over_ipv6 = own.0.is_none() && own.1.is_some();
        // With `auto`, the next node may be in another network.
        let mut in_tunnels = facts.routing != Routing::Native;
        let mut ends = BTreeSet::new();
        for (name, tunnel) in tunnel::tunnels(snapshot, facts) {
            let outer = outer(own, &tunnel);
            over_ipv6 |= outer.is_some_and(|end| end.is_ipv6());
            let pods = snapshot.nodes.get(&name).map_or(&[][..], |node| &node.pod_cidrs);
            let families: BTreeSet<bool> = pods.iter().map(|range| range.addr().is_ipv6()).collect();
            for v6 in families {
                let plain = plain(&tunnel, v6);
                in_tunnels |= plain.is_none();
                ends.extend(plain.or(outer));
            }
        }
        let overhead = match (in_tunnels, over_ipv6) {
            (false, _) => 0,
            (true, false) => OVERHEAD_V4,
            (true, true) => OVERHEAD_V6,
        };
        Self { overhead, ends }
    }
}

/// Where packets of a family are sent as they are.
fn plain(tunnel: &Tunnel, v6: bool) -> Option<IpAddr> {
    if v6 {
        tunnel.ipv6.filter(|_| tunnel.path_ipv6.is_native()).map(IpAddr::V6)
    } else {
        tunnel.ipv4.filter(|_| tunnel.path_ipv4.is_native()).map(IpAddr::V4)
    }
}

/// The far end of a tunnel: of a family in which both nodes have one, IPv4 first; else of the node's, and the overlay device
/// finds an address of its own.
fn outer(own: (Option<Ipv4Addr>, Option<Ipv6Addr>), tunnel: &Tunnel) -> Option<IpAddr> {
    let (ipv4, ipv6) = (tunnel.ipv4.map(IpAddr::V4), tunnel.ipv6.map(IpAddr::V6));
    ipv4.filter(|_| own.0.is_some()).or(ipv6.filter(|_| own.1.is_some())).or(ipv4).or(ipv6)
}

/// What is left of an uplink's MTU, or what was chosen, if that is less.
fn carried(uplink: u32, overhead: u32, chosen: Option<u16>) -> u32 {
    let left = uplink.saturating_sub(overhead).max(LEAST);
    chosen.map_or(left, |chosen| left.min(chosen.into()))
}

/// The least MTU of those uplinks that are used, or of all, if none is known to be.
fn least(uplinks: &[Device], used: &BTreeSet<u32>) -> Option<u32> {
    let mtus = |used_only: bool| {
        let counts = |uplink: &&Device| !used_only || used.contains(&uplink.ifindex);
        uplinks.iter().filter(counts).map(|uplink| uplink.mtu).min()
    };
    mtus(true).or_else(|| mtus(false))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use quilla_datapath::Device;
    use quilla_model::{Node as ModelNode, Snapshot};
    use quilla_plan::{NodeFacts, Routing};

    use super::{Needs, carried, least};

    /// By which addresses the cluster knows this node.
    const HERE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];
    /// A near node with both families.
    const BOTH: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

    fn parse(addresses: &[&str]) -> Vec<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    /// What is needed on a node that is known by [`HERE`] and has some addresses, beside others that have Pods of both families.
    fn needs(routing: Routing, own: &[&str], others: &[&[&str]]) -> Needs {
        let node = |name: &str, addresses: &[&str]| ModelNode {
            name: name.into(),
            addresses: parse(addresses),
            pod_cidrs: ["10.244.1.0/24", "fd00:244:0:1::/64"].map(|range| range.parse().unwrap()).into(),
            zone: None,
            leaving: false,
        };
        let others =
            others.iter().enumerate().map(|(index, addresses)| node(&format!("node-{index}"), addresses));
        let nodes = others.chain([node("here", &HERE)]).map(|node| (node.name.clone(), Arc::new(node)));
        let snapshot = Snapshot { nodes: nodes.collect(), ..Snapshot::default() };
        let networks = ["192.0.2.1/24", "2001:db8::1/64"].map(|network| network.parse().unwrap());
        let addresses = parse(own);
        let facts = NodeFacts { routing, addresses, networks: networks.into(), ..NodeFacts::new("here") };
        Needs::new(&snapshot, &facts)
    }

    fn added(routing: Routing, there: &[&str]) -> u32 {
        needs(routing, &HERE, &[there]).overhead
    }

    #[test]
    fn e5_pods_get_what_the_tunnel_leaves_of_the_uplink() {
        for routing in [Routing::Overlay, Routing::Auto] {
            assert_eq!(added(routing, &["2001:db8::2", "192.0.2.2"]), 50);
            assert_eq!(added(routing, &["2001:db8::2"]), 70);
            for unreachable in [&[][..], &["fe80::1"]] {
                let added = added(routing, unreachable);
                assert_eq!(added, 50, "a node without a tunnel end changes nobody's mtu");
            }
            assert_eq!(needs(routing, &HERE[1..], &[]).overhead, 70, "whoever comes is reached over IPv6");
        }
    }

    #[test]
    fn e5_pods_get_the_uplink_s_where_no_family_needs_a_tunnel() {
        assert_eq!(added(Routing::Native, &BOTH), 0);
        assert_eq!(added(Routing::Native, &["192.0.2.2"]), 50, "IPv6 goes in tunnels");
        assert_eq!(added(Routing::Native, &["2001:db8::2"]), 70, "so does IPv4");
        for unreachable in [&[][..], &["fe80::1"]] {
            assert_eq!(added(Routing::Native, unreachable), 0, "to which there is neither");
        }
        assert_eq!(needs(Routing::Native, &HERE, &[]).overhead, 0, "nobody else is there");
    }

    /// The planner takes tunnels where the node has not got the address by which others know it, and where two nodes are
    /// known by one.
    #[test]
    fn e5_an_address_that_cannot_be_used_costs_a_tunnel() {
        let with = |own: &[&str]| needs(Routing::Native, own, &[&BOTH]).overhead;
        assert_eq!(with(&["10.0.0.7", "2001:db8::1"]), 70, "IPv4, over IPv6");
        assert_eq!(with(&["192.0.2.1", "2001:db8::7"]), 50, "IPv6, over IPv4");
        assert_eq!(with(&["10.0.0.7"]), 50, "both, by an address of the device's choice");
        let others = |other: &[&str]| needs(Routing::Native, &HERE, &[&BOTH, other]).overhead;
        assert_eq!(others(&["192.0.2.3", "2001:db8::3"]), 0);
        assert_eq!(others(&["192.0.2.2", "2001:db8::3"]), 70, "an address of another node");
        assert_eq!(others(&["192.0.2.3", "2001:db8::1"]), 50, "this node's address");
    }

    /// E15: plain packets of each family take the uplink to the node's address of that family.
    #[test]
    fn e5_the_uplink_of_each_way_counts() {
        let ends = |routing, own: &[&str], others: &[&[&str]]| {
            needs(routing, own, others).ends.into_iter().collect::<Vec<_>>()
        };
        let far: &[&str] = &["198.51.100.4", "2001:db9::4"];
        assert_eq!(ends(Routing::Overlay, &HERE, &[&BOTH]), parse(&BOTH[..1]));
        assert_eq!(ends(Routing::Overlay, &HERE[1..], &[&BOTH]), parse(&BOTH[1..]));
        assert_eq!(ends(Routing::Native, &HERE, &[&BOTH]), parse(&BOTH));
        assert_eq!(ends(Routing::Native, &HERE, &[&BOTH[..1]]), parse(&BOTH[..1]), "IPv6 in a tunnel");
        assert_eq!(ends(Routing::Native, &HERE[1..], &[&BOTH]), parse(&BOTH[1..]), "IPv4 in one over IPv6");
        let all = parse(&[BOTH[0], far[0], BOTH[1]]);
        assert_eq!(ends(Routing::Auto, &HERE, &[&BOTH, far]), all, "the far one in tunnels");
    }

    #[test]
    fn e5_a_chosen_mtu_only_lowers() {
        assert_eq!((carried(1500, 50, None), carried(9000, 70, None)), (1450, 8930));
        assert_eq!((carried(1500, 50, Some(1400)), carried(1500, 50, Some(9000))), (1400, 1450));
        assert_eq!(carried(60, 50, None), 68);
    }

    #[test]
    fn e5_an_uplink_without_nodes_behind_it_counts_only_if_none_has_any() {
        let uplinks = [(2, 9000), (3, 1500), (4, 4000)].map(|(ifindex, mtu)| Device {
            ifindex,
            mtu,
            ..Device::default()
        });
        assert_eq!(least(&uplinks, &[2].into()), Some(9000));
        assert_eq!(least(&uplinks, &[2, 4].into()), Some(4000));
        assert_eq!(least(&uplinks, &[7].into()), Some(1500), "by a device that is no uplink");
        assert_eq!(least(&uplinks[..1], &[].into()), Some(9000));
        assert_eq!(least(&[], &[].into()), None);
    }
}
