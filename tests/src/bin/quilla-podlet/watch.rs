//! From the Pods bound to this node to one worker each.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{Node, worker};

struct Worker {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

pub(crate) async fn run(node: &Arc<Node>) -> Result<()> {
    let api: Api<Pod> = Api::all(node.client.clone());
    let bound = Config::default().fields(&format!("spec.nodeName={}", node.name));
    let mut events = pin!(watcher(api, bound).default_backoff());
    let mut workers = HashMap::<String, Worker>::new();
    let mut listed = Vec::new();
    loop {
        let event = match events.try_next().await {
            Ok(event) => event.context("the watch ended")?,
            Err(error) => {
                warn!(error = %error, "watch of pods failed, trying again");
                continue;
            }
        };
        workers.retain(|_, worker| !worker.task.is_finished());
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(pod) => {
                listed.push(pod.uid().unwrap_or_default());
                apply(node, &mut workers, pod);
            }
            Event::InitDone => {
                let gone = workers.iter().filter(|(uid, _)| !listed.contains(uid));
                gone.for_each(|(_, worker)| worker.stop.cancel());
            }
            Event::Apply(pod) => apply(node, &mut workers, pod),
            Event::Delete(pod) => {
                if let Some(worker) = workers.get(&pod.uid().unwrap_or_default()) {
                    worker.stop.cancel();
                }
            }
        }
    }
}

/// Starts a Pod that is new, stops one that is being deleted.
fn apply(node: &Arc<Node>, workers: &mut HashMap<String, Worker>, pod: Pod) {
    let uid = pod.uid().unwrap_or_default();
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let worker = workers.entry(uid).or_insert_with(|| {
        let stop = CancellationToken::new();
        let task = tokio::spawn(worker::run(Arc::clone(node), pod, stop.clone()));
        Worker { stop, task }
    });
    if terminating {
        worker.stop.cancel();
    }
}
