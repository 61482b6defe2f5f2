//! What the rest of the agent may see of the reconciler's state.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use quilla_model::{Problem, Snapshot};
use quilla_plan::{Desired, Tables};

use crate::cni::AttachedEndpoint;
use crate::snapshot::Policies;

/// The state after the last round that succeeded, and why later ones failed. Never changed, only replaced.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Whether any round has succeeded.
    pub programmed: bool,
    /// Why the last round failed, if it did.
    pub failing: Option<String>,
    /// What this node's Pods get their addresses from.
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses of this node that serve node ports, and the health checks of load balancers.
    pub node_port_addresses: Vec<IpAddr>,
    /// What was planned from: what things are called.
    pub snapshot: Arc<Snapshot>,
    /// What the kernel should do.
    pub desired: Desired,
    /// With which rows.
    pub tables: Arc<Tables>,
    /// What is wrong, but for policies.
    pub problems: Vec<Problem>,
    /// Network policies, of which none is enforced; `None` while nobody knows which there are.
    pub policies: Option<Arc<Policies>>,
    /// Numbers of the overlay device and of the uplinks.
    pub devices: Vec<u32>,
    /// The attached Pods.
    pub endpoints: Vec<AttachedEndpoint>,
    /// Those of them that have no device.
    pub absent: Vec<AttachedEndpoint>,
}

impl View {
    /// What is wrong with objects and with the node.
    pub fn all_problems(&self) -> impl Iterator<Item = &Problem> {
        let policies = self.policies.iter().flat_map(|policies| policies.values().flatten());
        self.problems.iter().chain(policies)
    }

    /// How many policies there are, and so how many are not enforced.
    pub fn unenforced_policies(&self) -> Option<usize> {
        self.policies.as_ref().map(|policies| policies.len())
    }
}
