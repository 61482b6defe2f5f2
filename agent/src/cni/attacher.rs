//! The border between the CNI server and the data path: what an endpoint is, and what is asked for it.

use std::error::Error;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use quilla_cni_protocol::{Attachment, Bandwidth, Mechanism, PodRef, PortMapping};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// What the CNI server asks of the data path. Implemented by the agent's wiring; by a recorder in tests.
pub trait Attacher: Send + Sync + 'static {
    /// Attaches programs to the host side and makes the endpoint effective before returning. May be called again for
    /// an endpoint that is attached. What has not begun when the token is cancelled is refused.
    fn attach(
        &self,
        endpoint: &AttachedEndpoint,
        abandoned: &CancellationToken,
    ) -> impl Future<Output = Result<(), AttachError>> + Send;

    /// Removes what `attach` made. Flows of the endpoint's addresses are not believed from then on, because its epoch
    /// moves when its rows go; their entries are the kernel's to evict. The link may be gone already.
    fn detach(&self, endpoint: &AttachedEndpoint) -> impl Future<Output = Result<(), AttachError>> + Send;

    /// Single addresses that the kernel routes to host sides, by the name of the device.
    fn routes(&self) -> impl Future<Output = Result<Vec<(String, IpAddr)>, AttachError>> + Send;

    /// Addresses that the Pod asks for itself, at most one per family; `NotReady` when nobody can say so now.
    fn wished_addresses(&self, pod: &PodRef)
    -> impl Future<Output = Result<Vec<IpAddr>, AttachError>> + Send;

    /// Tells whoever wrote the Pod why it does not get them.
    fn wish_refused(&self, pod: &PodRef, reason: &str);

    /// Whether the data path does what it should; `NotReady` before it has begun.
    fn status(&self) -> Result<(), AttachError>;

    /// Whether the endpoint is still effective.
    fn check(&self, endpoint: &AttachedEndpoint) -> impl Future<Output = Result<(), AttachError>> + Send;
}

/// One interface of one Pod, as the journal remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedEndpoint {
    /// The runtime's identifier of the Pod sandbox.
    pub container_id: String,
    /// The interface name inside the Pod.
    pub ifname: String,
    /// The CNI network it was attached by.
    pub network: String,
    /// The Pod's namespace file as the runtime named it.
    pub netns: PathBuf,
    /// Namespace of the Pod; empty when the runtime named no Pod.
    pub pod_namespace: String,
    /// Name of the Pod; empty when the runtime named no Pod.
    pub pod_name: String,
    /// Uid of the Pod, when the runtime said it.
    pub pod_uid: Option<String>,
    /// Name of the host side of the veth pair.
    pub host_ifname: String,
    /// Index of the host side.
    pub host_ifindex: u32,
    /// `SO_NETNS_COOKIE` of the Pod's namespace.
    pub netns_cookie: u64,
    /// Hardware address of the host side.
    pub host_mac: [u8; 6],
    /// Hardware address of the Pod's side.
    pub pod_mac: [u8; 6],
    /// The Pod's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The Pod's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Ports of the node that lead to the Pod; no two endpoints share one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<PortMapping>,
    /// How fast it may be.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// The agent's MTU for which the limits of bandwidth were made. Older journals do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limited_at: Option<u32>,
    /// MTU that the network's configuration says. Without one the interface has the agent's, and follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// By what its network wants programs to be attached; else the agent decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programs: Option<Mechanism>,
    /// Who made what the endpoint consists of.
    #[serde(default)]
    pub origin: Origin,
}

#[cfg(test)]
impl AttachedEndpoint {
    /// That of the Pod `test/pod-NUMBER`, whose device has the number; it has no address.
    pub(crate) fn numbered(number: u32) -> Self {
        Self {
            container_id: format!("c{number}"),
            ifname: "eth0".into(),
            network: "n".into(),
            netns: format!("/nowhere/{number}").into(),
            pod_namespace: "test".into(),
            pod_name: format!("pod-{number}"),
            pod_uid: None,
            host_ifname: format!("quil{number}"),
            host_ifindex: number,
            netns_cookie: 1,
            host_mac: [4; 6],
            pod_mac: [2; 6],
            ipv4: None,
            ipv6: None,
            host_ports: Vec::new(),
            bandwidth: Bandwidth::default(),
            limited_at: None,
            mtu: None,
            programs: None,
            origin: Origin::Own,
        }
    }
}

/// Who gave an endpoint its addresses and its interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Origin {
    /// The agent and the plugin.
    #[default]
    Own,
    /// A delegated IPAM plugin gave the addresses.
    Delegated {
        /// The Pod's next hops.
        gateways: Vec<IpAddr>,
    },
    /// An earlier plugin of the chain made the interface.
    Chained,
}

impl AttachedEndpoint {
    /// What names the endpoint.
    pub fn attachment(&self) -> Attachment {
        Attachment { container_id: self.container_id.clone(), ifname: self.ifname.clone() }
    }

    /// Its addresses, at most one per family.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4 = self.ipv4.map(IpAddr::V4);
        ipv4.into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

/// Why the data path did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Not now: the data path is starting or lacks what it needs. The runtime tries again.
    #[error("data path is not ready: {reason}")]
    NotReady {
        /// What it waits for.
        reason: String,
    },
    /// Nobody waits for it any more.
    #[error("the plugin has gone")]
    Abandoned,
    /// A step failed.
    #[error("{operation} {object}")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
}
