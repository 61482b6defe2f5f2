//! The border between the API and the model: watches each kind and turns its objects into plain values.
//!
//! One file per kind says how an object is read; `driver` does the watching. Values go to the snapshot's owner as
//! [`Update`]s. Nothing past this module knows Kubernetes types, and no malformed object stops a watch.

mod driver;
mod namespace;
mod network_policy;
mod node;
mod pod;
mod pool;
mod port;
mod service;
mod service_cidr;
mod slice;

use std::sync::Arc;

use ipnet::IpNet;
use kube::{Api, Client};
use quilla_model::{EndpointSlice, Namespace, Node, ObjectName, Pod, Problem, Service};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

pub use network_policy::unlisted;

/// A kind that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice
    EndpointSlice,
    /// `v1` Node
    Node,
    /// `v1` Pod, of this node
    Pod,
    /// `v1` Namespace
    Namespace,
    /// `networking.k8s.io/v1` `ServiceCIDR`
    ServiceCidr,
    /// `networking.k8s.io/v1` `NetworkPolicy`
    NetworkPolicy,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 7] = [
        Self::Service,
        Self::EndpointSlice,
        Self::Node,
        Self::Pod,
        Self::Namespace,
        Self::ServiceCidr,
        Self::NetworkPolicy,
    ];

    /// Whether anything is decided by it: the snapshot is complete when each such kind was listed once.
    pub const fn is_needed(self) -> bool {
        !matches!(self, Self::NetworkPolicy)
    }

    /// The kind as the API spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Pod => "Pod",
            Self::Namespace => "Namespace",
            Self::ServiceCidr => "ServiceCIDR",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }
}

/// What an object means to this node.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A Service that the data plane serves.
    Service(Arc<Service>),
    /// A slice of such a Service.
    EndpointSlice(Arc<EndpointSlice>),
    /// A node.
    Node(Arc<Node>),
    /// A Pod of this node.
    Pod(Arc<Pod>),
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// Ranges of Service addresses.
    ServiceCidr(Vec<IpNet>),
}

/// An object as it was read. Without a value it is none of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Its name; the namespace is empty for cluster-wide kinds.
    pub name: ObjectName,
    /// What it means.
    pub value: Option<Value>,
    /// What of it had to be skipped.
    pub problems: Vec<Problem>,
}

/// News from a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// All objects of a kind: what is not among them does not exist.
    Listed(Kind, Vec<Known>),
    /// An object came or changed.
    Changed(Kind, Known),
    /// An object went.
    Deleted(Kind, ObjectName),
    /// The agent may not see the objects of a kind that is not needed: nobody knows which there are.
    Refused(Kind),
}

/// Slices in one answer of a list; others come 500 at a time.
const SLICES_AT_ONCE: u32 = 100;

/// Starts all watches; they end with `drain`.
pub fn start(
    client: &Client,
    node: &str,
    updates: &mpsc::Sender<Update>,
    metrics: &Arc<Metrics>,
    drain: &CancellationToken,
) -> JoinSet<()> {
    let everything = kube::runtime::watcher::Config::default;
    // Up to 100 endpoints each: a page is held twice, as text and as objects.
    let slices = everything().page_size(SLICES_AT_ONCE);
    let own_pods = everything().fields(&format!("spec.nodeName={node}"));
    let mut tasks = JoinSet::new();
    let sink = driver::Sink::new(updates.clone(), Arc::clone(metrics), drain.clone());
    tasks.spawn(driver::run::<service::Watched>(Api::all(client.clone()), everything(), sink.clone()));
    tasks.spawn(driver::run::<slice::Watched>(Api::all(client.clone()), slices, sink.clone()));
    tasks.spawn(driver::run::<node::Watched>(Api::all(client.clone()), everything(), sink.clone()));
    tasks.spawn(driver::run::<pod::Watched>(Api::all(client.clone()), own_pods, sink.clone()));
    tasks.spawn(driver::run::<namespace::Watched>(Api::all(client.clone()), everything(), sink.clone()));
    tasks.spawn(driver::run::<service_cidr::Watched>(Api::all(client.clone()), everything(), sink.clone()));
    tasks.spawn(driver::run::<network_policy::Watched>(Api::all(client.clone()), everything(), sink));
    tasks
}
