//! The controller's metrics, all in one table. Written by the reconcilers' loops, read by the health server.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// By reconciler.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconciler {
    reconciler: &'static str,
}

/// By reconciler and the name of the error.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failure {
    reconciler: &'static str,
    error: &'static str,
}

/// By the kind watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watched {
    kind: &'static str,
}

/// Shared by all tasks; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    durations: Family<Reconciler, Histogram, fn() -> Histogram>,
    failures: Family<Failure, Counter>,
    queued: Family<Reconciler, Gauge>,
    watch_errors: Family<Watched, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.000_5, 4.0, 8));
        let durations = Family::new_with_constructor(buckets);
        let (failures, queued, watch_errors) = (Family::default(), Family::default(), Family::default());
        let mut registry = Registry::with_prefix("quilla_controller");
        registry.register_with_unit(
            "reconcile_duration",
            "Time taken to reconcile one object",
            Unit::Seconds,
            Family::clone(&durations),
        );
        registry.register("reconcile_failures", "Reconciliations that failed", Family::clone(&failures));
        registry.register("queue_length", "Objects waiting to be reconciled", Family::clone(&queued));
        registry.register(
            "watch_errors",
            "Watches that broke and were resumed",
            Family::clone(&watch_errors),
        );
        Self { registry: Arc::new(registry), durations, failures, queued, watch_errors }
    }
}

impl Metrics {
    pub fn reconciled(&self, reconciler: &'static str, took: Duration) {
        self.durations.get_or_create(&Reconciler { reconciler }).observe(took.as_secs_f64());
    }

    pub fn failed(&self, reconciler: &'static str, error: &'static str) {
        self.failures.get_or_create(&Failure { reconciler, error }).inc();
    }

    pub fn queued(&self, reconciler: &'static str, length: usize) {
        self.queued.get_or_create(&Reconciler { reconciler }).set(i64::try_from(length).unwrap_or(i64::MAX));
    }

    pub fn watch_broke(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&Watched { kind }).inc();
    }

    /// The `OpenMetrics` text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Metrics;

    #[test]
    fn names_carry_the_prefix_and_the_unit() {
        let metrics = Metrics::default();
        metrics.reconciled("node_cidr", Duration::from_millis(2));
        metrics.failed("node_cidr", "api");
        metrics.queued("node_cidr", 3);
        metrics.watch_broke("Node");
        let text = metrics.encode().expect("text");
        for line in [
            "quilla_controller_reconcile_duration_seconds_count{reconciler=\"node_cidr\"} 1",
            "quilla_controller_reconcile_failures_total{reconciler=\"node_cidr\",error=\"api\"} 1",
            "quilla_controller_queue_length{reconciler=\"node_cidr\"} 3",
            "quilla_controller_watch_errors_total{kind=\"Node\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
