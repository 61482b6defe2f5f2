//! Create.
//!
//! Invariant: an object that was created has a uid, a creation time and a name, and its namespace exists and is not
//! being deleted.

use std::sync::PoisonError;

use serde_json::{Value, json};
use uuid::Uuid;

use super::prepare::{checked, validated};
use super::{Api, Pending, Submission, Target, WriteOptions, Written, namespace_refusal};
use crate::admission::Operation;
use crate::object;
use crate::resource::{Resource, StatusRule};
use crate::status::{Refusal, Result};

/// How often a generated name that is taken is replaced by another.
const NAME_ATTEMPTS: usize = 8;
/// Letters of generated names: no vowels, so no words; no digits that look like letters.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const NAME_SUFFIX: usize = 5;
const LONGEST_GENERATED_BASE: usize = 58;

impl Api {
    pub(crate) async fn create(
        &self,
        resource: &'static Resource,
        namespace: &str,
        body: Value,
        options: WriteOptions,
    ) -> Result<Written> {
        let mut target =
            Target { resource, namespace: namespace.to_owned(), name: String::new(), status: false };
        let checked = checked(&target, body, options)?;
        let mut object = checked.object;
        target.name = object::name(&object).to_owned();
        if !object::meta(&object, "resourceVersion").is_empty() {
            return Err(Refusal::bad_request("resourceVersion should not be set on objects to be created"));
        }
        begin(resource, &mut object);
        let prefix = object::meta(&object, "generateName").to_owned();
        let generate = target.name.is_empty() && !prefix.is_empty();
        let mut attempt = 0;
        let pending = loop {
            if generate {
                target.name = generated_name(&prefix);
                object["metadata"]["name"] = json!(target.name);
            }
            attempt += 1;
            match self.insert(&target, object.clone(), options) {
                Err(refusal) if generate && refusal.code == 409 && attempt < NAME_ATTEMPTS => {}
                result => break result?,
            }
        };
        pending.durable(checked.warnings).await
    }

    fn insert(&self, target: &Target, mut object: Value, options: WriteOptions) -> Result<Pending> {
        target.resource.set_defaults(&mut object);
        validated(target, &object)?;
        let _lock = self.lock(target.resource);
        let _namespaces = self.namespaces.read().unwrap_or_else(PoisonError::into_inner);
        if target.resource.namespaced
            && let Some(refusal) = namespace_refusal(&*self.store, target)
        {
            return Err(refusal);
        }
        if self.store.head(&target.key()).is_some() {
            return Err(Refusal::already_exists(target.resource, &target.name));
        }
        self.submit(Submission {
            target,
            operation: Operation::Create,
            old: None,
            new: Some(object),
            dry_run: options.dry_run,
        })
    }
}

/// What the server alone decides about a new object.
fn begin(resource: &Resource, object: &mut Value) {
    if resource.status == StatusRule::Separate {
        object::map(object).remove("status");
    }
    let metadata = object::metadata(object);
    for field in
        ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "generation", "selfLink"]
    {
        metadata.remove(field);
    }
    metadata.insert("uid".to_owned(), json!(Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".to_owned(), json!(object::now()));
    if resource.generation {
        metadata.insert("generation".to_owned(), json!(1));
    }
}

fn generated_name(prefix: &str) -> String {
    let random = Uuid::new_v4();
    let suffix = random
        .as_bytes()
        .iter()
        .take(NAME_SUFFIX)
        .map(|byte| char::from(NAME_LETTERS[usize::from(*byte) % NAME_LETTERS.len()]));
    prefix.chars().take(LONGEST_GENERATED_BASE).chain(suffix).collect()
}
