//! What happens after a delete: namespaces are emptied, dependents follow their owners, overdue Pods go.
//!
//! One task, started by `Server::start`. Invariant: it decides from the stored state alone and goes through the ordinary
//! write path, so it can be stopped and started at any point.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::object;
use crate::resource::{RESOURCES, Resource};
use crate::status::Result;
use crate::store::Listing;
use crate::write::{Api, DeleteOptions, Target};

/// How long to let changes gather, and the longest wait for one: overdue Pods are found by the clock.
const SETTLE: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

pub(crate) async fn run(api: Arc<Api>, stop: CancellationToken) {
    let mut newest = api.store.follow();
    let mut swept = None;
    loop {
        newest.mark_unchanged();
        if let Err(refusal) = sweep(&api, &mut swept).await {
            tracing::warn!(error = %refusal, "clean-up after deletions is incomplete; it is tried again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LONGEST_WAIT) => {}
            changed = newest.changed() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(SETTLE).await;
            }
        }
    }
}

/// `swept` is the revision at which there were no dependents without owners.
async fn sweep(api: &Api, swept: &mut Option<u64>) -> Result<()> {
    expire_pods(api).await?;
    let newest = *api.store.follow().borrow();
    if *swept == Some(newest) {
        return Ok(());
    }
    empty_namespaces(api).await?;
    if may_have_orphans(api, *swept) {
        collect_dependents(api).await?;
    }
    *swept = Some(newest);
    Ok(())
}

async fn empty_namespaces(api: &Api) -> Result<()> {
    let namespaces = newest(api, Resource::core("namespaces"), None)?;
    for namespace in namespaces.objects.iter().filter(|namespace| object::is_terminating(&namespace.value)) {
        let name = object::name(&namespace.value);
        for resource in stored_kinds().filter(|resource| resource.namespaced) {
            for object in newest(api, resource, Some(name))?.objects {
                if !object::is_terminating(&object.value) || !object::has_finalizers(&object.value) {
                    delete(api, resource, &object.value).await?;
                }
            }
        }
        api.finish_namespace(name).await?;
    }
    Ok(())
}

/// Deletes what names owners none of which exists any more.
async fn collect_dependents(api: &Api) -> Result<()> {
    let mut dependents = Vec::new();
    for resource in stored_kinds() {
        let objects = newest(api, resource, None)?.objects.into_iter();
        dependents.extend(objects.filter(|o| !owners(&o.value).is_empty()).map(|object| (resource, object)));
    }
    // After the dependents: an owner exists before what names it.
    let mut living = HashSet::new();
    for resource in stored_kinds() {
        living.extend(newest(api, resource, None)?.objects.iter().map(|o| object::uid(&o.value).to_owned()));
    }
    for (resource, object) in dependents {
        // Owners of kinds that are not served here cannot be judged.
        let orphaned = owners(&object.value)
            .iter()
            .all(|owner| is_served(owner) && owner["uid"].as_str().is_some_and(|uid| !living.contains(uid)));
        if orphaned && !object::is_terminating(&object.value) {
            delete(api, resource, &object.value).await?;
        }
    }
    Ok(())
}

/// Whether an owner may have gone, or a dependent come, since this revision.
fn may_have_orphans(api: &Api, since: Option<u64>) -> bool {
    let Some(since) = since else { return true };
    stored_kinds().any(|resource| {
        api.store.changes(&resource.bucket(), since).map_or(true, |changes| {
            changes.events.iter().any(|event| match &event.new {
                None => true,
                Some(new) => event.old.is_none() && !owners(&new.value).is_empty(),
            })
        })
    })
}

/// No kubelet need be there: a Pod whose time to stop is over goes.
async fn expire_pods(api: &Api) -> Result<()> {
    let pods = Resource::core("pods");
    for pod in newest(api, pods, None)?.objects {
        let deadline = object::meta(&pod.value, "deletionTimestamp").parse::<Timestamp>();
        let overdue =
            deadline.is_ok_and(|deadline| deadline.duration_until(Timestamp::now()) > SignedDuration::ZERO);
        if overdue && !object::has_finalizers(&pod.value) {
            delete(api, pods, &pod.value).await?;
        }
    }
    Ok(())
}

async fn delete(api: &Api, resource: &'static Resource, object: &Value) -> Result<()> {
    let target = Target {
        resource,
        namespace: object::namespace(object).to_owned(),
        name: object::name(object).to_owned(),
        status: false,
    };
    let options = DeleteOptions::of(object::uid(object), 0);
    match api.delete(&target, &options).await {
        // Someone else was faster.
        Err(refusal) if matches!(refusal.code, 404 | 409) => Ok(()),
        result => result.map(drop),
    }
}

fn newest(api: &Api, resource: &Resource, namespace: Option<&str>) -> Result<Listing> {
    api.store
        .list(&resource.bucket(), namespace, None)
        .map_err(|error| crate::status::Refusal::storage(&error))
}

fn stored_kinds() -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(|resource| !resource.is_alias())
}

fn owners(object: &Value) -> &[Value] {
    object["metadata"]["ownerReferences"].as_array().map_or(&[], Vec::as_slice)
}

fn is_served(owner: &Value) -> bool {
    RESOURCES.iter().any(|resource| {
        owner["kind"] == resource.kind
            && owner["apiVersion"].as_str() == Some(resource.api_version().as_str())
    })
}
