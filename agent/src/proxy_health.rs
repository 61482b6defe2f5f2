//! What cloud load balancers, kubelets and conformance tests ask of a Service proxy: `/healthz` and `/livez` on the
//! health port (S41), `/proxyMode` and `/metrics` on the metrics port (S42), as kube-proxy answers them.
//!
//! Reads state, changes nothing. A port that somebody else has, such as a kube-proxy that is still there, is tried
//! again and stops nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::health::{self, Health};
use crate::metrics::Metrics;
use crate::progress::Standing;
use crate::snapshot::Published;

/// Between two attempts to listen.
const RETRY: Duration = Duration::from_secs(1);
/// What kube-proxy would say is `nftables` or `iptables`; we are neither.
const PROXY_MODE: &str = "ebpf";

/// What the answers are made from.
#[derive(Clone, Debug)]
pub struct ProxyHealth {
    /// Name of the node.
    pub node: String,
    /// Metrics, and with them the progress of the rounds.
    pub metrics: Arc<Metrics>,
    /// Snapshots of the cluster.
    pub published: watch::Receiver<Option<Published>>,
}

impl ProxyHealth {
    /// Whether load balancers may send to this node: it exists and is not about to be removed. Without an apiserver
    /// nothing speaks against it.
    fn eligible(&self) -> bool {
        let published = self.published.borrow();
        let Some(Published { snapshot, .. }) = &*published else { return true };
        snapshot.nodes.get(&self.node).is_some_and(|node| !node.leaving)
    }
}

/// Serves `/healthz` and `/livez` until `drain`.
pub async fn serve(address: SocketAddr, health: ProxyHealth, drain: CancellationToken) {
    let router = Router::new().route("/healthz", get(healthz)).route("/livez", get(livez)).with_state(health);
    serve_when_free(address, router, drain).await;
}

/// Serves `/proxyMode` and `/metrics` until `drain`.
pub async fn serve_mode(address: SocketAddr, health: Health, drain: CancellationToken) {
    let metrics = get(health::metrics);
    let router = Router::new()
        .route("/proxyMode", get(async || PROXY_MODE))
        .route("/metrics", metrics)
        .with_state(health);
    serve_when_free(address, router, drain).await;
}

async fn serve_when_free(address: SocketAddr, router: Router, drain: CancellationToken) {
    let mut said = false;
    while !drain.is_cancelled() {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let serving = axum::serve(listener, router.clone());
                let served = serving.with_graceful_shutdown(drain.clone().cancelled_owned()).await;
                if let Err(error) = served {
                    tracing::warn!(address = %address, error = %error, "serve probes");
                }
            }
            Err(error) if !said => {
                tracing::warn!(address = %address, error = %error, "listen for probes; trying again");
                said = true;
            }
            Err(error) => tracing::debug!(address = %address, error = %error, "listen for probes"),
        }
        let pause = drain.run_until_cancelled(tokio::time::sleep(RETRY));
        pause.await.unwrap_or_default();
    }
}

async fn healthz(State(health): State<ProxyHealth>) -> Response {
    let eligible = health.eligible();
    answer(&health, Some(eligible))
}

/// The same without eligibility: a node that drains is no reason to restart its agent.
async fn livez(State(health): State<ProxyHealth>) -> Response {
    answer(&health, None)
}

fn answer(health: &ProxyHealth, eligible: Option<bool>) -> Response {
    let standing = health.metrics.progress().standing(Instant::now());
    let good = standing.healthy() && eligible != Some(false);
    health.metrics.probed(eligible.is_some(), good);
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = document(&standing, eligible, SystemTime::now());
    (code, [("x-content-type-options", "nosniff")], Json(body)).into_response()
}

/// Both families are written in one round. What is healthy is up to date now, whenever the last change was.
fn document(standing: &Standing, eligible: Option<bool>, now: SystemTime) -> Value {
    let healthy = standing.healthy();
    let updated = if healthy { Some(now) } else { standing.succeeded };
    let updated = text(updated.unwrap_or(SystemTime::UNIX_EPOCH));
    let family = json!({"lastUpdated": updated, "healthy": healthy});
    let mut body = json!({
        "lastUpdated": updated,
        "currentTime": text(now),
        "healthy": healthy && eligible != Some(false),
        "status": {"IPv4": family, "IPv6": family},
    });
    if let Some(eligible) = eligible {
        body["nodeEligible"] = eligible.into();
    }
    body
}

/// RFC 3339, in UTC.
fn text(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use axum::body::to_bytes;
    use axum::extract::State;
    use quilla_model::{Node, Snapshot};
    use serde_json::Value;
    use tokio::sync::watch;

    use super::{ProxyHealth, document, healthz, livez};
    use crate::metrics::Metrics;
    use crate::progress::{PATIENCE, Standing};
    use crate::snapshot::Published;

    fn health(nodes: &[(&str, bool)]) -> ProxyHealth {
        let node = |(name, leaving): &(&str, bool)| {
            let node = Node {
                name: (*name).into(),
                addresses: vec![],
                pod_cidrs: vec![],
                zone: None,
                leaving: *leaving,
            };
            ((*name).to_owned(), Arc::new(node))
        };
        let nodes = nodes.iter().map(node).collect();
        let snapshot = Arc::new(Snapshot { nodes, ..Snapshot::default() });
        let published = Some(Published { snapshot, ..Published::default() });
        let metrics = Arc::new(Metrics::new());
        ProxyHealth { node: "here".into(), metrics, published: watch::channel(published).1 }
    }

    async fn asked(response: axum::response::Response) -> (u16, Value) {
        let code = response.status().as_u16();
        let body = to_bytes(response.into_body(), 4096).await.unwrap();
        (code, serde_json::from_slice(&body).unwrap())
    }

    /// Both answers and what they say of the node.
    async fn probes(health: &ProxyHealth) -> (u16, Value, u16) {
        let (code, body) = asked(healthz(State(health.clone())).await).await;
        let (live, without) = asked(livez(State(health.clone())).await).await;
        assert_eq!(without.get("nodeEligible"), None, "S41: not a question of life");
        (code, body["nodeEligible"].clone(), live)
    }

    #[tokio::test]
    async fn s41_healthz_asks_for_the_node_and_livez_does_not() {
        let good = health(&[("here", false), ("there", true)]);
        assert_eq!(probes(&good).await, (503, true.into(), 503), "nothing was written yet");
        for (health, code, eligible) in [
            (good, 200, true),
            (health(&[("here", true)]), 503, false),
            (health(&[("there", false)]), 503, false),
            (ProxyHealth { published: watch::channel(None).1, ..health(&[]) }, 200, true),
        ] {
            health.metrics.reconciled(Duration::ZERO);
            assert_eq!(probes(&health).await, (code, eligible.into(), 200));
        }
    }

    #[test]
    fn s41_the_body_tells_each_family_and_when() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let succeeded = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(10));
        let body = document(&Standing { succeeded, behind: Duration::ZERO }, Some(false), now);
        assert_eq!(body["lastUpdated"], "1970-01-01T00:01:40Z", "up to date, and so as of now");
        assert_eq!((&body["healthy"], &body["nodeEligible"]), (&false.into(), &false.into()));
        assert_eq!(body["status"]["IPv6"]["healthy"], true);

        let late = Standing { succeeded, behind: PATIENCE + Duration::from_secs(1) };
        let body = document(&late, None, now);
        assert_eq!(body["lastUpdated"], "1970-01-01T00:00:10Z");
        assert_eq!(body["currentTime"], "1970-01-01T00:01:40Z");
        assert_eq!(body["status"]["IPv4"]["healthy"], false);
    }
}
