//! What the CNI server asks of the data path: programs are attached here, rows are the reconciler's.
//!
//! A change of programs may wait for grace periods of the kernel, so the reconciler's rounds do not wait for it. Invariant:
//! programs come before rows and go after them; until the rows are there, they drop what the device sends as a stranger's.

use std::error::Error;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::sync::Arc;

use quilla_cni_protocol::{Mechanism, PodRef, failpoint, is_host_ifname};
use quilla_datapath::Datapath;
use quilla_datapath::netlink::Netlink;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::cni::{AttachError, AttachedEndpoint, Attacher};
use crate::reconcile::{Command, Handle, ReconcileError};
use crate::static_address::StaticAddresses;

/// Implements the CNI server's side of attaching.
#[derive(Clone, Debug)]
pub struct Endpoints {
    datapath: Arc<Datapath>,
    reconciler: Handle,
    static_addresses: StaticAddresses,
    /// One device at a time: the kernel keeps its network lock for the grace periods of each, and a queue of them would
    /// keep every plugin from it.
    turn: Arc<Semaphore>,
}

impl Endpoints {
    /// Attaches these programs, asks this reconciler, and these for what Pods ask for themselves.
    pub fn new(datapath: Arc<Datapath>, reconciler: Handle, static_addresses: StaticAddresses) -> Self {
        Self { datapath, reconciler, static_addresses, turn: Arc::new(Semaphore::new(1)) }
    }

    async fn make_effective(
        &self,
        endpoint: &AttachedEndpoint,
        turn: OwnedSemaphorePermit,
    ) -> Result<(), ReconcileError> {
        if !self.static_addresses.view.borrow().programmed {
            return Err(ReconcileError::NoSnapshot);
        }
        let (device, ifindex) = (endpoint.host_ifname.clone(), endpoint.host_ifindex);
        let asked = asked(endpoint);
        self.change_programs(move |datapath| {
            let _turn = turn;
            // A row with a number that another device has would make the endpoint nobody's.
            if datapath.attach_pod(&device, asked)? != ifindex {
                return Err(ReconcileError::Missing {
                    what: format!("device {device} with number {ifindex}"),
                });
            }
            Ok(())
        })
        .await?;
        failpoint!(ProgramsAttached, |error| ReconcileError::Missing { what: error.to_string() });
        let wanted = Box::new(endpoint.clone());
        self.reconciler.ask(|answer| Command::Attach(wanted, answer)).await
    }

    async fn forget(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
        let gone = Box::new(endpoint.clone());
        self.reconciler.ask(|answer| Command::Detach(gone, answer)).await?;
        failpoint!(RowsRemoved, |error| ReconcileError::Missing { what: error.to_string() });
        // What is attached to a device that is gone lets go of it without waiting.
        let device = endpoint.host_ifname.clone();
        self.change_programs(move |datapath| Ok(datapath.detach_pod(&device)?)).await
    }

    /// Changes programs on a thread that may block.
    async fn change_programs(
        &self,
        change: impl FnOnce(&Datapath) -> Result<(), ReconcileError> + Send + 'static,
    ) -> Result<(), ReconcileError> {
        let datapath = Arc::clone(&self.datapath);
        let changed = tokio::task::spawn_blocking(move || change(&datapath)).await;
        changed.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))
    }
}

impl Attacher for Endpoints {
    async fn attach(
        &self,
        endpoint: &AttachedEndpoint,
        abandoned: &CancellationToken,
    ) -> Result<(), AttachError> {
        // In the order in which they came, so that none waits for all; who left while he waited has no turn.
        let turn = abandoned.run_until_cancelled(Arc::clone(&self.turn).acquire_owned()).await;
        let Some(Ok(turn)) = turn.filter(|_| !abandoned.is_cancelled()) else {
            return Err(AttachError::Abandoned);
        };
        let done = self.make_effective(endpoint, turn).await;
        done.map_err(|error| refusal("attach", endpoint, error))
    }

    async fn detach(&self, endpoint: &AttachedEndpoint) -> Result<(), AttachError> {
        let done = self.forget(endpoint).await;
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

/// By what the endpoint's network wants programs to be attached.
pub(crate) fn asked(endpoint: &AttachedEndpoint) -> Option<quilla_datapath::Mechanism> {
    endpoint.programs.map(|programs| match programs {
        Mechanism::Clsact => quilla_datapath::Mechanism::Clsact,
        Mechanism::Tcx => quilla_datapath::Mechanism::Tcx,
    })
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
