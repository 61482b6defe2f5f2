//! Which changes a Service's slices are still to tell of, and when they happened (S53). Owned by the EndpointSlice
//! reconciler, which reports what its watches see. A change counts once, and only if it was seen to happen: what a first
//! list shows may be of any age.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::SignedDuration;

use super::pod;
use crate::reconcile::cache::{Change, Key};

/// The latest change of each Service that no slice tells of yet.
#[derive(Debug, Default)]
pub struct Triggers(BTreeMap<Key, Time>);

impl Triggers {
    /// Two changes at once are told as the later one.
    pub fn put(&mut self, service: Key, time: Time) {
        let latest = self.0.entry(service).or_insert_with(|| time.clone());
        if *latest < time {
            *latest = time;
        }
    }

    /// What the slices that are written now tell of.
    pub fn take(&mut self, service: &Key) -> Option<Time> {
        self.0.remove(service)
    }
}

/// When the Pod's readiness changed or its end was asked for, if that is what changed.
pub fn of_pod(change: &Change<Pod>) -> Option<Time> {
    let now = change.new.as_deref().and_then(moment)?;
    let before = change.old.as_deref().and_then(moment);
    (before.as_ref() != Some(&now)).then_some(now)
}

/// When the Service was created, if that is what changed.
pub fn of_service(change: &Change<Service>) -> Option<Time> {
    let new = change.new.as_deref()?;
    let before = change.old.as_deref().and_then(|old| old.metadata.uid.as_ref());
    if before.is_some() && before == new.metadata.uid.as_ref() {
        return None;
    }
    new.metadata.creation_timestamp.clone()
}

fn moment(pod: &Pod) -> Option<Time> {
    deletion_asked(pod).or_else(|| pod::ready_since(pod).cloned())
}

/// The API has the time at which the Pod must have ended: its grace period later than the change.
fn deletion_asked(pod: &Pod) -> Option<Time> {
    let deadline = pod.metadata.deletion_timestamp.as_ref()?;
    let grace = SignedDuration::from_secs(pod.metadata.deletion_grace_period_seconds.unwrap_or(0));
    deadline.0.checked_sub(grace).ok().map(Time)
}
