//! Keeps the EndpointSlices of every Service that has a selector. Driven by `reconcile::run`. Writes slices with its
//! own managed-by label only; a Service without a selector is its owner's business.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::{BoxStream, select_all};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use rand::RngExt;

use super::cache::{Cache, Change, Key};
use super::label_index::LabelIndex;
use super::{Reconciler, watch};
use crate::endpoint::{
    MANAGED_BY, MANAGED_BY_LABEL, Plan, SERVICE_LABEL, Topology, Triggers, desired, plan, pod_trigger,
    service_trigger,
};
use crate::error::{Error, is_code};
use crate::metrics::Metrics;
use crate::selector::selects;

/// The letters of generated names: no vowels, so that no words come out.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// What the reconciler sees.
#[derive(Debug)]
pub enum Seen {
    Service(Box<Event<Service>>),
    Pod(Box<Event<Pod>>),
    Node(Box<Event<Node>>),
    Slice(Box<Event<EndpointSlice>>),
}

/// Owns the caches; the key is a Service's.
pub struct EndpointSlices {
    client: Client,
    services: Cache<Service>,
    pods: Cache<Pod>,
    labels: LabelIndex,
    nodes: Cache<Node>,
    topology: Topology,
    slices: Cache<EndpointSlice>,
    triggers: Triggers,
}

impl std::fmt::Debug for EndpointSlices {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("EndpointSlices").finish_non_exhaustive()
    }
}

impl EndpointSlices {
    pub fn new(client: Client) -> Self {
        let (services, pods) = (Cache::default(), Cache::default());
        let (labels, nodes, slices) = (LabelIndex::default(), Cache::default(), Cache::default());
        let (topology, triggers) = (Topology::default(), Triggers::default());
        Self { client, services, pods, labels, nodes, topology, slices, triggers }
    }

    /// The Services that selected the Pod or select it now.
    fn services_of(&self, change: &Change<Pod>) -> Vec<Key> {
        let versions = [change.old.as_deref(), change.new.as_deref()];
        let selected = |service: &Service| {
            let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            versions.iter().flatten().any(|pod| selects(selector, pod.metadata.labels.as_ref()))
        };
        let services = self.services.within(&change.key.namespace);
        services.filter(|(_, service)| selected(service)).map(|(key, _)| key.clone()).collect()
    }

    fn observe_services(&mut self, event: Event<Service>) -> Vec<Key> {
        let live = self.services.is_listed();
        let changes = self.services.apply(event);
        for change in changes.iter().filter(|_| live) {
            if let Some(time) = service_trigger(change) {
                self.triggers.put(change.key.clone(), time);
            }
        }
        changes.into_iter().map(|change| change.key).collect()
    }

    fn observe_pods(&mut self, event: Event<Pod>) -> Vec<Key> {
        let live = self.pods.is_listed();
        let mut concerned = Vec::new();
        for change in self.pods.apply(event) {
            self.labels.update(&change);
            let services = self.services_of(&change);
            if let Some(time) = pod_trigger(&change).filter(|_| live) {
                for key in &services {
                    self.triggers.put(key.clone(), time.clone());
                }
            }
            concerned.extend(services);
        }
        concerned
    }

    /// A node matters by what it adds to the topology only.
    fn services_by_topology(&mut self, changes: &[Change<Node>]) -> Vec<Key> {
        if changes.is_empty() {
            return Vec::new();
        }
        let topology = Topology::of(self.nodes.iter().map(|(_, node)| &**node));
        if topology == self.topology {
            return Vec::new();
        }
        self.topology = topology;
        self.services.iter().map(|(key, _)| key.clone()).collect()
    }

    fn writer(&self, key: &Key) -> Writer {
        Writer { client: self.client.clone(), key: key.clone(), written: Vec::new() }
    }

    fn managed(&self, key: &Key) -> Vec<Arc<EndpointSlice>> {
        let slices = self.slices.within(&key.namespace).map(|(_, slice)| slice);
        slices.filter(|slice| service_of(slice).as_ref() == Some(key)).cloned().collect()
    }

    fn plan(&self, key: &Key, trigger: Option<&Time>) -> Plan {
        let existing = self.managed(key);
        let Some(service) = self.services.get(key).filter(|service| !is_external_name(service)) else {
            let delete = existing.iter().map(|slice| EndpointSlice::clone(slice)).collect();
            return Plan { delete, ..Plan::default() };
        };
        let Some(selector) = service.spec.as_ref().and_then(|spec| spec.selector.as_ref()) else {
            return Plan::default();
        };
        let pods: Vec<_> = self
            .labels
            .candidates(&key.namespace, selector)
            .filter_map(|key| self.pods.get(key).map(|pod| &**pod))
            .filter(|pod| selects(Some(selector), pod.metadata.labels.as_ref()))
            .collect();
        let desired = desired(service, pods, &self.topology);
        let mut plan = plan(service, desired, existing.iter().map(|slice| &**slice));
        plan.stamp(trigger);
        plan
    }

    /// Sees what was written before the watch does, also of a plan that failed half-way; one that failed is still to
    /// tell of its change.
    fn settle(
        &mut self,
        key: &Key,
        trigger: Option<Time>,
        written: Vec<Written>,
        outcome: Result<(), Error>,
    ) -> Result<(), Error> {
        if let (Some(time), Err(_)) = (trigger, &outcome) {
            self.triggers.put(key.clone(), time);
        }
        for one in written {
            match one {
                Written::Put(slice) => drop(self.slices.put(*slice)),
                Written::Deleted(key) => drop(self.slices.remove(&key)),
            }
        }
        outcome
    }
}

/// One write that was acknowledged.
enum Written {
    Put(Box<EndpointSlice>),
    Deleted(Key),
}

/// The writes of one Service; needs nothing of the reconciler, so that those of several go on at once.
struct Writer {
    client: Client,
    key: Key,
    written: Vec<Written>,
}

impl Writer {
    async fn run(mut self, plan: Plan) -> (Vec<Written>, Result<(), Error>) {
        if plan.is_empty() {
            return (self.written, Ok(()));
        }
        let (created, updated, deleted) = (plan.create.len(), plan.update.len(), plan.delete.len());
        let outcome = self.write(plan).await;
        if outcome.is_ok() {
            tracing::debug!(service = %self.key, created, updated, deleted, "endpoint slices written");
        }
        (self.written, outcome)
    }

    /// Creations first, then what gains, and deletions last: an endpoint that moves is seen twice rather than not at all.
    async fn write(&mut self, plan: Plan) -> Result<(), Error> {
        let Self { client, key, written } = self;
        let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.namespace);
        for mut slice in plan.create {
            let name = format!("{}-{}", key.name, suffix());
            slice.metadata.name = Some(name.clone());
            let error = Error::api("create", "EndpointSlice", &Key::new(&key.namespace, name));
            let slice = api.create(&PostParams::default(), &slice).await.map_err(error)?;
            written.push(Written::Put(Box::new(slice)));
        }
        for slice in plan.update {
            let name = slice.name_any();
            let error = Error::api("update", "EndpointSlice", &Key::of(&slice));
            let slice = api.replace(&name, &PostParams::default(), &slice).await.map_err(error)?;
            written.push(Written::Put(Box::new(slice)));
        }
        for slice in plan.delete {
            let preconditions = Preconditions { uid: slice.uid(), resource_version: None };
            let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match api.delete(&slice.name_any(), &parameters).await {
                Err(error) if !is_code(&error, 404) => {
                    return Err(Error::api("delete", "EndpointSlice", &Key::of(&slice))(error));
                }
                _ => written.push(Written::Deleted(Key::of(&slice))),
            }
        }
        Ok(())
    }
}

impl Reconciler for EndpointSlices {
    type Event = Seen;
    type Key = Key;
    const NAME: &'static str = "endpoint_slice";
    const AT_ONCE: usize = 16;

    fn watches(&self, metrics: &Metrics) -> BoxStream<'static, Seen> {
        let client = &self.client;
        select_all([
            watch(client, metrics).map(Seen::Service).boxed(),
            watch(client, metrics).map(Seen::Pod).boxed(),
            watch(client, metrics).map(Seen::Node).boxed(),
            watch(client, metrics).map(Seen::Slice).boxed(),
        ])
        .boxed()
    }

    fn observe(&mut self, event: Seen) -> Vec<Key> {
        match event {
            Seen::Service(event) => self.observe_services(*event),
            Seen::Pod(event) => self.observe_pods(*event),
            Seen::Node(event) => {
                let changes = self.nodes.apply(*event);
                self.services_by_topology(&changes)
            }
            Seen::Slice(event) => {
                let changes = self.slices.apply(*event);
                let versions = changes.iter().flat_map(|change| [&change.old, &change.new]);
                versions.flatten().filter_map(|slice| service_of(slice)).collect()
            }
        }
    }

    fn is_ready(&self) -> bool {
        self.services.is_listed()
            && self.pods.is_listed()
            && self.nodes.is_listed()
            && self.slices.is_listed()
    }

    async fn reconcile(&mut self, key: &Key) -> Result<(), Error> {
        let trigger = self.triggers.take(key);
        let (written, outcome) = self.writer(key).run(self.plan(key, trigger.as_ref())).await;
        self.settle(key, trigger, written, outcome)
    }

    /// All at once: no two Services share a slice, and the apiserver stores what comes together with one sync.
    async fn reconcile_all(&mut self, keys: &[Key]) -> Vec<Result<(), Error>> {
        let triggers: Vec<_> = keys.iter().map(|key| self.triggers.take(key)).collect();
        let planned =
            keys.iter().zip(&triggers).map(|(key, trigger)| (key, self.plan(key, trigger.as_ref())));
        let writes: Vec<_> = planned.map(|(key, plan)| self.writer(key).run(plan)).collect();
        let done = join_all(writes).await;
        let told = keys.iter().zip(triggers).zip(done);
        told.map(|((key, trigger), (written, outcome))| self.settle(key, trigger, written, outcome)).collect()
    }
}

fn is_external_name(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
}

/// The Service whose slice this is, if we manage it.
fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    let managed = labels.get(MANAGED_BY_LABEL).is_some_and(|manager| manager == MANAGED_BY);
    let name = labels.get(SERVICE_LABEL).filter(|_| managed)?;
    Some(Key::new(slice.namespace().unwrap_or_default(), name))
}

fn suffix() -> String {
    let mut random = rand::rng();
    (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}
