//! The reconcilers, one file each, and the loop that drives them. Called by `app`. A reconciler is level-triggered: it
//! reads its caches, computes what should be, and writes the difference; what failed is tried again with backoff.

pub mod cache;
pub mod endpoint_slice;
pub mod kubernetes_service;
pub mod label_index;
pub mod node_cidr;
pub mod queue;
pub mod scheduler;
pub mod service_cidr;

use std::fmt::{Debug, Display};
use std::future::Future;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::queue::Queue;
use crate::error::Error;
use crate::health::Readiness;
use crate::metrics::Metrics;

/// What every task of the controller shares.
#[derive(Clone, Debug)]
pub struct Context {
    pub metrics: Metrics,
    pub readiness: Readiness,
    pub drain: CancellationToken,
}

/// What the loop needs of a reconciler.
pub trait Reconciler: Send {
    /// What its watches see.
    type Event: Send;
    /// What it reconciles one by one.
    type Key: Ord + Clone + Display + Send + Sync;
    /// Its name in logs and metrics.
    const NAME: &'static str;
    /// The most keys it takes at once: bounds the requests under way, and how long events wait.
    const AT_ONCE: usize = 1;

    fn watches(&self, metrics: &Metrics) -> BoxStream<'static, Self::Event>;

    /// Takes an event into the caches; returns what it concerns.
    fn observe(&mut self, event: Self::Event) -> Vec<Self::Key>;

    /// Whether every cache has seen a whole list. Nothing is reconciled before.
    fn is_ready(&self) -> bool;

    fn reconcile(&mut self, key: &Self::Key) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reconciles up to `AT_ONCE` keys, with one outcome each, in their order. One after another, unless overridden
    /// by a reconciler whose keys are independent of each other.
    fn reconcile_all(&mut self, keys: &[Self::Key]) -> impl Future<Output = Vec<Result<(), Error>>> + Send {
        async move {
            let mut outcomes = Vec::with_capacity(keys.len());
            for key in keys {
                outcomes.push(self.reconcile(key).await);
            }
            outcomes
        }
    }
}

/// Drives one reconciler until `drain`; a reconciliation that has begun is finished.
pub async fn run<R: Reconciler>(mut reconciler: R, context: Context) -> Result<(), Error> {
    let Context { metrics, readiness, drain } = context;
    let mut events = reconciler.watches(&metrics);
    let mut queue = Queue::default();
    loop {
        let due = queue.next().filter(|_| reconciler.is_ready());
        tokio::select! {
            biased;
            () = drain.cancelled() => return Ok(()),
            // Events first: a burst of changes to one object costs one reconciliation.
            event = events.next() => {
                let event = event.ok_or(Error::TaskEnded { task: R::NAME })?;
                let now = Instant::now();
                for key in reconciler.observe(event) {
                    queue.push(key, now);
                }
                if reconciler.is_ready() {
                    readiness.reached(R::NAME);
                }
            }
            () = at(due) => settle(&mut reconciler, &mut queue, &metrics).await,
        }
        metrics.queued(R::NAME, queue.len());
    }
}

async fn settle<R: Reconciler>(reconciler: &mut R, queue: &mut Queue<R::Key>, metrics: &Metrics) {
    let started = Instant::now();
    let keys = queue.take(started, R::AT_ONCE);
    let outcomes = reconciler.reconcile_all(&keys).await;
    for (key, outcome) in keys.into_iter().zip(outcomes) {
        metrics.reconciled(R::NAME, started.elapsed());
        match outcome {
            Ok(()) => queue.succeeded(&key),
            Err(error) => {
                metrics.failed(R::NAME, error.name());
                tell::<R>(&key, &error);
                queue.failed(key, Instant::now());
            }
        }
    }
}

fn tell<R: Reconciler>(key: &R::Key, error: &Error) {
    if error.is_conflict() {
        tracing::debug!(reconciler = R::NAME, object = %key, "object has changed, trying again soon");
    } else {
        let error = error as &(dyn std::error::Error + 'static);
        tracing::warn!(reconciler = R::NAME, object = %key, error, "reconciliation failed, trying again later");
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Every object of a kind in all namespaces, for ever; a broken watch is counted and resumed with backoff.
fn watch<K>(client: &Client, metrics: &Metrics) -> impl Stream<Item = Box<Event<K>>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
    K: k8s_openapi::Resource,
{
    let metrics = metrics.clone();
    watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff().filter_map(
        move |event| {
            let event = event.inspect_err(|error| {
                metrics.watch_broke(K::KIND);
                let error = error as &(dyn std::error::Error + 'static);
                tracing::warn!(kind = K::KIND, error, "watch broke, resuming");
            });
            std::future::ready(event.ok().map(Box::new))
        },
    )
}
