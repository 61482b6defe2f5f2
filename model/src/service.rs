//! Services that the data plane serves: neither headless, nor `ExternalName`, nor another proxy's (S1).

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::ObjectName;

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: ObjectName,
    /// Its type.
    pub kind: ServiceType,
    /// At most one address of each family; never empty.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy`
    pub internal_policy: TrafficPolicy,
    /// `externalTrafficPolicy`
    pub external_policy: TrafficPolicy,
    /// Timeout of `ClientIP` session affinity, if it is on (S18).
    pub affinity_seconds: Option<u32>,
    /// `externalIPs` (S4).
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses that may be short-circuited (S3).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`; empty = no restriction (S2).
    pub source_ranges: Vec<IpNet>,
    /// `healthCheckNodePort` (S40).
    pub health_check_node_port: Option<u16>,
}

impl Service {
    /// Whether clients outside the cluster can reach it (S13).
    pub fn externally_accessible(&self) -> bool {
        !self.external_ips.is_empty()
            || !self.load_balancer_ips.is_empty()
            || self.ports.iter().any(|port| port.node_port.is_some())
    }
}

/// `spec.type`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceType {
    /// Inside the cluster only.
    ClusterIp,
    /// And on a port of each node.
    NodePort,
    /// And on addresses of load balancers.
    LoadBalancer,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Name; empty for the only port of a Service.
    pub name: String,
    /// The port that clients use.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Port on the nodes, if it has one.
    pub node_port: Option<u16>,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP: known, so that it is never mistaken for another; not load balanced.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol as the API spells it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Which endpoints a traffic policy allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Any in the cluster.
    #[default]
    Cluster,
    /// Only those on the node that received the packet.
    Local,
}
