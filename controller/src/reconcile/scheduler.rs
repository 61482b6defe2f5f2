//! Gives Pods without a node one, in embedded mode only, where nobody else would. Driven by `reconcile::run`. The Ready
//! node with the fewest Pods gets it, the first by name among equals; it weighs nothing else.

use std::collections::BTreeMap;

use futures::StreamExt;
use futures::stream::{BoxStream, select_all};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client};
use serde_json::json;

use super::cache::{Cache, Key};
use super::{Reconciler, watch};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::selector::Labels;

/// What the scheduler sees.
#[derive(Debug)]
pub enum Seen {
    Pod(Box<Event<Pod>>),
    Node(Box<Event<Node>>),
}

/// Owns the caches; the key is a Pod's.
pub struct Scheduler {
    client: Client,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Scheduler").finish_non_exhaustive()
    }
}

impl Scheduler {
    pub fn new(client: Client) -> Self {
        Self { client, pods: Cache::default(), nodes: Cache::default() }
    }

    fn choose(&self, pod: &Pod) -> Option<String> {
        let pods = self.pods.iter().map(|(_, pod)| &**pod);
        choose(pod, pods, self.nodes.iter().map(|(_, node)| &**node))
    }

    fn waiting(&self) -> Vec<Key> {
        self.pods.iter().filter(|(_, pod)| is_waiting(pod)).map(|(key, _)| key.clone()).collect()
    }
}

impl Reconciler for Scheduler {
    type Event = Seen;
    type Key = Key;
    const NAME: &'static str = "scheduler";

    fn watches(&self, metrics: &Metrics) -> BoxStream<'static, Seen> {
        let pods = watch(&self.client, metrics).map(Seen::Pod).boxed();
        let nodes = watch(&self.client, metrics).map(Seen::Node).boxed();
        select_all([pods, nodes]).boxed()
    }

    fn observe(&mut self, event: Seen) -> Vec<Key> {
        match event {
            Seen::Pod(event) => self.pods.apply(*event).into_iter().map(|change| change.key).collect(),
            Seen::Node(event) => match self.nodes.apply(*event).as_slice() {
                [] => Vec::new(),
                _ => self.waiting(),
            },
        }
    }

    fn is_ready(&self) -> bool {
        self.pods.is_listed() && self.nodes.is_listed()
    }

    async fn reconcile(&mut self, key: &Key) -> Result<(), Error> {
        let Some(pod) = self.pods.get(key).filter(|pod| is_waiting(pod)) else { return Ok(()) };
        let node = self.choose(pod).ok_or_else(|| Error::NoNode { pod: key.to_string() })?;
        let bound = bind(&self.client, key, pod, &node).await?;
        tracing::info!(pod = %key, node, "pod bound");
        self.pods.put(bound);
        Ok(())
    }
}

/// The embedded apiserver lets a Pod without a node be given one by an update. The version makes it this very Pod.
async fn bind(client: &Client, key: &Key, pod: &Pod, node: &str) -> Result<Pod, Error> {
    let version = pod.metadata.resource_version.as_ref();
    let patch = Patch::Merge(json!({"metadata": {"resourceVersion": version}, "spec": {"nodeName": node}}));
    let api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
    api.patch(&key.name, &PatchParams::default(), &patch).await.map_err(Error::api("bind", "Pod", key))
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_waiting(pod: &Pod) -> bool {
    node_of(pod).is_none() && !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

fn choose<'a>(
    pod: &Pod,
    pods: impl Iterator<Item = &'a Pod>,
    nodes: impl Iterator<Item = &'a Node>,
) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in pods.filter(|pod| !is_finished(pod)).filter_map(node_of) {
        *counts.entry(node).or_default() += 1;
    }
    let wanted = pod.spec.as_ref().and_then(|spec| spec.node_selector.as_ref());
    let fitting = nodes.filter(|node| takes_pods(node) && has_labels(node, wanted));
    let names = fitting.filter_map(|node| node.metadata.name.as_deref());
    names.min_by_key(|name| (counts.get(name).copied().unwrap_or(0), *name)).map(str::to_owned)
}

fn takes_pods(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    ready && node.spec.as_ref().and_then(|spec| spec.unschedulable) != Some(true)
}

fn has_labels(node: &Node, wanted: Option<&Labels>) -> bool {
    let labels = node.metadata.labels.as_ref();
    wanted.into_iter().flatten().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Node, Pod};
    use serde_json::json;

    use super::{choose, is_waiting};

    fn pod(node: Option<&str>, phase: &str) -> Pod {
        let spec = json!({"nodeName": node, "containers": []});
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec, "status": {"phase": phase}}))
            .expect("pod")
    }

    fn node(name: &str, ready: &str, cordoned: bool) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"name": name}}, "spec": {"unschedulable": cordoned},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .expect("node")
    }

    #[test]
    fn the_ready_node_with_the_fewest_pods_gets_it() {
        let nodes = [
            node("a", "True", false),
            node("b", "True", false),
            node("c", "False", false),
            node("d", "True", true),
        ];
        let mut pods = vec![pod(Some("a"), "Running"), pod(Some("b"), "Succeeded")];
        let new = pod(None, "Pending");
        assert_eq!(choose(&new, pods.iter(), nodes.iter()).as_deref(), Some("b"));
        pods.push(pod(Some("b"), "Running"));
        assert_eq!(choose(&new, pods.iter(), nodes.iter()).as_deref(), Some("a"));
        assert_eq!(choose(&new, pods.iter(), nodes[2..].iter()), None);
        let mut picky = new;
        picky.spec.get_or_insert_default().node_selector = Some([("name".to_owned(), "b".to_owned())].into());
        assert_eq!(choose(&picky, pods.iter(), nodes.iter()).as_deref(), Some("b"));
    }

    #[test]
    fn only_a_pod_that_has_its_life_before_it_waits() {
        assert!(is_waiting(&pod(None, "Pending")) && is_waiting(&pod(Some(""), "Pending")));
        assert!(!is_waiting(&pod(Some("a"), "Pending")) && !is_waiting(&pod(None, "Failed")));
    }
}
