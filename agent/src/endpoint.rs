//! What the CNI server asks of the data path, carried out by the reconciler.

use crate::cni::{AttachError, AttachedEndpoint, Attacher};
use crate::reconcile::{Command, Handle, ReconcileError};

/// Implements the CNI server's side of attaching.
#[derive(Clone, Debug)]
pub struct Endpoints {
    reconciler: Handle,
}

impl Endpoints {
    /// Asks this reconciler.
    pub fn new(reconciler: Handle) -> Self {
        Self { reconciler }
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
