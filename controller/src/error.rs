//! What can go wrong in the controller: the operation, the object and the cause.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {kind} {object}")]
    Api { operation: &'static str, kind: &'static str, object: String, source: Box<ApiCause> },
    #[error("no free {family} subnet for node {node}")]
    SubnetsExhausted { family: &'static str, node: String },
    #[error("no ready node can take pod {pod}")]
    NoNode { pod: String },
    #[error("{operation} {path}", path = path.display())]
    File { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("read kubeconfig {path}", path = path.display())]
    Kubeconfig { path: PathBuf, source: Box<kube::config::KubeconfigError> },
    #[error("connect to the apiserver")]
    Connect { source: Box<kube::Error> },
    #[error("start the apiserver")]
    Apiserver { source: Box<quilla_apiserver::Error> },
    #[error("write to the apiserver's storage")]
    Storage { source: Arc<quilla_apiserver::StoreError> },
    #[error("listen on {address} for health and metrics")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("{option}: {why}")]
    Option { option: &'static str, why: String },
    #[error("task {task} ended unexpectedly")]
    TaskEnded { task: &'static str },
}

impl Error {
    /// Turns what the client says into an error about one object.
    pub fn api<T: ToString + ?Sized>(
        operation: &'static str,
        kind: &'static str,
        object: &T,
    ) -> impl FnOnce(kube::Error) -> Self + use<T> {
        let object = object.to_string();
        move |source| Self::Api { operation, kind, object, source: Box::new(ApiCause::of(source)) }
    }

    /// Whether somebody else wrote the object first: news of it are on their way.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api { source, .. } if matches!(**source, ApiCause::Refused { code: 409, .. }))
    }

    /// The error's name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Api { .. } if self.is_conflict() => "conflict",
            Self::Api { .. } => "api",
            Self::SubnetsExhausted { .. } => "subnets_exhausted",
            Self::NoNode { .. } => "no_node",
            Self::File { .. } => "file",
            Self::Kubeconfig { .. } => "kubeconfig",
            Self::Connect { .. } => "connect",
            Self::Apiserver { .. } => "apiserver",
            Self::Storage { .. } => "storage",
            Self::Listen { .. } => "listen",
            Self::Option { .. } => "option",
            Self::TaskEnded { .. } => "task_ended",
        }
    }
}

/// Why a request had no success.
#[derive(Debug, thiserror::Error)]
pub enum ApiCause {
    #[error("{message}")]
    Refused { code: u16, message: String },
    #[error(transparent)]
    Client(kube::Error),
}

impl ApiCause {
    /// Of a refusal, only what is worth a log line.
    fn of(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused { code: status.code, message: status.message },
            other => Self::Client(other),
        }
    }
}

/// Whether the apiserver answered with this code.
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
