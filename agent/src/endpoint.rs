//! What the CNI server asks of the data path, carried out by the reconciler.

use std::error::Error;
use std::net::IpAddr;

use quilla_cni_protocol::{PodRef, is_host_ifname};
use quilla_datapath::netlink::Netlink;

use crate::cni::{AttachError, AttachedEndpoint, Attacher};
use crate::reconcile::{Command, Handle, ReconcileError};
use crate::static_address::StaticAddresses;

/// Implements the CNI server's side of attaching.
#[derive(Clone, Debug)]
pub struct Endpoints {
    reconciler: Handle,
    static_addresses: StaticAddresses,
}

impl Endpoints {
    /// Asks this reconciler, and these for what Pods ask for themselves.
    pub fn new(reconciler: Handle, static_addresses: StaticAddresses) -> Self {
        Self { reconciler, static_addresses }
    }
}

impl Attacher for Endpoints {
    async fn attach(&self, endpoint: &AttachedEndpoint) -> Result<(), AttachError> {
        let wanted = Box::new(endpoint.clone());
        let done = self.reconciler.ask(|answer| Command::Attach(wanted, answer)).await;
        done.map_err(|error| refusal("attach", endpoint, error))
    }

    async fn detach(&self, endpoint: &AttachedEndpoint) -> Result<(), AttachError> {
        let gone = Box::new(endpoint.clone());
        let done = self.reconciler.ask(|answer| Command::Detach(gone, answer)).await;
        done.map_err(|error| refusal("detach", endpoint, error))
    }

    async fn routes(&self) -> Result<Vec<(String, IpAddr)>, AttachError> {
        let listed = tokio::task::spawn_blocking(|| Netlink::open()?.routes_to_hosts()).await;
        let failed = |source: Box<dyn Error + Send + Sync>| AttachError::Failed {
            operation: "list",
            object: "routes to endpoints".into(),
            source,
        };
        let routes = listed.map_err(|error| failed(error.into()))?.map_err(|error| failed(error.into()))?;
        Ok(routes.into_iter().filter(|(device, _)| is_host_ifname(device)).collect())
    }

    async fn wished_addresses(&self, pod: &PodRef) -> Result<Vec<IpAddr>, AttachError> {
        self.static_addresses.of(pod).await
    }

    fn wish_refused(&self, pod: &PodRef, reason: &str) {
        self.static_addresses.refused(pod, reason);
    }

    fn status(&self) -> Result<(), AttachError> {
        let view = self.static_addresses.view.borrow();
        match &view.failing {
            Some(reason) => Err(AttachError::Failed {
                operation: "program",
                object: "the kernel".into(),
                source: reason.clone().into(),
            }),
            None if !view.programmed => {
                Err(AttachError::NotReady { reason: ReconcileError::NoSnapshot.to_string() })
            }
            None => Ok(()),
        }
    }

    async fn check(&self, endpoint: &AttachedEndpoint) -> Result<(), AttachError> {
        let asked = Box::new(endpoint.clone());
        let done = self.reconciler.ask(|answer| Command::Check(asked, answer)).await;
        done.map_err(|error| refusal("check", endpoint, error))
    }
}

fn refusal(operation: &'static str, endpoint: &AttachedEndpoint, error: ReconcileError) -> AttachError {
    match error {
        ReconcileError::NoSnapshot | ReconcileError::Ended => {
            AttachError::NotReady { reason: error.to_string() }
        }
        error => {
            AttachError::Failed { operation, object: endpoint.host_ifname.clone(), source: Box::new(error) }
        }
    }
}
