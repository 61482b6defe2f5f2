//! Services that the data plane serves: neither headless, nor `ExternalName`, nor another proxy's (S1).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Family, ObjectName};

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
    /// How an endpoint is chosen for clients inside the cluster; annotation `quilla.dev/load-balancing`.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
    /// For how long a new endpoint gets fewer connections than the others, in seconds; 0 = the same at once.
    /// Annotation `quilla.dev/slow-start`.
    #[serde(default)]
    pub slow_start_seconds: u32,
}

impl Service {
    /// A `ClusterIP` Service of which nothing but the name is known yet.
    pub fn new(name: ObjectName) -> Self {
        Self {
            name,
            kind: ServiceType::ClusterIp,
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_seconds: None,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            health_check_node_port: None,
            load_balancing: LoadBalancing::Random,
            slow_start_seconds: 0,
        }
    }

    /// The port on the nodes of one of its ports, if its type has such ports.
    pub fn node_port(&self, port: &ServicePort) -> Option<u16> {
        port.node_port.filter(|&port| port != 0 && self.kind != ServiceType::ClusterIp)
    }

    /// Its address in a family. Without one it serves nothing in that family (S2).
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|address| Family::of(*address) == family)
    }
}

/// How one of several endpoints is chosen for a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoadBalancing {
    /// At random by weight (S17).
    #[default]
    Random,
    /// By a table that is the same on every node.
    Maglev,
    /// Of two at random the one with fewer connections from this node.
    LeastConnections,
}

impl LoadBalancing {
    /// The choice as the annotation spells it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "random" => Some(Self::Random),
            "maglev" => Some(Self::Maglev),
            "least-connections" => Some(Self::LeastConnections),
            _ => None,
        }
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
    pub name: Arc<str>,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Any in the cluster.
    #[default]
    Cluster,
    /// Only those on the node that received the packet.
    Local,
}
