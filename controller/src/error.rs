//! What can go wrong in the controller: the operation, the object and the cause.

use std::net::SocketAddr;
use std::path::PathBuf;

/// An operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{operation} {kind} {object}")]
    Api { operation: &'static str, kind: &'static str, object: String, source: Box<kube::Error> },
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
        move |source| Self::Api { operation, kind, object, source: Box::new(source) }
    }

    /// The error's name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Api { .. } => "api",
            Self::SubnetsExhausted { .. } => "subnets_exhausted",
            Self::NoNode { .. } => "no_node",
            Self::File { .. } => "file",
            Self::Kubeconfig { .. } => "kubeconfig",
            Self::Connect { .. } => "connect",
            Self::Apiserver { .. } => "apiserver",
            Self::Listen { .. } => "listen",
            Self::Option { .. } => "option",
            Self::TaskEnded { .. } => "task_ended",
        }
    }
}

/// Whether the apiserver answered with this code.
pub fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
