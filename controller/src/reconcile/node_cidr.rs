//! Gives every Node its Pod CIDRs. Driven by `reconcile::run`, against the embedded or any other apiserver. A Node that
//! has some keeps them; two nodes never get the same address.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, ObjectReference};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::cache::{Cache, Change, Key};
use super::{Reconciler, watch};
use crate::error::Error;
use crate::event;
use crate::metrics::Metrics;
use crate::subnet::Subnets;

/// Owns the subnets; the key is a Node's.
pub struct NodeCidrs {
    client: Client,
    subnets: Vec<Subnets>,
    nodes: Cache<Node>,
    /// Writes that may or may not have been stored. What they gave stays the node's until the watch shows what it has,
    /// or that it is gone: the answer to a second attempt says nothing about the first.
    in_doubt: BTreeMap<Key, Vec<IpNet>>,
    /// Nodes that were told already that there is nothing left for them.
    told: BTreeSet<Key>,
}

impl std::fmt::Debug for NodeCidrs {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("NodeCidrs").field("subnets", &self.subnets).finish_non_exhaustive()
    }
}

impl NodeCidrs {
    pub fn new(client: Client, subnets: Vec<Subnets>) -> Self {
        Self { client, subnets, nodes: Cache::default(), in_doubt: BTreeMap::new(), told: BTreeSet::new() }
    }

    /// Keeps the subnets in step with what Nodes have. Deletions first: a list may hold a node that took over.
    fn account(&mut self, changes: &[Change<Node>]) {
        for change in changes.iter().filter(|change| is_gone(change)) {
            self.release(&change.key.name);
            self.in_doubt.remove(&change.key);
            self.told.remove(&change.key);
        }
        for (key, node) in changes.iter().filter_map(|change| Some((&change.key, change.new.as_ref()?))) {
            if has_cidr(node) && self.in_doubt.remove(key).is_some() {
                self.release(&key.name);
            }
            for cidr in cidrs(node) {
                if !self.subnets.iter_mut().all(|subnets| subnets.adopt(&key.name, &cidr)) {
                    tracing::error!(node = %key, %cidr, "pod cidr overlaps that of another node");
                }
            }
        }
    }

    fn release(&mut self, node: &str) {
        self.subnets.iter_mut().for_each(|subnets| subnets.release(node));
    }

    /// One subnet of each family that the cluster has; all or none.
    fn assign(&mut self, node: &str) -> Result<Vec<IpNet>, Error> {
        let mut assigned: Vec<IpNet> = Vec::new();
        for is_ipv4 in families(&self.subnets) {
            let mut candidates = self.subnets.iter_mut().filter(|subnets| subnets.is_ipv4() == is_ipv4);
            let Some(subnet) = candidates.find_map(|subnets| subnets.assign(node)) else {
                self.release(node);
                let family = if is_ipv4 { "IPv4" } else { "IPv6" };
                return Err(Error::SubnetsExhausted { family, node: node.to_owned() });
            };
            assigned.push(subnet);
        }
        Ok(assigned)
    }

    async fn write(&mut self, key: &Key, node: &Node, assigned: Vec<IpNet>) -> Result<(), Error> {
        let name = &key.name;
        let texts: Vec<_> = assigned.iter().map(IpNet::to_string).collect();
        // The version guards against a Pod CIDR that somebody else gave meanwhile.
        let patch = json!({
            "metadata": {"resourceVersion": node.resource_version()},
            "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        match api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(node) => {
                tracing::info!(node = name, cidrs = texts.join(","), "pod cidrs assigned");
                self.in_doubt.remove(key);
                self.nodes.put(node);
                Ok(())
            }
            Err(error) => {
                if !is_refusal(&error) {
                    self.in_doubt.insert(key.clone(), assigned);
                } else if !self.in_doubt.contains_key(key) {
                    self.release(name);
                }
                Err(Error::api("patch", "Node", name)(error))
            }
        }
    }

    async fn tell(&mut self, key: &Key, node: &Node, error: &Error) {
        if self.told.insert(key.clone()) {
            let regarding = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(key.name.clone()),
                uid: node.uid(),
                ..ObjectReference::default()
            };
            event::warn(&self.client, regarding, "CIDRNotAvailable", &error.to_string()).await;
        }
    }
}

impl Reconciler for NodeCidrs {
    type Event = Box<Event<Node>>;
    type Key = Key;
    const NAME: &'static str = "node_cidr";

    fn watches(&self, metrics: &Metrics) -> BoxStream<'static, Box<Event<Node>>> {
        watch(&self.client, metrics).boxed()
    }

    fn observe(&mut self, event: Box<Event<Node>>) -> Vec<Key> {
        let changes = self.nodes.apply(*event);
        self.account(&changes);
        let freed = changes.iter().any(is_gone);
        let waiting = if freed { self.told.iter().cloned().collect() } else { Vec::new() };
        changes.into_iter().map(|change| change.key).chain(waiting).collect()
    }

    fn is_ready(&self) -> bool {
        self.nodes.is_listed()
    }

    async fn reconcile(&mut self, key: &Key) -> Result<(), Error> {
        let Some(node) = self.nodes.get(key).cloned().filter(|node| !has_cidr(node)) else { return Ok(()) };
        let attempted = self.in_doubt.get(key).cloned();
        match attempted.map_or_else(|| self.assign(&key.name), Ok) {
            Ok(assigned) => {
                self.write(key, &node, assigned).await?;
                self.told.remove(key);
                Ok(())
            }
            Err(error) => {
                self.tell(key, &node, &error).await;
                Err(error)
            }
        }
    }
}

/// Whether the apiserver decided not to store the write. A server error, a timeout or a lost connection leave it open;
/// so does a conflict, for the client repeats some requests by itself and may have run into its own.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && !matches!(status.code, 408 | 409))
}

/// Whether the old node is no more, be there a new one of its name or not.
fn is_gone(change: &Change<Node>) -> bool {
    let uid = |node: &Option<Arc<Node>>| node.as_ref().and_then(|node| node.uid());
    change.old.is_some() && uid(&change.old) != uid(&change.new)
}

/// The families of the cluster CIDRs, in the order in which they were named.
fn families(subnets: &[Subnets]) -> Vec<bool> {
    let mut families = Vec::new();
    for is_ipv4 in subnets.iter().map(Subnets::is_ipv4) {
        if !families.contains(&is_ipv4) {
            families.push(is_ipv4);
        }
    }
    families
}

fn texts(node: &Node) -> impl Iterator<Item = &String> {
    node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr))
}

fn has_cidr(node: &Node) -> bool {
    texts(node).any(|text| !text.is_empty())
}

fn cidrs(node: &Node) -> Vec<IpNet> {
    texts(node).filter_map(|text| text.parse().ok()).collect()
}
