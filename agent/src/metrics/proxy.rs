//! The metrics that kube-proxy has, under its names (S53): what is made to watch it watches this agent, too.
//!
//! Filled through [`super::Metrics`] only.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::{Counters, Gauges, set};
use crate::watch::Kind;

type Timestamp = Gauge<f64, AtomicU64>;

#[derive(Debug)]
pub(super) struct ProxyMetrics {
    sync_duration: Histogram,
    /// From the change of an endpoint to rows in the kernel.
    pub(super) programming: Histogram,
    last_sync: Timestamp,
    last_queued: Timestamp,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    no_local_endpoints: Gauges,
    healthz: Counters,
    livez: Counters,
}

impl ProxyMetrics {
    /// With kube-proxy's buckets.
    pub(super) fn new() -> Self {
        Self {
            sync_duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            programming: Histogram::new(programming_buckets()),
            last_sync: Gauge::default(),
            last_queued: Gauge::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            no_local_endpoints: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("kubeproxy");
        let seconds = Unit::Seconds;
        let duration = self.sync_duration.clone();
        let help = "Time that a round of writing took";
        registry.register_with_unit("sync_proxy_rules_duration", help, seconds.clone(), duration);
        let programming = self.programming.clone();
        let help = "Time from the change of an endpoint to rows in the kernel";
        registry.register_with_unit("network_programming_duration", help, seconds.clone(), programming);
        let (last, queued) = (self.last_sync.clone(), self.last_queued.clone());
        let help = "When the last round succeeded";
        registry.register_with_unit("sync_proxy_rules_last_timestamp", help, seconds.clone(), last);
        let help = "When the last change was queued";
        registry.register_with_unit("sync_proxy_rules_last_queued_timestamp", help, seconds, queued);
        self.register_changes(registry);
        let probes = "Answers to probes, by HTTP status code";
        registry.register("proxy_healthz", probes, self.healthz.clone());
        registry.register("proxy_livez", probes, self.livez.clone());
    }

    fn register_changes(&self, registry: &mut Registry) {
        let endpoints = (&self.endpoint_changes, &self.endpoint_changes_pending);
        let services = (&self.service_changes, &self.service_changes_pending);
        for (what, (total, pending)) in [("endpoint", endpoints), ("service", services)] {
            let name = format!("sync_proxy_rules_{what}_changes");
            let help = format!("Changes of kind {what}");
            registry.register(name, help, total.clone());
            let name = format!("sync_proxy_rules_{what}_changes_pending");
            let help = format!("Changes of kind {what} that no round has written");
            registry.register(name, help, pending.clone());
        }
        let help = "Frontends with a Local policy and endpoints elsewhere only, by policy";
        let none = self.no_local_endpoints.clone();
        // A gauge in spite of its name, as kube-proxy's is.
        registry.register("sync_proxy_rules_no_local_endpoints_total", help, none);
    }

    pub(super) fn changed(&self, kind: Kind, now: SystemTime) {
        let (total, pending) = match kind {
            Kind::Service => (&self.service_changes, &self.service_changes_pending),
            Kind::EndpointSlice => (&self.endpoint_changes, &self.endpoint_changes_pending),
            _ => return,
        };
        total.inc();
        pending.inc();
        self.last_queued.set(unix(now));
    }

    pub(super) fn begun(&self) {
        self.endpoint_changes_pending.set(0);
        self.service_changes_pending.set(0);
    }

    pub(super) fn succeeded(&self, took: Duration, now: SystemTime, triggers: &[SystemTime]) {
        self.sync_duration.observe(took.as_secs_f64());
        self.last_sync.set(unix(now));
        for trigger in triggers {
            // A clock ahead of ours says nothing about how fast we were.
            if let Ok(latency) = now.duration_since(*trigger) {
                self.programming.observe(latency.as_secs_f64());
            }
        }
    }

    pub(super) fn without_local_endpoints(&self, internal: usize, external: usize) {
        for (policy, count) in [("internal", internal), ("external", external)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            set(&self.no_local_endpoints, [("traffic_policy", policy)], count);
        }
    }

    pub(super) fn probed(&self, eligibility: bool, healthy: bool) {
        let probes = if eligibility { &self.healthz } else { &self.livez };
        probes.get_or_create(&[("code", if healthy { "200" } else { "503" })]).inc();
    }
}

/// Quarters of the first second, then seconds, then less and less precise up to five minutes.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(seconds.map(f64::from))
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
