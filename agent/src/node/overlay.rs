//! The overlay device and the host's routes to other nodes' Pods, as they should be. Pure; called by [`super::Node`].

use std::net::IpAddr;

use ipnet::IpNet;
use quilla_datapath::{Overlay, PodRoute};
use quilla_model::Snapshot;
use quilla_plan::{Desired, Target, route, tunnel};

use super::NodeSettings;
use super::mtu::LEAST;

/// What the overlay device should be.
pub(super) fn wanted(settings: &NodeSettings, mtu: u32, snapshot: &Snapshot) -> Overlay {
    let (ipv4, ipv6) = route::gateways(snapshot, &settings.name);
    let gateways = ipv4.map(IpAddr::V4).into_iter().chain(ipv6.map(IpAddr::V6));
    Overlay {
        name: Overlay::NAME.to_owned(),
        port: settings.overlay_port,
        mtu: mtu.max(LEAST),
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
        let tunnel = desired.tunnels.get(owner)?;
        let by = match destination {
            IpNet::V4(_) => tunnel.ipv4.filter(|_| tunnel.path_ipv4.is_native()).map(IpAddr::V4),
            IpNet::V6(_) => tunnel.ipv6.filter(|_| tunnel.path_ipv6.is_native()).map(IpAddr::V6),
        };
        Some(PodRoute { destination: *destination, source, by })
    };
    let mut routes: Vec<_> = desired.routes.iter().filter_map(route).collect();
    routes.sort_unstable_by_key(|route| route.destination);
    routes
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
    fn e5_the_device_carries_ipv6_whatever_the_uplink_leaves() {
        let settings = NodeSettings::new("here", &["eth0"]);
        let wide = wanted(&settings, 1450, &snapshot("192.0.2.2"));
        assert_eq!(wide.mtu, 1450);
        assert_eq!(
            wide.gateways,
            ["10.244.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00:244::1".parse().unwrap()]
        );
        assert_eq!(wanted(&settings, 1230, &snapshot("192.0.2.2")).mtu, 1280);
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
