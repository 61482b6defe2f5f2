//! The overlay device and the routes through it, as they should be. Pure; called by [`super::Node`].

use std::net::IpAddr;

use ipnet::IpNet;
use quilla_datapath::{Device, Overlay, PodRoute};
use quilla_model::address::unusable;
use quilla_model::{Node as ModelNode, Snapshot};
use quilla_plan::{Desired, Target, route, tunnel};

use super::NodeSettings;

/// Outer Ethernet, IPv4, UDP and VXLAN headers.
const OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 70;

/// What the overlay device should be. A tunnel may leave by any uplink, so the smallest decides the MTU (E5).
pub(super) fn wanted(settings: &NodeSettings, uplinks: &[Device], snapshot: &Snapshot) -> Overlay {
    let mtu = uplinks.iter().map(|device| device.mtu).min().unwrap_or(0);
    let (ipv4, ipv6) = route::gateways(snapshot, &settings.name);
    let gateways = ipv4.map(IpAddr::V4).into_iter().chain(ipv6.map(IpAddr::V6));
    // A tunnel runs over IPv6 only where one of its ends has no IPv4; to a node without an address there is none.
    let only_ipv6 = |node: &ModelNode| {
        let mut usable = node.addresses.iter().filter(|address| unusable(**address).is_none()).peekable();
        usable.peek().is_some() && usable.all(IpAddr::is_ipv6)
    };
    let over_ipv6 = snapshot.nodes.values().any(|node| only_ipv6(node));
    Overlay {
        name: Overlay::NAME.to_owned(),
        port: settings.overlay_port,
        mtu: mtu.saturating_sub(if over_ipv6 { OVERHEAD_V6 } else { OVERHEAD_V4 }),
        mac: tunnel::mac_of(&settings.name),
        gateways: gateways.collect(),
    }
}

/// One route per Pod CIDR of a node that can be reached.
pub(super) fn routes(node: &str, snapshot: &Snapshot, desired: &Desired) -> Vec<PodRoute> {
    let (ipv4, ipv6) = route::gateways(snapshot, node);
    let route = |(destination, target): (&IpNet, &Target)| {
        let Target::RemotePods(owner) = target else { return None };
        let source = match destination {
            IpNet::V4(_) => ipv4.map(IpAddr::V4),
            IpNet::V6(_) => ipv6.map(IpAddr::V6),
        };
        let reachable = desired.tunnels.contains_key(owner);
        reachable.then_some(PodRoute { destination: *destination, source })
    };
    let mut routes: Vec<_> = desired.routes.iter().filter_map(route).collect();
    routes.sort_unstable_by_key(|route| route.destination);
    routes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quilla_datapath::Device;
    use quilla_model::{Node as ModelNode, Snapshot};
    use quilla_plan::{NodeFacts, plan};

    use super::{routes, wanted};
    use crate::node::NodeSettings;

    fn snapshot(there: &str) -> Snapshot {
        let node = |name: &str, address: &str, cidrs: [&str; 2]| ModelNode {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            pod_cidrs: cidrs.map(|cidr| cidr.parse().unwrap()).into(),
            zone: None,
            leaving: false,
        };
        let here = node("here", "192.0.2.1", ["10.244.0.0/24", "fd00:244::/64"]);
        let there = node("there", there, ["10.244.1.0/24", "fd00:244:0:1::/64"]);
        let nodes = [here, there].map(|node| (node.name.clone(), Arc::new(node))).into();
        Snapshot { nodes, ..Snapshot::default() }
    }

    #[test]
    fn e5_pods_get_what_the_tunnel_leaves_of_the_uplink() {
        let settings = NodeSettings::new("here", &["eth0", "eth1"]);
        let uplinks = [9000, 1500].map(|mtu| Device { mtu, ..Device::default() });
        let over_ipv4 = wanted(&settings, &uplinks, &snapshot("192.0.2.2"));
        assert_eq!(over_ipv4.mtu, 1450);
        assert_eq!(
            over_ipv4.gateways,
            ["10.244.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00:244::1".parse().unwrap()]
        );
        assert_eq!(wanted(&settings, &uplinks, &snapshot("2001:db8::2")).mtu, 1430);

        for addresses in [vec![], vec!["fe80::1".parse().unwrap()]] {
            let mut snapshot = snapshot("192.0.2.2");
            let unreachable =
                ModelNode { name: "new".into(), addresses, pod_cidrs: vec![], zone: None, leaving: false };
            snapshot.nodes.insert("new".into(), Arc::new(unreachable));
            let overlay = wanted(&settings, &uplinks, &snapshot);
            assert_eq!(overlay.mtu, 1450, "a node without a tunnel end changes nobody's mtu");
        }
    }

    #[test]
    fn each_remote_cidr_is_routed_from_the_gateway_of_its_family() {
        let snapshot = snapshot("192.0.2.2");
        let (desired, _) = plan(&snapshot, &NodeFacts::new("here"));
        let routes = routes("here", &snapshot, &desired);
        let text: Vec<_> = routes
            .iter()
            .map(|route| format!("{} src {}", route.destination, route.source.unwrap()))
            .collect();
        assert_eq!(text, ["10.244.1.0/24 src 10.244.0.1", "fd00:244:0:1::/64 src fd00:244::1"]);
    }
}
