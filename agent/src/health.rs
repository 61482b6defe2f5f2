//! Health and metrics over HTTP: `/livez`, `/healthz`, `/readyz`, `/metrics`.
//!
//! `/livez` says that the process answers, `/healthz` that the kernel is programmed with what is desired now, `/readyz`
//! that a connection to a Service really went through the data path. Reads state, changes nothing.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use quilla_datapath::Datapath;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::reconcile::View;
use crate::selftest::Readiness;

/// What the answers are made from.
#[derive(Clone, Debug)]
pub struct Health {
    /// Metrics of the agent.
    pub metrics: Arc<Metrics>,
    /// Counters of the kernel.
    pub datapath: Arc<Datapath>,
    /// State of the reconciler.
    pub view: watch::Receiver<Arc<View>>,
    /// Outcome of the self-test.
    pub readiness: watch::Receiver<Readiness>,
}

/// Serves until `drain`.
pub async fn serve(listener: TcpListener, health: Health, drain: CancellationToken) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(listener, router).with_graceful_shutdown(drain.cancelled_owned()).await
}

async fn healthz(State(health): State<Health>) -> Response {
    let view = health.view.borrow().clone();
    match &view.failing {
        Some(reason) => verdict(false, reason),
        None => verdict(view.programmed, "the kernel is not programmed yet"),
    }
}

async fn readyz(State(health): State<Health>) -> Response {
    match &*health.readiness.borrow() {
        Readiness::Ready => verdict(true, ""),
        Readiness::NotReady { reason } => verdict(false, reason),
    }
}

fn verdict(good: bool, reason: &str) -> Response {
    if good {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
    }
}

/// Reading the kernel's maps blocks.
pub(crate) async fn metrics(State(health): State<Health>) -> Response {
    let Health { metrics, datapath, .. } = health;
    let text = tokio::task::spawn_blocking(move || metrics.render(&datapath)).await;
    match text {
        Ok(Ok(text)) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text).into_response()
        }
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
