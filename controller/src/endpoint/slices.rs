//! From the slices there are to the slices there should be, with as few writes as possible: an endpoint stays in the
//! slice it is in; new ones fill slices that change anyway, then one that has room, then new slices.

use std::collections::{BTreeMap, VecDeque};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

use super::desired::{Endpoints, identity};
use super::{Group, HEADLESS_LABEL, MANAGED_BY, MANAGED_BY_LABEL, SERVICE_LABEL, TRIGGER_ANNOTATION, weight};

/// The most endpoints we put into one slice.
pub(super) const LARGEST: usize = 100;

/// The writes that make things right, in the order in which they keep every endpoint visible.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Without names: whoever writes them gives them one.
    pub create: Vec<EndpointSlice>,
    /// Slices that gain endpoints come before those that only lose some.
    pub update: VecDeque<EndpointSlice>,
    pub delete: Vec<EndpointSlice>,
}

/// What to write so that `existing`, the slices we manage for `service`, hold what is desired.
pub fn plan<'a>(
    service: &Service,
    groups: BTreeMap<Group, Endpoints>,
    existing: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Plan {
    let mut by_group: BTreeMap<Group, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in existing {
        by_group.entry(Group::of(slice)).or_default().push(slice);
    }
    let labels = labels(service);
    let mut plan = Plan::default();
    for (group, endpoints) in groups {
        let slices = by_group.remove(&group).unwrap_or_default();
        fill(
            &mut plan,
            service,
            &group,
            endpoints,
            slices.iter().map(|slice| Draft::of(slice, &labels)).collect(),
        );
    }
    plan.delete.extend(by_group.into_values().flatten().cloned());
    plan
}

/// An existing slice on its way to what it should be.
struct Draft<'a> {
    slice: &'a EndpointSlice,
    endpoints: Vec<Endpoint>,
    changed: bool,
    gained: bool,
}

impl<'a> Draft<'a> {
    fn of(slice: &'a EndpointSlice, labels: &BTreeMap<String, String>) -> Self {
        let changed = slice.metadata.labels.as_ref() != Some(labels);
        Self { slice, endpoints: Vec::new(), changed, gained: false }
    }

    /// Takes from `desired` what the slice holds already.
    fn keep(&mut self, desired: &mut Endpoints) {
        for stored in self.slice.endpoints.iter().flatten() {
            match desired.remove(&identity(stored)) {
                Some(endpoint) => {
                    self.changed |= endpoint != *stored;
                    self.endpoints.push(endpoint);
                }
                None => self.changed = true,
            }
        }
    }

    fn room(&self) -> usize {
        LARGEST.saturating_sub(self.endpoints.len())
    }

    fn take(&mut self, desired: &mut Endpoints) {
        for _ in 0..self.room() {
            let Some((_, endpoint)) = desired.pop_first() else { return };
            self.endpoints.push(endpoint);
            (self.changed, self.gained) = (true, true);
        }
    }
}

fn fill(
    plan: &mut Plan,
    service: &Service,
    group: &Group,
    mut desired: Endpoints,
    mut drafts: Vec<Draft<'_>>,
) {
    for draft in &mut drafts {
        draft.keep(&mut desired);
    }
    drafts.iter_mut().filter(|draft| draft.changed).for_each(|draft| draft.take(&mut desired));
    if !desired.is_empty() {
        let fitting = drafts.iter_mut().filter(|draft| draft.room() >= desired.len());
        if let Some(fullest) = fitting.min_by_key(|draft| draft.room()) {
            fullest.take(&mut desired);
        }
    }
    while !desired.is_empty() {
        let rest = if desired.len() > LARGEST { split_off(&mut desired) } else { Endpoints::new() };
        plan.create.push(slice(service, group, desired.into_values().collect(), None));
        desired = rest;
    }
    for draft in drafts.into_iter().filter(|draft| draft.changed || draft.endpoints.is_empty()) {
        if draft.endpoints.is_empty() {
            plan.delete.push(draft.slice.clone());
        } else {
            let updated = slice(service, group, draft.endpoints, Some(draft.slice));
            if draft.gained { plan.update.push_front(updated) } else { plan.update.push_back(updated) }
        }
    }
}

fn split_off(endpoints: &mut Endpoints) -> Endpoints {
    let first = endpoints.keys().nth(LARGEST).cloned();
    first.map(|first| endpoints.split_off(&first)).unwrap_or_default()
}

fn slice(
    service: &Service,
    group: &Group,
    endpoints: Vec<Endpoint>,
    old: Option<&EndpointSlice>,
) -> EndpointSlice {
    let mut metadata = old.map_or_else(|| new_metadata(service), |old| old.metadata.clone());
    metadata.labels = Some(labels(service));
    weight::write(&mut metadata, group.weight);
    EndpointSlice {
        metadata,
        address_type: group.address_type.clone(),
        endpoints: Some(endpoints),
        ports: Some(group.ports()),
    }
}

fn new_metadata(service: &Service) -> ObjectMeta {
    ObjectMeta {
        namespace: service.metadata.namespace.clone(),
        owner_references: Some(vec![owner(service)]),
        ..ObjectMeta::default()
    }
}

/// The Service's own labels and ours.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    labels.insert(SERVICE_LABEL.to_owned(), service.metadata.name.clone().unwrap_or_default());
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels
}

fn owner(service: &Service) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: service.metadata.name.clone().unwrap_or_default(),
        uid: service.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }

    /// Stamps the slices to be written with the time of the change that they tell of. Without one, as after a change of
    /// ports or labels, the stamp of an earlier change is removed.
    pub fn stamp(&mut self, trigger: Option<&Time>) {
        for slice in self.create.iter_mut().chain(&mut self.update) {
            let mut annotations = slice.metadata.annotations.take().unwrap_or_default();
            match trigger {
                Some(time) => annotations.insert(TRIGGER_ANNOTATION.to_owned(), text(time)),
                None => annotations.remove(TRIGGER_ANNOTATION),
            };
            slice.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
        }
    }
}

/// RFC 3339 in UTC to the second.
fn text(time: &Time) -> String {
    time.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
