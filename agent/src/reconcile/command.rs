//! How the async side talks to the reconciler's thread.

use std::sync::mpsc::{Receiver, Sender};

use quilla_datapath::{DatapathError, Touched};
use tokio::sync::oneshot;

use crate::cni::AttachedEndpoint;
use crate::snapshot::Published;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Nothing is known about the cluster yet.
    #[error("no snapshot of the cluster yet")]
    NoSnapshot,
    /// The kernel refused.
    #[error("program the kernel")]
    Datapath(#[from] DatapathError),
    /// Something that should be there is not.
    #[error("no {what}")]
    Missing {
        /// What.
        what: String,
    },
    /// A round that others waited for too.
    #[error("{reason}")]
    Shared {
        /// All that was said of it.
        reason: String,
    },
    /// The reconciler has ended.
    #[error("the reconciler has ended")]
    Ended,
}

impl ReconcileError {
    /// A word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoSnapshot => "no_snapshot",
            Self::Datapath(DatapathError::MapFull { .. }) => "map_full",
            Self::Datapath(_) => "kernel",
            Self::Missing { .. } => "missing",
            Self::Shared { .. } => "shared",
            Self::Ended => "ended",
        }
    }

    /// The same for somebody else who waits.
    pub(super) fn for_another(&self) -> Self {
        match self {
            Self::NoSnapshot => Self::NoSnapshot,
            Self::Ended => Self::Ended,
            Self::Datapath(_) | Self::Missing { .. } | Self::Shared { .. } => {
                Self::Shared { reason: self.in_full() }
            }
        }
    }

    /// It and all that lies behind it, on one line.
    pub(crate) fn in_full(&self) -> String {
        let chain = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
}

/// Where an answer goes. Whoever asked may have left.
#[derive(Debug)]
pub struct Answer(oneshot::Sender<Result<(), ReconcileError>>);

impl Answer {
    /// One, and where it is read.
    #[cfg(test)]
    pub(super) fn channel() -> (Self, oneshot::Receiver<Result<(), ReconcileError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }

    pub(super) fn give(self, result: Result<(), ReconcileError>) {
        if self.0.send(result).is_err() {
            tracing::debug!("nobody waits for the answer");
        }
    }
}

/// What the reconciler is asked to do.
#[derive(Debug)]
pub enum Command {
    /// There is a new snapshot.
    SnapshotChanged,
    /// Use this snapshot until an apiserver answers.
    Fallback(Box<Published>),
    /// A device or an address came, went or changed.
    DevicesChanged,
    /// Somebody else may have taken programs from these devices.
    ProgramsTouched(Touched),
    /// Make an endpoint effective.
    Attach(Box<AttachedEndpoint>, Answer),
    /// Forget an endpoint.
    Detach(Box<AttachedEndpoint>, Answer),
    /// Say whether an endpoint is effective.
    Check(Box<AttachedEndpoint>, Answer),
}

/// Talks to the reconciler; the reconciler ends with the last of them.
#[derive(Clone, Debug)]
pub struct Handle(Sender<Command>);

/// A handle, and what the reconciler receives from it.
pub fn channel() -> (Handle, Receiver<Command>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    (Handle(sender), receiver)
}

impl Handle {
    /// Tells without waiting; false if the reconciler has ended.
    pub fn tell(&self, command: Command) -> bool {
        self.0.send(command).is_ok()
    }

    /// Asks and waits.
    pub async fn ask(&self, command: impl FnOnce(Answer) -> Command + Send) -> Result<(), ReconcileError> {
        let (sender, receiver) = oneshot::channel();
        if !self.tell(command(Answer(sender))) {
            return Err(ReconcileError::Ended);
        }
        receiver.await.unwrap_or(Err(ReconcileError::Ended))
    }
}
