//! What the planner must know about the node itself; the agent collects it from the kernel and its own journal.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use quilla_abi::Mac;
use quilla_abi::config::{Config, OVERLAY_PORT, SNAT_PORT_MAX, SNAT_PORT_MIN, flag};
use quilla_abi::version::SCHEMA;
use quilla_model::{ObjectName, Protocol, Snapshot};

use crate::route::{around_pods, gateways};
use crate::routing::Routing;
use crate::tunnel::{named_ends, own_ends};

/// The node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name in the API.
    pub name: String,
    /// The uplink.
    pub uplink_ifindex: u32,
    /// The overlay device.
    pub overlay_ifindex: u32,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port of the overlay.
    pub overlay_port: u16,
    /// The uplink's address that Pods leave the cluster with.
    pub host_ipv4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub host_ipv6: Option<Ipv6Addr>,
    /// All addresses of the node.
    pub addresses: Vec<IpAddr>,
    /// Which of them serve node ports (S23).
    pub node_port_addresses: NodePortAddresses,
    /// Whether a set that is empty by its Local policy rejects although there are endpoints elsewhere (S21).
    pub reject_without_local: bool,
    /// Under whose address Pods leave the cluster.
    pub masquerade: Masquerade,
    /// How packets get to other nodes' Pods.
    pub routing: Routing,
    /// The networks of the uplinks.
    pub networks: Vec<IpNet>,
    /// The largest packet that gets to other nodes in one piece; 0 = not known.
    pub overlay_mtu: u16,
    /// Who makes and opens tunnels.
    pub encapsulation: Encapsulation,
    /// The cookie of the node's network namespace, low and high half.
    pub netns_cookie: [u32; 2],
    /// Seed of the flow hash; random once, then kept for as long as the maps live.
    pub hash_seed: u32,
    /// The attached Pods.
    pub endpoints: Vec<LocalEndpoint>,
}

impl NodeFacts {
    /// Facts of a node that has nothing yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            uplink_ifindex: 0,
            overlay_ifindex: 0,
            vni: DEFAULT_VNI,
            overlay_port: OVERLAY_PORT,
            host_ipv4: None,
            host_ipv6: None,
            addresses: Vec::new(),
            node_port_addresses: NodePortAddresses::Primary,
            reject_without_local: false,
            masquerade: Masquerade::default(),
            routing: Routing::default(),
            networks: Vec::new(),
            overlay_mtu: 0,
            encapsulation: Encapsulation::default(),
            netns_cookie: [0; 2],
            hash_seed: 0,
            endpoints: Vec::new(),
        }
    }

    /// The node's row of the `config` map.
    pub(crate) fn config(&self, snapshot: &Snapshot) -> Config {
        let (gateway_ipv4, gateway_ipv6) = gateways(snapshot, &self.name);
        let mut flags = 0;
        if self.masquerade.enabled && self.host_ipv4.is_some() {
            flags |= flag::MASQUERADE_V4;
        }
        if self.masquerade.enabled && self.host_ipv6.is_some() {
            flags |= flag::MASQUERADE_V6;
        }
        if self.encapsulation.direct {
            flags |= flag::DIRECT;
        }
        if self.encapsulation.open {
            flags |= flag::OPEN;
        }
        if self.encapsulation.checksum {
            flags |= flag::TUNNEL_CHECKSUM;
        }
        let (tunnel_ipv4, tunnel_ipv6) = own_ends(snapshot, self);
        let (named_ipv4, named_ipv6) = named_ends(snapshot, self);
        if named_ipv4.is_some() && tunnel_ipv4.is_none() {
            flags |= flag::TRANSLATED_V4;
        }
        if named_ipv6.is_some() && tunnel_ipv6.is_none() {
            flags |= flag::TRANSLATED_V6;
        }
        let (pods_ipv4, pods_ipv6) = around_pods(snapshot, &self.name);
        Config {
            schema: SCHEMA,
            flags,
            uplink_ifindex: self.uplink_ifindex,
            overlay_ifindex: self.overlay_ifindex,
            vni: self.vni,
            hash_seed: self.hash_seed,
            snat_port_min: SNAT_PORT_MIN,
            snat_port_max: SNAT_PORT_MAX,
            host_ipv4: self.host_ipv4.map_or([0; 4], |address| address.octets()),
            host_ipv6: self.host_ipv6.map_or([0; 16], |address| address.octets()),
            gateway_ipv4: gateway_ipv4.map_or([0; 4], |address| address.octets()),
            gateway_ipv6: gateway_ipv6.map_or([0; 16], |address| address.octets()),
            pods_ipv4: pods_ipv4.map_or([0; 4], |net| net.network().octets()),
            pods_mask_ipv4: pods_ipv4.map_or([0; 4], |net| net.netmask().octets()),
            pods_ipv6: pods_ipv6.map_or([0; 16], |net| net.network().octets()),
            pods_mask_ipv6: pods_ipv6.map_or([0; 16], |net| net.netmask().octets()),
            tunnel_ipv4: tunnel_ipv4.map_or([0; 4], |address| address.octets()),
            tunnel_ipv6: tunnel_ipv6.map_or([0; 16], |address| address.octets()),
            vtep_mac: crate::tunnel::mac_of(&self.name),
            overlay_port: self.overlay_port,
            overlay_mtu: self.overlay_mtu,
            frontend_port_min: 1,
            frontend_port_max: 0,
            pad: 0,
            netns_cookie: self.netns_cookie,
        }
    }
}

/// Under whose address Pods leave the cluster: the settings of ip-masq-agent, with its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Under the node's, but for the following.
    pub enabled: bool,
    /// Ranges that Pods reach with their own address: `nonMasqueradeCIDRs`.
    pub except: Vec<IpNet>,
    /// Whether IPv4 link-local addresses are reached with the node's address or the Pod's own; `None`: not at all.
    pub link_local: Option<bool>,
    /// The same of IPv6.
    pub link_local_ipv6: Option<bool>,
}

impl Default for Masquerade {
    fn default() -> Self {
        Self { enabled: true, except: Vec::new(), link_local: None, link_local_ipv6: None }
    }
}

/// Who makes and opens tunnels: the overlay device, where it is not said to be the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encapsulation {
    /// The programs write outer headers where they can.
    pub direct: bool,
    /// The programs on the uplinks remove outer headers.
    pub open: bool,
    /// Outer UDP headers carry a checksum, which only the device can compute.
    pub checksum: bool,
}

/// Which addresses of the node serve node ports: `--node-port-addresses` of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The node's own address of each family, as in its object.
    #[default]
    Primary,
    /// Those within one of these ranges; of a family without a range, all.
    Within(Vec<IpNet>),
}

/// The overlay's network identifier where nobody chose one.
pub const DEFAULT_VNI: u32 = 1;

/// A Pod that the CNI server attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// The Pod.
    pub pod: ObjectName,
    /// Host side of its veth.
    pub ifindex: u32,
    /// The Pod's Ethernet address.
    pub pod_mac: Mac,
    /// The host side's Ethernet address.
    pub host_mac: Mac,
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Ports of the node that lead to it.
    pub host_ports: Vec<HostPort>,
}

/// A port of the node that leads to a Pod (CNI-33 `portMappings`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Port on the node.
    pub host_port: u16,
    /// Port of the Pod.
    pub container_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Only on this address; `None` = on every address of the node.
    pub host_ip: Option<IpAddr>,
}
