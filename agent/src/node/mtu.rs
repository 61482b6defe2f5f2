//! How large a packet gets to the other nodes, and how running Pods come to know. Called by [`super::Node`].

use std::collections::BTreeSet;
use std::net::IpAddr;

use quilla_datapath::netlink::Pair;
use quilla_datapath::{DatapathError, Device, Netlink};
use quilla_model::address::unusable;
use quilla_model::{Node as ModelNode, ObjectRef, Problem, Reason, Snapshot};
use quilla_plan::Routing;

use super::NodeSettings;
use crate::cni::{AttachedEndpoint, Origin};

/// Outer Ethernet, IPv4, UDP and VXLAN headers.
const OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 70;
/// What every link with IPv6 has: a device with less loses its IPv6 addresses.
pub(super) const LEAST: u32 = 1280;
/// What every link with IPv4 has.
const LEAST_V4: u32 = 68;

/// By which devices there are other nodes, as the host's routes had it when they were asked.
#[derive(Debug, Default)]
pub(super) struct Ways {
    ends: Vec<IpAddr>,
    devices: BTreeSet<u32>,
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
    ) -> Result<Option<u32>, DatapathError> {
        let differ = uplinks.iter().any(|uplink| uplink.mtu != uplinks[0].mtu);
        if differ {
            self.ask(netlink, tunnel_ends(&settings.name, snapshot))?;
        }
        let least = least(uplinks, &self.devices);
        Ok(least.map(|least| carried(least, overhead(settings, snapshot), settings.overlay_mtu)))
    }

    fn ask(&mut self, netlink: &Netlink, ends: Vec<IpAddr>) -> Result<(), DatapathError> {
        if self.ends != ends {
            let devices = ends.iter().map(|end| netlink.device_to(*end));
            self.devices = devices.filter_map(Result::transpose).collect::<Result<_, _>>()?;
            self.ends = ends;
        }
        Ok(())
    }
}

/// What is left of an uplink's MTU, or what was chosen, if that is less.
fn carried(uplink: u32, overhead: u32, chosen: Option<u16>) -> u32 {
    let left = uplink.saturating_sub(overhead).max(LEAST_V4);
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

fn tunnel_ends(node: &str, snapshot: &Snapshot) -> Vec<IpAddr> {
    snapshot.nodes.values().filter(|other| other.name != node).filter_map(|other| tunnel_end(other)).collect()
}

fn usable(node: &ModelNode) -> impl Iterator<Item = IpAddr> {
    node.addresses.iter().copied().filter(|address| unusable(*address).is_none())
}

/// Tunnels run over IPv4 where they can.
fn tunnel_end(node: &ModelNode) -> Option<IpAddr> {
    usable(node).find(IpAddr::is_ipv4).or_else(|| usable(node).next())
}

/// Whether everything for the Pods of other nodes goes plainly: nobody needs a tunnel for one of their families. Those to
/// which there is none say nothing. With [`Routing::Auto`] the next node may be in another network.
fn all_plain(settings: &NodeSettings, snapshot: &Snapshot) -> bool {
    let has = |node: &ModelNode, v6: bool| usable(node).any(|address| address.is_ipv6() == v6);
    let own = snapshot.nodes.get(&settings.name);
    let plain = |other: &ModelNode| {
        let mut families = other.pod_cidrs.iter().map(|range| range.addr().is_ipv6());
        families.all(|v6| has(other, v6) && own.is_some_and(|own| has(own, v6)))
    };
    let others = || snapshot.nodes.values().filter(|other| other.name != settings.name);
    settings.routing == Routing::Native
        && others().filter(|other| tunnel_end(other).is_some()).all(|other| plain(other))
}

/// What tunnels add to a packet, if there are any. One runs over IPv6 only where one of its ends has no IPv4; to a node
/// without an address there is none.
fn overhead(settings: &NodeSettings, snapshot: &Snapshot) -> u32 {
    if all_plain(settings, snapshot) {
        return 0;
    }
    let over_ipv6 = snapshot.nodes.values().any(|node| tunnel_end(node).is_some_and(|end| end.is_ipv6()));
    if over_ipv6 { OVERHEAD_V6 } else { OVERHEAD_V4 }
}

/// What an operator should know of the overlay's MTU.
pub(super) fn problem(node: &str, mtu: u32) -> Option<Problem> {
    (1..LEAST).contains(&mtu).then(|| {
        let detail = format!(
            "the uplinks leave packets of {mtu} bytes for Pods, and IPv6 needs {LEAST}: larger ones go in pieces"
        );
        Problem::new(ObjectRef::cluster("Node", node), Reason::Unsupported, detail)
    })
}

/// Changes the interfaces of Pods that have another MTU, as far as that is ours to say. What cannot be changed is tried
/// again in the next audit.
pub(super) fn fit<'a>(
    netlink: &Netlink,
    mtu: u32,
    endpoints: impl Iterator<Item = &'a AttachedEndpoint>,
) -> Result<(), DatapathError> {
    let present = netlink.mtus()?;
    for endpoint in endpoints {
        let Some(&has) = present.get(&endpoint.host_ifindex).filter(|has| follows(endpoint, **has, mtu))
        else {
            continue;
        };
        let pair = Pair {
            host_ifindex: endpoint.host_ifindex,
            netns: &endpoint.netns,
            cookie: endpoint.netns_cookie,
            ifname: &endpoint.ifname,
        };
        match netlink.change_mtu(&pair, has, mtu) {
            Ok(changed) => {
                tracing::debug!(pod = endpoint.pod_name, from = has, to = mtu, changed, "mtu of a pod");
            }
            Err(error) => {
                tracing::warn!(pod = endpoint.pod_name, from = has, to = mtu, error = %error, "change mtu of a pod");
            }
        }
    }
    Ok(())
}

/// Whether an interface with one MTU is to get another: not one that another plugin made, or whose MTU the network's
/// configuration says. Limits of bandwidth were made for packets of the size that the Pod began with.
fn follows(endpoint: &AttachedEndpoint, has: u32, mtu: u32) -> bool {
    let ours = endpoint.mtu.is_none() && endpoint.origin != Origin::Chained;
    ours && (mtu < has || (mtu > has && endpoint.bandwidth.is_unlimited()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quilla_datapath::Device;
    use quilla_model::{Node as ModelNode, Snapshot};
    use quilla_plan::Routing;

    use super::{carried, least, overhead, problem};
    use crate::node::NodeSettings;

    /// What tunnels add on a node with addresses of both families, beside another one that has Pods of both.
    fn added(routing: Routing, there: &[&str]) -> u32 {
        let settings = NodeSettings { routing, ..NodeSettings::new("here", &["eth0"]) };
        overhead(&settings, &snapshot(there))
    }

    fn snapshot(there: &[&str]) -> Snapshot {
        let node = |name: &str, addresses: &[&str]| ModelNode {
            name: name.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            pod_cidrs: ["10.244.1.0/24", "fd00:244:0:1::/64"].map(|range| range.parse().unwrap()).into(),
            zone: None,
            leaving: false,
        };
        let nodes = [node("here", &["192.0.2.1", "2001:db8::1"]), node("there", there)];
        let nodes = nodes.map(|node| (node.name.clone(), Arc::new(node))).into();
        Snapshot { nodes, ..Snapshot::default() }
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
        }
    }

    #[test]
    fn e5_pods_get_the_uplink_s_where_no_family_needs_a_tunnel() {
        assert_eq!(added(Routing::Native, &["192.0.2.2", "2001:db8::2"]), 0);
        assert_eq!(added(Routing::Native, &["192.0.2.2"]), 50, "IPv6 goes in tunnels");
        assert_eq!(added(Routing::Native, &["2001:db8::2"]), 70, "so does IPv4");
        for unreachable in [&[][..], &["fe80::1"]] {
            assert_eq!(added(Routing::Native, unreachable), 0, "to which there is neither");
        }
        let settings = NodeSettings { routing: Routing::Native, ..NodeSettings::new("alone", &["eth0"]) };
        assert_eq!(overhead(&settings, &Snapshot::default()), 0, "nobody else is there");
        assert_eq!(
            overhead(&settings, &snapshot(&["192.0.2.2", "2001:db8::2"])),
            50,
            "without an own address"
        );
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

    #[test]
    fn e5_too_narrow_for_ipv6_is_a_problem() {
        assert_eq!((problem("here", 0), problem("here", 1280)), (None, None));
        assert!(problem("here", 1230).unwrap().detail.contains("1230"));
    }
}
