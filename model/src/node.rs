//! Nodes, as far as reaching their Pods needs them.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its internal addresses in the order of its status: the ends of the overlay's tunnels.
    pub addresses: Vec<IpAddr>,
    /// What it gives its Pods addresses from.
    pub pod_cidrs: Vec<IpNet>,
    /// `topology.kubernetes.io/zone`, if not empty.
    pub zone: Option<String>,
    /// It is being deleted, or an autoscaler is about to: no load balancer should choose it any more (S41).
    #[serde(default)]
    pub leaving: bool,
}
