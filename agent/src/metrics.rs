//! What the agent counts, for Prometheus. Filled by whoever does the work, read by the health server.
//!
//! Labels are few and from fixed lists. Counters of the kernel are copied in when somebody asks, not kept twice.

mod proxy;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use quilla_abi::DropReason;
use quilla_abi::counter::path;
use quilla_datapath::{Datapath, Result};
use quilla_model::{Problem, Reason};

use crate::progress::Progress;
use crate::table;
use crate::watch::Kind;

use proxy::ProxyMetrics;

type Labels = [(&'static str, &'static str); 1];
type Counters = Family<Labels, Counter>;
type Gauges = Family<Labels, Gauge>;

/// Paths of delivered packets, by their row.
pub const PATHS: [(u32, &str); 8] = [
    (path::LOCAL_POD, "local_pod"),
    (path::OVERLAY, "overlay"),
    (path::NATIVE, "native"),
    (path::STACK, "stack"),
    (path::UPLINK, "uplink"),
    (path::PASSED, "passed"),
    (path::HOST_OVERLAY, "host_overlay"),
    (path::ANSWERED, "answered"),
];

/// All metrics and their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    drops: Counters,
    dropped_bytes: Counters,
    forwards: Counters,
    forwarded_bytes: Counters,
    map_entries: Gauges,
    map_capacity: Gauges,
    reconcile_duration: Histogram,
    reconcile_failures: Counters,
    drift: Counters,
    watch_restarts: Counters,
    problems: Gauges,
    endpoints: Gauge,
    abandoned: Counter,
    restored: Counter,
    ready: Gauge,
    destroyed: Counter,
    proxy: ProxyMetrics,
    progress: Progress,
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let mut metrics = Self {
            drops: Family::default(),
            dropped_bytes: Family::default(),
            forwards: Family::default(),
            forwarded_bytes: Family::default(),
            map_entries: Family::default(),
            map_capacity: Family::default(),
            reconcile_duration: Histogram::new(exponential_buckets(0.000_5, 2.0, 14)),
            reconcile_failures: Family::default(),
            drift: Family::default(),
            watch_restarts: Family::default(),
            problems: Family::default(),
            endpoints: Gauge::default(),
            abandoned: Counter::default(),
            restored: Counter::default(),
            ready: Gauge::default(),
            destroyed: Counter::default(),
            proxy: ProxyMetrics::new(),
            progress: Progress::default(),
            registry: Registry::default(),
        };
        let own = registry.sub_registry_with_prefix("quilla_agent");
        metrics.register_kernel(own);
        metrics.register_agent(own);
        metrics.proxy.register(&mut registry);
        metrics.registry = registry;
        metrics
    }

    fn register_kernel(&self, registry: &mut Registry) {
        registry.register("drops", "Packets not delivered, by reason", self.drops.clone());
        registry.register("dropped_bytes", "Bytes not delivered, by reason", self.dropped_bytes.clone());
        registry.register("forwards", "Packets delivered, by path", self.forwards.clone());
        registry.register("forwarded_bytes", "Bytes delivered, by path", self.forwarded_bytes.clone());
        registry.register("map_entries", "Rows in a kernel map", self.map_entries.clone());
        registry.register("map_capacity", "Rows that a kernel map can hold", self.map_capacity.clone());
    }

    fn register_agent(&self, registry: &mut Registry) {
        let duration = self.reconcile_duration.clone();
        let help = "Time from a change to rows in the kernel";
        registry.register_with_unit("reconcile_duration", help, Unit::Seconds, duration);
        let programming = self.proxy.programming.clone();
        let help = "Time from the change of an endpoint to rows in the kernel";
        registry.register_with_unit("network_programming_duration", help, Unit::Seconds, programming);
        let failures = self.reconcile_failures.clone();
        registry.register("reconcile_failures", "Failed reconciliations, by what failed", failures);
        registry.register(
            "drift_repaired",
            "Rows that an audit had to put right, by map",
            self.drift.clone(),
        );
        registry.register("watch_restarts", "Interrupted watches, by kind", self.watch_restarts.clone());
        registry.register(
            "problems",
            "Problems with objects and with the node, by reason",
            self.problems.clone(),
        );
        registry.register("endpoints", "Pods attached to this node", self.endpoints.clone());
        let help = "Pods given up because their device and namespace were gone";
        registry.register("abandoned_endpoints_released", help, self.abandoned.clone());
        let help = "Pods whose programs somebody else removed, attached again";
        registry.register("programs_restored", help, self.restored.clone());
        let help = "Sockets of the node that were ended because their backend is gone";
        registry.register("sockets_destroyed", help, self.destroyed.clone());
        registry.register("ready", "Whether the self-test passed", self.ready.clone());
    }

    /// All metrics as text, with the kernel's counters as they are now. Of an array nobody could count the rows that are
    /// used, so `slots` says how many of its are.
    pub fn render(&self, datapath: &Datapath, slots: usize) -> Result<String> {
        self.copy_counters(datapath)?;
        let (name, capacity) = (quilla_abi::map::SLOTS, datapath.maps().slots.capacity());
        set(&self.map_entries, [("map", name)], i64::try_from(slots).unwrap_or(i64::MAX));
        set(&self.map_capacity, [("map", name)], i64::from(capacity));
        let mut text = String::new();
        // Writing to a string cannot fail.
        encode(&mut text, &self.registry).unwrap_or_default();
        Ok(text)
    }

    fn copy_counters(&self, datapath: &Datapath) -> Result<()> {
        let maps = datapath.maps();
        let drops = maps.drops.totals()?;
        for reason in DropReason::ALL {
            let Some(total) = drops.get(*reason as usize) else { continue };
            copy(&self.drops, [("reason", reason.label())], total.packets);
            copy(&self.dropped_bytes, [("reason", reason.label())], total.bytes);
        }
        for (row, name) in PATHS {
            let total = maps.forwards.total(row)?;
            copy(&self.forwards, [("path", name)], total.packets);
            copy(&self.forwarded_bytes, [("path", name)], total.bytes);
        }
        for (map, entries, capacity) in table::fill(maps)? {
            set(&self.map_entries, [("map", map)], i64::try_from(entries).unwrap_or(i64::MAX));
            set(&self.map_capacity, [("map", map)], i64::from(capacity));
        }
        Ok(())
    }

    /// How far the kernel is behind the cluster.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// An object of the cluster changed; of an endpoint, `trigger` says when its Pod or Service did (S53).
    pub fn changed(&self, kind: Kind, trigger: Option<SystemTime>) {
        self.progress.queued(Instant::now());
        self.proxy.changed(kind, SystemTime::now());
        if let Some(trigger) = trigger {
            self.progress.triggered(trigger);
        }
    }

    /// A reconciliation begins.
    pub fn reconcile_begun(&self) {
        self.progress.begun();
        self.proxy.begun();
    }

    /// A reconciliation took so long.
    pub fn reconciled(&self, took: Duration) {
        self.reconcile_duration.observe(took.as_secs_f64());
        let now = SystemTime::now();
        let triggers = self.progress.succeeded(now);
        self.proxy.succeeded(took, now, &triggers);
    }

    /// A reconciliation failed.
    pub fn reconcile_failed(&self, error: &'static str) {
        self.progress.failed(Instant::now());
        self.reconcile_failures.get_or_create(&[("error", error)]).inc();
    }

    /// An audit found rows of a map that were not what they should be.
    pub fn drift_repaired(&self, map: &'static str, rows: usize) {
        self.drift.get_or_create(&[("map", map)]).inc_by(rows as u64);
    }

    /// Programs that somebody else removed from a Pod are attached again.
    pub fn programs_restored(&self) {
        self.restored.inc();
    }

    /// A watch was interrupted.
    pub fn watch_restarted(&self, kind: Kind) {
        self.watch_restarts.get_or_create(&[("kind", kind.name())]).inc();
    }

    /// What is wrong at the moment.
    pub fn problems<'a>(&self, problems: impl Iterator<Item = &'a Problem>) {
        let mut counts: BTreeMap<Reason, i64> = Reason::ALL.iter().map(|reason| (*reason, 0)).collect();
        problems.for_each(|problem| *counts.entry(problem.reason).or_default() += 1);
        for (reason, count) in counts {
            set(&self.problems, [("reason", reason.label())], count);
        }
    }

    /// How many Pods are attached.
    pub fn endpoints(&self, count: usize) {
        self.endpoints.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// An endpoint that nobody was going to DEL was released.
    pub fn abandoned_released(&self) {
        self.abandoned.inc();
    }

    /// How many frontends have a Local policy and no local endpoint, but some elsewhere.
    pub fn without_local_endpoints(&self, internal: usize, external: usize) {
        self.proxy.without_local_endpoints(internal, external);
    }

    /// A probe was answered; the question included whether the node is eligible for load balancers, or did not.
    pub fn probed(&self, eligibility: bool, healthy: bool) {
        self.proxy.probed(eligibility, healthy);
    }

    /// Sockets of the node were ended.
    pub fn sockets_destroyed(&self, count: usize) {
        self.destroyed.inc_by(count as u64);
    }

    /// Whether the self-test passed.
    pub fn ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn copy(counters: &Counters, labels: Labels, value: u64) {
    let counter = counters.get_or_create(&labels);
    let inner: &AtomicU64 = counter.inner();
    inner.store(value, Ordering::Relaxed);
}

fn set(gauges: &Gauges, labels: Labels, value: i64) {
    gauges.get_or_create(&labels).set(value);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, SystemTime};

    use prometheus_client::encoding::text::encode;
    use quilla_model::{ObjectRef, Problem, Reason};

    use super::Metrics;
    use crate::watch::Kind;

    /// S53 among them: those of kube-proxy.
    #[test]
    fn metrics_have_the_names_that_are_promised() {
        let metrics = Metrics::new();
        metrics.watch_restarted(Kind::Node);
        metrics.drift_repaired("slots", 3);
        metrics.reconcile_failed("kernel");
        metrics.abandoned_released();
        metrics.changed(Kind::EndpointSlice, Some(SystemTime::now() - Duration::from_millis(300)));
        metrics.changed(Kind::Service, None);
        metrics.reconcile_begun();
        metrics.changed(Kind::Service, None);
        metrics.without_local_endpoints(0, 2);
        metrics.probed(true, false);
        metrics.reconciled(Duration::from_millis(2));
        metrics.problems([Problem::new(ObjectRef::cluster("Node", "a"), Reason::Malformed, "x")].iter());
        let mut text = String::new();
        encode(&mut text, &metrics.registry).unwrap();
        for line in [
            "quilla_agent_watch_restarts_total{kind=\"Node\"} 1",
            "quilla_agent_drift_repaired_total{map=\"slots\"} 3",
            "quilla_agent_reconcile_failures_total{error=\"kernel\"} 1",
            "quilla_agent_reconcile_duration_seconds_count 1",
            "quilla_agent_abandoned_endpoints_released_total 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
            "kubeproxy_network_programming_duration_seconds_count 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\"} 1",
            "quilla_agent_network_programming_duration_seconds_count 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 1",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 2",
            "kubeproxy_sync_proxy_rules_service_changes_pending 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\"} 2",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "quilla_agent_problems{reason=\"malformed\"} 1",
            "quilla_agent_problems{reason=\"capacity\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        for moment in ["last", "last_queued"] {
            let start = format!("kubeproxy_sync_proxy_rules_{moment}_timestamp_seconds 1");
            assert!(text.lines().any(|found| found.starts_with(&start)), "{start} in {text}");
        }
    }

    /// Names and types of what is registered. A family without a member says nothing, so each gets one.
    fn registered() -> BTreeSet<(String, String)> {
        let metrics = Metrics::new();
        let [reason, path, map] = ["reason", "path", "map"].map(|label| [(label, "x")]);
        drop((metrics.drops.get_or_create(&reason), metrics.dropped_bytes.get_or_create(&reason)));
        drop((metrics.forwards.get_or_create(&path), metrics.forwarded_bytes.get_or_create(&path)));
        drop((metrics.map_entries.get_or_create(&map), metrics.map_capacity.get_or_create(&map)));
        metrics.reconcile_failed("kernel");
        metrics.drift_repaired("slots", 1);
        metrics.watch_restarted(Kind::Node);
        metrics.problems([].iter());
        metrics.without_local_endpoints(0, 0);
        metrics.probed(true, true);
        metrics.probed(false, true);
        let mut text = String::new();
        encode(&mut text, &metrics.registry).unwrap();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let full = |(name, kind): (&str, &str)| {
            let suffix = if kind == "counter" { "_total" } else { "" };
            (format!("{name}{suffix}"), kind.to_owned())
        };
        types.map(full).collect()
    }

    #[test]
    fn the_page_of_metrics_has_them_all_and_no_others() {
        let page = include_str!("../../docs/metrics.md");
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let row = |(name, rest): (&str, &str)| {
            (name.to_owned(), rest.split(' ').next().unwrap_or_default().to_owned())
        };
        assert_eq!(registered(), rows.map(row).collect());
    }
}
