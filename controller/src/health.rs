//! Health, readiness and metrics over plain HTTP. Started by `app`; read by probes and Prometheus. Ready means that
//! every reconciler has seen the cluster once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::error::Error;
use crate::metrics::Metrics;
use crate::reconcile::Context;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The parts that are not ready yet. Shared; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

impl Readiness {
    /// Nothing is ready before all of `parts` have reached it.
    pub fn of(parts: impl IntoIterator<Item = &'static str>) -> Self {
        Self(Arc::new(Mutex::new(parts.into_iter().collect())))
    }

    pub fn reached(&self, part: &'static str) {
        if self.pending().remove(part) {
            tracing::info!(part, "ready");
        }
    }

    pub fn pending(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The listener, bound before anything else starts so that a port in use is found at once.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })
}

/// Serves until the drain.
pub async fn serve(listener: TcpListener, context: Context) -> Result<(), Error> {
    let Context { metrics, readiness, drain } = context;
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(ready).with_state(readiness))
        .route("/metrics", get(expose).with_state(metrics));
    let address = listener.local_addr().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)));
    axum::serve(listener, router)
        .with_graceful_shutdown(drain.cancelled_owned())
        .await
        .map_err(|source| Error::Listen { address, source })
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let pending: Vec<_> = readiness.pending().iter().copied().collect();
    if pending.is_empty() {
        "ok".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}", pending.join(", "))).into_response()
    }
}

async fn expose(State(metrics): State<Metrics>) -> Response {
    match metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
