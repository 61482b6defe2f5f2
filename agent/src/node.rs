//! The node's own devices and routes: the uplink as it is, the overlay device and the routes to other nodes' Pods as
//! they should be. Used by the reconciler, on its thread.
//!
//! What was put right once is left alone until the wish changes or an audit asks; nothing foreign is ever touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use quilla_datapath::{DatapathError, Device, Netlink, Overlay, PodRoute, sysctl};
use quilla_model::address::unusable;
use quilla_model::{Node as ModelNode, Snapshot};
use quilla_plan::{Desired, LocalEndpoint, NodeFacts, Target, route, tunnel};
use tokio::sync::watch;

/// Outer Ethernet, IPv4, UDP and VXLAN headers.
const OVERHEAD_V4: u32 = 50;
/// The same over IPv6.
const OVERHEAD_V6: u32 = 70;

/// What the operator chose.
#[derive(Debug)]
pub struct NodeSettings {
    /// Name of the node.
    pub name: String,
    /// Device that leads to the other nodes and the world.
    pub uplink: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of the overlay.
    pub overlay_port: u16,
    /// Whether Pods leave the cluster with the node's address.
    pub masquerade: bool,
    /// Ranges that Pods reach with their own address.
    pub native: Vec<IpNet>,
    /// Who wants to know the Pods' MTU.
    pub mtu: watch::Sender<u32>,
}

/// The node.
#[derive(Debug)]
pub struct Node {
    settings: NodeSettings,
    hash_seed: u32,
    /// Opened on the reconciler's thread, in the namespace it runs in.
    netlink: Option<Netlink>,
    uplink: Device,
    overlay: Option<(Overlay, Device)>,
    routes: Option<Vec<PodRoute>>,
}

impl Node {
    /// A node of which nothing is known yet. The seed of a previous run goes on, so that its choices do too.
    pub fn new(settings: NodeSettings, previous_seed: u32) -> Self {
        let hash_seed = if previous_seed == 0 { rand::random::<u32>().max(1) } else { previous_seed };
        let uplink = Device::default();
        Self { settings, hash_seed, netlink: None, uplink, overlay: None, routes: None }
    }

    /// Name of the uplink.
    pub fn uplink(&self) -> &str {
        &self.settings.uplink
    }

    /// Name of the overlay device.
    pub fn overlay(&self) -> &str {
        Overlay::NAME
    }

    /// Numbers of the uplink and the overlay device; 0 while unknown.
    pub fn ifindexes(&self) -> (u32, u32) {
        (self.uplink.ifindex, self.overlay.as_ref().map_or(0, |(_, device)| device.ifindex))
    }

    /// Whether one of the devices is not any more as it was seen last.
    pub fn changed(&self) -> Result<bool, DatapathError> {
        let (Some(netlink), Some((_, overlay))) = (&self.netlink, &self.overlay) else { return Ok(false) };
        let same = netlink.device(&self.settings.uplink)?.as_ref() == Some(&self.uplink)
            && netlink.device(Overlay::NAME)?.as_ref() == Some(overlay);
        Ok(!same)
    }

    /// Whether a device of that name is there and has that number.
    pub fn has_device(&self, name: &str, ifindex: u32) -> Result<bool, DatapathError> {
        let Some(netlink) = &self.netlink else { return Ok(false) };
        Ok(netlink.device(name)?.is_some_and(|device| device.ifindex == ifindex))
    }

    /// Distrust everything: look at devices and routes again in the next round.
    pub fn forget(&mut self) {
        self.overlay = None;
        self.routes = None;
    }

    /// Makes sure of the devices: the uplink's addresses are known, the overlay device is there.
    pub fn prepare(&mut self, snapshot: &Snapshot) -> Result<(), DatapathError> {
        let netlink = match &self.netlink {
            Some(netlink) => netlink,
            None => self.netlink.insert(Netlink::open()?),
        };
        if self.overlay.is_none() {
            let name = &self.settings.uplink;
            let missing = || DatapathError::NoDevice { name: name.clone() };
            self.uplink = netlink.device(name)?.ok_or_else(missing)?;
            sysctl::enable_forwarding(name)?;
        }
        let wanted = wanted_overlay(&self.settings, &self.uplink, snapshot);
        if self.overlay.as_ref().is_none_or(|(present, _)| *present != wanted) {
            let device = netlink.ensure_overlay(&wanted)?;
            let mtu_changed =
                self.settings.mtu.send_if_modified(|mtu| std::mem::replace(mtu, wanted.mtu) != wanted.mtu);
            tracing::debug!(device = wanted.name, mtu = wanted.mtu, mtu_changed, gateways = ?wanted.gateways, "overlay device ready");
            self.overlay = Some((wanted, device));
        }
        Ok(())
    }

    /// What the planner must know.
    pub fn facts(&self, endpoints: Vec<LocalEndpoint>) -> NodeFacts {
        let overlay = self.overlay.as_ref().map(|(_, device)| device);
        let own = overlay.into_iter().chain([&self.uplink]).flat_map(|device| &device.addresses);
        let (host_ipv4, host_ipv6) = host_addresses(&self.uplink);
        NodeFacts {
            uplink_ifindex: self.uplink.ifindex,
            overlay_ifindex: overlay.map_or(0, |device| device.ifindex),
            vni: self.settings.vni,
            overlay_port: self.settings.overlay_port,
            host_ipv4,
            host_ipv6,
            addresses: own.map(IpNet::addr).filter(|address| unusable(*address).is_none()).collect(),
            native: self.settings.native.clone(),
            masquerade: self.settings.masquerade,
            hash_seed: self.hash_seed,
            endpoints,
            ..NodeFacts::new(&self.settings.name)
        }
    }

    /// Leads the host's own packets for other nodes' Pods into the overlay.
    pub fn route(&mut self, snapshot: &Snapshot, desired: &Desired) -> Result<(), DatapathError> {
        let wanted = wanted_routes(&self.settings.name, snapshot, desired);
        let (Some(netlink), Some((_, overlay))) = (&self.netlink, &self.overlay) else { return Ok(()) };
        if self.routes.as_ref() != Some(&wanted) {
            let changes = netlink.sync_routes(overlay.ifindex, &wanted)?;
            tracing::debug!(written = changes.written, removed = changes.removed, "routes written");
            self.routes = Some(wanted);
        }
        Ok(())
    }
}

fn wanted_overlay(settings: &NodeSettings, uplink: &Device, snapshot: &Snapshot) -> Overlay {
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
        mtu: uplink.mtu.saturating_sub(if over_ipv6 { OVERHEAD_V6 } else { OVERHEAD_V4 }),
        mac: tunnel::mac_of(&settings.name),
        gateways: gateways.collect(),
    }
}

/// The first routed address of each family on the uplink.
fn host_addresses(uplink: &Device) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let usable = || uplink.addresses.iter().map(IpNet::addr).filter(|address| unusable(*address).is_none());
    let ipv4 = usable().find_map(|address| if let IpAddr::V4(v4) = address { Some(v4) } else { None });
    let ipv6 = usable().find_map(|address| if let IpAddr::V6(v6) = address { Some(v6) } else { None });
    (ipv4, ipv6)
}

/// One route per Pod CIDR of a node that can be reached.
fn wanted_routes(node: &str, snapshot: &Snapshot, desired: &Desired) -> Vec<PodRoute> {
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
    desired.routes.iter().filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use quilla_datapath::Device;
    use quilla_model::{Node as ModelNode, Snapshot};
    use quilla_plan::{NodeFacts, plan};
    use tokio::sync::watch;

    use super::{NodeSettings, wanted_overlay, wanted_routes};

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
        let settings = NodeSettings {
            name: "here".into(),
            uplink: "eth0".into(),
            vni: 1,
            overlay_port: 8472,
            masquerade: true,
            native: vec![],
            mtu: watch::channel(0).0,
        };
        let uplink = Device { mtu: 1500, ..Device::default() };
        let over_ipv4 = wanted_overlay(&settings, &uplink, &snapshot("192.0.2.2"));
        assert_eq!(over_ipv4.mtu, 1450);
        assert_eq!(
            over_ipv4.gateways,
            ["10.244.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00:244::1".parse().unwrap()]
        );
        assert_eq!(wanted_overlay(&settings, &uplink, &snapshot("2001:db8::2")).mtu, 1430);

        for addresses in [vec![], vec!["fe80::1".parse().unwrap()]] {
            let mut snapshot = snapshot("192.0.2.2");
            let unreachable = ModelNode { name: "new".into(), addresses, pod_cidrs: vec![], zone: None, leaving: false };
            snapshot.nodes.insert("new".into(), Arc::new(unreachable));
            let overlay = wanted_overlay(&settings, &uplink, &snapshot);
            assert_eq!(overlay.mtu, 1450, "a node without a tunnel end changes nobody's mtu");
        }
    }

    #[test]
    fn each_remote_cidr_is_routed_from_the_gateway_of_its_family() {
        let snapshot = snapshot("192.0.2.2");
        let (desired, _) = plan(&snapshot, &NodeFacts::new("here"));
        let routes = wanted_routes("here", &snapshot, &desired);
        let text: Vec<_> = routes
            .iter()
            .map(|route| format!("{} src {}", route.destination, route.source.unwrap()))
            .collect();
        assert_eq!(text, ["10.244.1.0/24 src 10.244.0.1", "fd00:244:0:1::/64 src fd00:244::1"]);
    }
}
