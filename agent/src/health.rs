//! Health and metrics over HTTP: `/livez`, `/healthz`, `/readyz`, `/metrics`.
//!
//! `/livez` says that the process answers, `/healthz` that the kernel is programmed with what is desired now, `/readyz`
//! that a connection to a Service really went through the data path. Reads state, changes nothing.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use quilla_abi::service::{flag, scope};
use quilla_datapath::Datapath;
use quilla_plan::{Desired, SetKey};
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
    let Health { metrics, datapath, view, .. } = health;
    let view = view.borrow().clone();
    let work = move || {
        let (internal, external) = without_local_endpoints(&view.desired);
        metrics.without_local_endpoints(internal, external);
        let slots = view.tables.slots.values().map(|range| range.len()).sum();
        metrics.render(&datapath, slots)
    };
    let text = tokio::task::spawn_blocking(work).await;
    match text {
        Ok(Ok(text)) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(CONTENT_TYPE, kind)], text).into_response()
        }
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// How many Service ports drop because of a Local policy, for clients inside and outside.
fn without_local_endpoints(desired: &Desired) -> (usize, usize) {
    let dropping = |set: &SetKey| {
        let content = desired.sets.get(set);
        content.is_some_and(|content| content.flags & flag::DROP_WHEN_EMPTY != 0)
    };
    let of = |wanted: u8| {
        let frontends = desired.frontends.iter().filter(|(key, _)| key.scope == wanted);
        let sets: HashSet<_> = frontends.map(|(_, frontend)| &frontend.set).collect();
        sets.into_iter().filter(|set| dropping(set)).count()
    };
    (of(scope::INTERNAL), of(scope::EXTERNAL))
}
