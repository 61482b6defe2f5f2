//! Update and patch, of objects and of their status.
//!
//! Invariant: a write to the object never changes its status and one to the status never changes anything else; a stale
//! `resourceVersion` is refused.

use serde_json::{Value, json};

use super::prepare::{checked, validated};
use super::{Api, Pending, Submission, Target, WriteOptions, Written, modified};
use crate::admission::Operation;
use crate::object;
use crate::patch::{self, Format, PatchError};
use crate::status::{Refusal, Result};
use crate::store::Object;

/// How the new version comes about.
#[derive(Debug)]
pub(crate) enum Change {
    Replace(Value),
    Patch(Format, Value),
}

/// What survives any update: only the server sets it.
const SERVER_SET: [&str; 6] = [
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "generateName",
];

impl Api {
    pub(crate) async fn update(
        &self,
        target: &Target,
        change: Change,
        options: WriteOptions,
    ) -> Result<Written> {
        let (pending, warnings) = self.modify(target, change, options)?;
        pending.durable(warnings).await
    }

    fn modify(
        &self,
        target: &Target,
        change: Change,
        options: WriteOptions,
    ) -> Result<(Pending, Vec<String>)> {
        let _lock = self.lock(target.resource);
        let old = self.store.head(&target.key()).ok_or_else(|| target.not_found())?;
        let checked = checked(target, changed(target, &old, change)?, options)?;
        let mut new = checked.object;
        not_stale(target, &old.value, &new)?;
        carry_over(target, &old.value, &mut new);
        target.resource.set_defaults(&mut new);
        validated(target, &new)?;
        no_new_finalizers(target, &old.value, &new)?;
        if target.resource.generation && differs_in_intent(&old.value, &new) {
            let generation = old.value["metadata"]["generation"].as_i64().unwrap_or(0);
            new["metadata"]["generation"] = json!(generation + 1);
        }
        let gone = object::is_terminating(&new)
            && !object::has_finalizers(&new)
            && new["metadata"]["deletionGracePeriodSeconds"] == 0;
        let pending = self.submit(Submission {
            target,
            operation: if gone { Operation::Delete } else { Operation::Update },
            old: Some(&old),
            new: (!gone).then_some(new),
            dry_run: options.dry_run,
        })?;
        Ok((pending, checked.warnings))
    }
}

/// The version the client wants, in the kind's own form.
fn changed(target: &Target, old: &Object, change: Change) -> Result<Value> {
    let (format, patch) = match change {
        Change::Replace(new) => return Ok(new),
        Change::Patch(format, patch) => (format, patch),
    };
    let shown = target.resource.to_shown(Value::clone(&old.value));
    patch::apply(format, &shown, &patch, target.resource.merge).map_err(|error| match error {
        PatchError::Malformed(why) => Refusal::bad_request(why),
        PatchError::Inapplicable(why) => Refusal::new(
            422,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {why}"),
        )
        .about(target.resource, &target.name),
    })
}

fn not_stale(target: &Target, old: &Value, new: &Value) -> Result<()> {
    let differs = |field: &str| {
        let sent = object::meta(new, field);
        !sent.is_empty() && sent != object::meta(old, field)
    };
    if differs("resourceVersion") {
        return Err(modified(target));
    }
    if differs("uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            object::uid(new),
            object::uid(old)
        );
        return Err(Refusal::conflict(target.resource, &target.name, &why));
    }
    Ok(())
}

fn carry_over(target: &Target, old: &Value, new: &mut Value) {
    if target.status {
        let status = new.get("status").cloned();
        *new = old.clone();
        object::set_or_remove(object::map(new), "status", status.as_ref());
        return;
    }
    let metadata = object::metadata(new);
    for field in SERVER_SET {
        object::set_or_remove(metadata, field, old["metadata"].get(field));
    }
    if target.resource.has_status() {
        object::set_or_remove(object::map(new), "status", old.get("status"));
    }
}

/// What is being deleted may lose finalizers, not gain any.
fn no_new_finalizers(target: &Target, old: &Value, new: &Value) -> Result<()> {
    let finalizers =
        |object: &Value| object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let before = finalizers(old);
    if object::is_terminating(old) && finalizers(new).iter().any(|finalizer| !before.contains(finalizer)) {
        let why =
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted";
        return Err(Refusal::forbidden(target.resource, &target.name, why));
    }
    Ok(())
}

/// Whether anything but metadata and status differs.
fn differs_in_intent(old: &Value, new: &Value) -> bool {
    let intent = |object: &Value| {
        let mut map = object.as_object().cloned().unwrap_or_default();
        map.remove("metadata");
        map.remove("status");
        map
    };
    intent(old) != intent(new)
}
