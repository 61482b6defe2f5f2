//! What the kernel should do, before anything has an id: the planner's result and the layout's input.

mod recover;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use quilla_abi::Mac;
use quilla_abi::config::Config;
use quilla_model::ObjectName;

use crate::facts::LocalEndpoint;

/// The logical state of the node's data plane. Invariant: every backend of a frontend is in `backends`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// Who answers on which address and port.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Every backend whose endpoint exists, selected or draining; sorted, without duplicates.
    pub backends: Vec<BackendKey>,
    /// The other nodes' tunnel ends, by node name.
    pub tunnels: BTreeMap<String, Tunnel>,
    /// What each range of addresses is to this node.
    pub routes: BTreeMap<IpNet, Target>,
    /// Attached Pods by the ifindex of their host side.
    pub endpoints: BTreeMap<u32, LocalEndpoint>,
    /// The node's row.
    pub config: Config,
}

/// An address and port that clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`quilla_abi::service::scope`]
    pub scope: u8,
}

/// What stands behind a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The Service it belongs to.
    pub service: ObjectName,
    /// The name of its port; empty if that has none.
    pub port_name: String,
    /// In the order of the slots; sorted, so that equal sets are equal lists.
    pub backends: Vec<BackendKey>,
    /// `ClientIP` affinity timeout; 0 = none.
    pub affinity_seconds: u32,
    /// [`quilla_abi::service::flag`]
    pub flags: u32,
}

/// An endpoint's address and port. Two Services with the same endpoint share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendKey {
    /// Address.
    pub address: IpAddr,
    /// Target port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// How to reach another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its IPv4 underlay address.
    pub ipv4: Option<std::net::Ipv4Addr>,
    /// Its IPv6 underlay address.
    pub ipv6: Option<std::net::Ipv6Addr>,
    /// Ethernet address of its overlay device.
    pub mac: Mac,
}

/// What a range of addresses is to this node; see [`quilla_abi::route::kind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This node's Pods.
    LocalPods,
    /// The Pods of the named node.
    RemotePods(String),
    /// The node itself.
    Host,
    /// Service addresses.
    Services,
    /// Outside, reached with the Pod's own address.
    Native,
    /// Never delivered.
    Unroutable,
}
