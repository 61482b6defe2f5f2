//! Health check servers of load balancers (S40): for each Service with a `healthCheckNodePort`, how many of its ready
//! endpoints run on this node.
//!
//! Follows the reconciler's view. A port that cannot be had is tried again and told in an Event of the Service; nothing
//! else stops for it. Who answers for a port is looked up by each request, so that no server is restarted for a change
//! of Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use quilla_model::{ObjectName, ObjectRef};
use quilla_plan::desired::HealthCheck;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::events::Notice;
use crate::metrics::Metrics;
use crate::reconcile::View;

/// Between two attempts to listen.
const RETRY: Duration = Duration::from_secs(1);
/// The reason of the Event, as kube-proxy spells it.
const FAILED: &str = "FailedToStartServiceHealthcheck";

/// Who answers on which port: the first by name of those that want it.
type Answers = BTreeMap<u16, (ObjectName, usize)>;

/// What a request is answered from.
#[derive(Clone, Debug)]
struct Desk {
    port: u16,
    answers: watch::Receiver<Answers>,
    metrics: Arc<Metrics>,
}

/// The servers.
struct Servers {
    running: BTreeMap<SocketAddr, DropGuard>,
    tasks: JoinSet<()>,
    /// Failures that were told; a Service that goes is forgotten.
    told: BTreeSet<(SocketAddr, ObjectName)>,
    answers: watch::Sender<Answers>,
    metrics: Arc<Metrics>,
    notices: mpsc::Sender<Notice>,
}

/// Serves until `drain`.
pub async fn serve(
    mut view: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
    notices: mpsc::Sender<Notice>,
    drain: CancellationToken,
) {
    let mut servers = Servers {
        running: BTreeMap::new(),
        tasks: JoinSet::new(),
        told: BTreeSet::new(),
        answers: watch::channel(Answers::new()).0,
        metrics,
        notices,
    };
    let until = drain.clone();
    let following = async {
        loop {
            let current = view.borrow_and_update().clone();
            let complete = servers.follow(&current.desired.health_checks, &current.node_port_addresses).await;
            let changed = view.changed();
            let changed = if complete { changed.await } else { within(RETRY, changed).await };
            if changed.is_err() {
                return;
            }
        }
    };
    until.run_until_cancelled(following).await.unwrap_or_default();
    servers.running.clear();
    while servers.tasks.join_next().await.is_some() {}
    drain.cancelled().await;
}

/// The outcome, or none yet.
async fn within<E>(limit: Duration, outcome: impl Future<Output = Result<(), E>>) -> Result<(), E> {
    tokio::time::timeout(limit, outcome).await.unwrap_or(Ok(()))
}

impl Servers {
    /// Listens where it should and nowhere else; false if a port could not be had.
    async fn follow(&mut self, checks: &BTreeMap<ObjectName, HealthCheck>, addresses: &[IpAddr]) -> bool {
        let (answers, mut refused) = settle(checks);
        let addresses = || addresses.iter().copied();
        let wanted: BTreeMap<SocketAddr, ObjectName> = answers
            .iter()
            .flat_map(|(port, (service, _))| {
                addresses().map(|ip| (SocketAddr::new(ip, *port), service.clone()))
            })
            .collect();
        self.running.retain(|address, _| wanted.contains_key(address));
        self.answers.send_if_modified(|known| {
            let changed = *known != answers;
            *known = answers;
            changed
        });
        while self.tasks.try_join_next().is_some() {}
        for (address, service) in &wanted {
            if !self.running.contains_key(address)
                && let Err(error) = self.start(*address).await
            {
                refused.push((*address, service.clone(), error.to_string()));
            }
        }
        let complete = refused.is_empty();
        self.tell(refused);
        complete
    }

    async fn start(&mut self, address: SocketAddr) -> std::io::Result<()> {
        let listener = TcpListener::bind(address).await?;
        let (answers, metrics) = (self.answers.subscribe(), Arc::clone(&self.metrics));
        let router =
            Router::new().fallback(answer).with_state(Desk { port: address.port(), answers, metrics });
        let end = CancellationToken::new();
        self.running.insert(address, end.clone().drop_guard());
        self.tasks.spawn(async move {
            let serving = axum::serve(listener, router).with_graceful_shutdown(end.cancelled_owned());
            if let Err(error) = serving.await {
                tracing::warn!(address = %address, error = %error, "serve health checks");
            }
        });
        Ok(())
    }

    /// Each failure once, for as long as it lasts.
    fn tell(&mut self, refused: Vec<(SocketAddr, ObjectName, String)>) {
        let current: BTreeSet<_> =
            refused.iter().map(|(address, service, _)| (*address, service.clone())).collect();
        self.told.retain(|failure| current.contains(failure));
        for (address, service, error) in refused {
            if self.told.insert((address, service.clone())) {
                let object = ObjectRef::new("Service", &service);
                let message = format!("health check server on {address}: {error}");
                tracing::warn!(service = %service, address = %address, error, "health check server");
                let notice = Notice { object, reason: FAILED.into(), message };
                if self.notices.try_send(notice).is_err() {
                    tracing::debug!(service = %service, "too many events at once, one is left out");
                }
            }
        }
    }
}

/// Who has which port, and who is refused one that another Service has.
fn settle(checks: &BTreeMap<ObjectName, HealthCheck>) -> (Answers, Vec<(SocketAddr, ObjectName, String)>) {
    let (mut answers, mut refused) = (Answers::new(), Vec::new());
    for (service, check) in checks {
        match answers.get(&check.port) {
            Some((owner, _)) => {
                let nowhere = SocketAddr::from(([0, 0, 0, 0], check.port));
                refused.push((nowhere, service.clone(), format!("the port is {owner}'s")));
            }
            None => drop(answers.insert(check.port, (service.clone(), check.local_endpoints))),
        }
    }
    (answers, refused)
}

#[derive(Serialize)]
struct Body<'a> {
    service: Name<'a>,
    #[serde(rename = "localEndpoints")]
    local_endpoints: usize,
    #[serde(rename = "serviceProxyHealthy")]
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Any method and path.
async fn answer(State(desk): State<Desk>) -> Response {
    let Some((service, count)) = desk.answers.borrow().get(&desk.port).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let healthy = desk.metrics.progress().standing(Instant::now()).healthy();
    let body = Body {
        service: Name { namespace: &service.namespace, name: &service.name },
        local_endpoints: count,
        service_proxy_healthy: healthy,
    };
    let code = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-load-balancing-endpoint-weight", count.to_string()),
    ];
    (code, headers, axum::Json(body)).into_response()
}

#[cfg(test)]
#[path = "health_check_tests.rs"]
mod tests;
