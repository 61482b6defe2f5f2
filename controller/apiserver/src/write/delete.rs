//! Delete: at once, or marked and finished later by finalizers, a grace period or the namespace's emptying.
//!
//! Invariant: an object leaves the storage only without finalizers, and a namespace only when it is empty.

use std::sync::PoisonError;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, Pending, Submission, Target, Written};
use crate::admission::Operation;
use crate::object;
use crate::resource::Resource;
use crate::status::{Refusal, Result};

/// `metav1.DeleteOptions`, as far as it has an effect.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeleteOptions {
    grace_period_seconds: Option<i64>,
    propagation_policy: Option<String>,
    preconditions: Preconditions,
    dry_run: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

/// Namespaces the cluster cannot be without.
pub(crate) const PERMANENT_NAMESPACES: [&str; 2] = ["default", "kube-system"];

impl Api {
    /// Returns whether the object is gone, and its last version.
    pub(crate) async fn delete(&self, target: &Target, options: &DeleteOptions) -> Result<(bool, Written)> {
        let (gone, pending) = self.remove(target, options)?;
        Ok((gone, pending.durable(Vec::new()).await?))
    }

    fn remove(&self, target: &Target, options: &DeleteOptions) -> Result<(bool, Pending)> {
        let _lock = self.lock(target.resource);
        let old = self.store.head(&target.key()).ok_or_else(|| target.not_found())?;
        options.preconditions.check(target, &old.value)?;
        let is_namespace = target.resource.plural == "namespaces";
        if is_namespace && PERMANENT_NAMESPACES.contains(&target.name.as_str()) {
            return Err(Refusal::forbidden(
                target.resource,
                &target.name,
                "this namespace may not be deleted",
            ));
        }
        let marked = marked(target.resource, &old.value, options);
        let gone = marked.is_none();
        let pending = self.submit(Submission {
            target,
            operation: if gone { Operation::Delete } else { Operation::Update },
            old: Some(&old),
            new: marked,
            dry_run: !options.dry_run.is_empty(),
        })?;
        Ok((gone, pending))
    }

    /// Removes a terminating namespace if nothing is left in it; false if something is.
    pub(crate) async fn finish_namespace(&self, name: &str) -> Result<bool> {
        let resource = Resource::core("namespaces");
        let target = Target { resource, namespace: String::new(), name: name.to_owned(), status: false };
        let Some(pending) = self.remove_empty_namespace(&target)? else { return Ok(false) };
        pending.durable(Vec::new()).await?;
        Ok(true)
    }

    fn remove_empty_namespace(&self, target: &Target) -> Result<Option<Pending>> {
        let _lock = self.lock(target.resource);
        let _namespaces = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = self.store.head(&target.key()) else { return Ok(None) };
        let held = object::has_finalizers(&old.value) || self.store.namespace_in_use(&target.name);
        if held || !object::is_terminating(&old.value) {
            return Ok(None);
        }
        self.submit(Submission {
            target,
            operation: Operation::Delete,
            old: Some(&old),
            new: None,
            dry_run: false,
        })
        .map(Some)
    }
}

impl DeleteOptions {
    /// This very object, within this time.
    pub(crate) fn of(uid: &str, grace_seconds: i64) -> Self {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        Self { grace_period_seconds: Some(grace_seconds), preconditions, ..Self::default() }
    }

    /// Adds what the query says; the body comes first. Refuses what has no meaning here.
    pub(crate) fn complete(
        &mut self,
        dry_run: bool,
        grace: Option<i64>,
        policy: Option<String>,
    ) -> Result<()> {
        if dry_run {
            self.dry_run = vec!["All".to_owned()];
        }
        self.grace_period_seconds = self.grace_period_seconds.or(grace);
        match self.propagation_policy.clone().or(policy).as_deref() {
            None | Some("Background" | "Foreground") => Ok(()),
            Some("Orphan") => {
                Err(Refusal::bad_request("propagation policy Orphan is not supported by this server"))
            }
            Some(other) => Err(Refusal::bad_request(format!("unknown propagation policy {other:?}"))),
        }
    }
}

impl Preconditions {
    fn check(&self, target: &Target, object: &Value) -> Result<()> {
        for (what, wanted, found) in [
            ("UID", &self.uid, object::uid(object)),
            ("ResourceVersion", &self.resource_version, object::meta(object, "resourceVersion")),
        ] {
            if let Some(wanted) = wanted.as_ref().filter(|wanted| *wanted != found) {
                let why = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been deleted and then recreated"
                );
                return Err(Refusal::conflict(target.resource, &target.name, &why));
            }
        }
        Ok(())
    }
}

/// The object with its marks of deletion; None if nothing holds it and it can go at once.
fn marked(resource: &Resource, old: &Value, options: &DeleteOptions) -> Option<Value> {
    let is_namespace = resource.plural == "namespaces";
    let grace = grace_seconds(resource, old, options.grace_period_seconds);
    if grace == 0 && !is_namespace && !object::has_finalizers(old) {
        return None;
    }
    let mut new = old.clone();
    if is_namespace {
        new["status"]["phase"] = json!("Terminating");
    }
    // Deleting again what is already being deleted changes nothing, unless it shortens the wait.
    let earlier = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    if object::is_terminating(old) && earlier.is_none_or(|earlier| earlier <= grace) {
        return Some(new);
    }
    let at = Timestamp::now().saturating_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
    let metadata = object::metadata(&mut new);
    metadata.insert("deletionTimestamp".to_owned(), json!(object::timestamp(at)));
    metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    Some(new)
}

/// Only a Pod on a node that has not finished is given time to stop.
fn grace_seconds(resource: &Resource, object: &Value, asked: Option<i64>) -> i64 {
    let assigned = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let finished = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if resource.plural != "pods" || !assigned || finished {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    asked.unwrap_or(own).clamp(0, i64::from(u32::MAX))
}
