//! The write path: every create, update, patch and delete, of clients and of the server itself.
//!
//! Called by `http::dispatch` and `collector`. Invariant: writes of one kind are ordered by that kind's lock from reading
//! the old version to submitting the new one; waiting for the disk happens outside of it, so commits group.

mod create;
mod delete;
mod prepare;
mod update;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde_json::Value;

use crate::admission::{Admission, AdmissionRequest, Operation};
use crate::object;
use crate::resource::{RESOURCES, Resource};
use crate::status::{Refusal, Result};
use crate::store::{Durable, Key, Object, Store, StoreError};

pub(crate) use delete::{DeleteOptions, PERMANENT_NAMESPACES};
pub(crate) use update::Change;

/// What to do about fields the kind does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WriteOptions {
    pub(crate) dry_run: bool,
    pub(crate) validation: FieldValidation,
}

/// The object a request is about.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) resource: &'static Resource,
    /// Empty for cluster-scoped kinds.
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) status: bool,
}

/// What became of a write, in the form it is stored.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) object: Arc<Value>,
    pub(crate) warnings: Vec<String>,
}

/// The write path and what it needs.
pub(crate) struct Api {
    pub(crate) store: Arc<dyn Store>,
    admission: Arc<dyn Admission>,
    /// One per row of the table; aliases use that of the stored kind.
    locks: Vec<Mutex<()>>,
    /// Held shared from looking at a namespace to putting something into it, and exclusively to remove a namespace.
    namespaces: RwLock<()>,
}

/// One change, decided: what `Api::submit` needs.
struct Submission<'a> {
    target: &'a Target,
    operation: Operation,
    old: Option<&'a Object>,
    new: Option<Value>,
    dry_run: bool,
}

/// A write that is ordered but perhaps not durable.
struct Pending {
    object: Arc<Value>,
    wait: Option<Durable>,
    warnings: Vec<String>,
}

impl Target {
    pub(crate) fn key(&self) -> Key {
        Key::new(&self.resource.bucket(), &self.namespace, &self.name)
    }

    fn not_found(&self) -> Refusal {
        Refusal::not_found(self.resource, &self.name)
    }
}

impl Api {
    pub(crate) fn new(store: Arc<dyn Store>, admission: Arc<dyn Admission>) -> Self {
        let locks = RESOURCES.iter().map(|_| Mutex::new(())).collect();
        Self { store, admission, locks, namespaces: RwLock::new(()) }
    }

    // The lock guards no data of its own: a panic under it leaves nothing broken.
    fn lock(&self, resource: &Resource) -> MutexGuard<'_, ()> {
        let row = RESOURCES.iter().position(|row| row.bucket() == resource.bucket());
        let row = row.expect("every resource comes from the table");
        self.locks[row].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admission, then storage. The caller holds the kind's lock.
    fn submit(&self, submission: Submission<'_>) -> Result<Pending> {
        let Submission { target, operation, old, mut new, dry_run } = submission;
        let request = AdmissionRequest {
            group: target.resource.group,
            version: target.resource.version,
            resource: target.resource.plural,
            namespace: target.resource.namespaced.then_some(target.namespace.as_str()),
            name: &target.name,
            operation,
            subresource: target.status.then_some("status"),
            old: old.map(|old| &*old.value),
            dry_run,
        };
        self.admission
            .admit(&request, new.as_mut())
            .map_err(|rejection| Refusal::rejected(target.resource, &target.name, &rejection))?;
        let warnings = self.admission.warnings(&request);
        let unchanged = old.filter(|old| new.as_ref().is_some_and(|new| same(new, &old.value)));
        if let Some(old) = unchanged {
            self.admission.rolled_back(&request, new.as_ref());
            return Ok(Pending { object: Arc::clone(&old.value), wait: None, warnings });
        }
        if dry_run {
            self.admission.rolled_back(&request, new.as_ref());
            let object =
                new.map_or_else(|| old.map(|old| Arc::clone(&old.value)).unwrap_or_default(), Arc::new);
            return Ok(Pending { object, wait: None, warnings });
        }
        let kept = new.clone();
        match self.store.write(target.key(), old.map(|old| old.revision), new) {
            Ok((object, durable)) => Ok(Pending { object: object.value, wait: Some(durable), warnings }),
            Err(error) => {
                self.admission.rolled_back(&request, kept.as_ref());
                Err(match error {
                    StoreError::Conflict { .. } => modified(target),
                    other => Refusal::storage(&other),
                })
            }
        }
    }
}

impl Pending {
    /// Resolves once the write would survive a crash. `warnings` are those of its body.
    async fn durable(self, mut warnings: Vec<String>) -> Result<Written> {
        if let Some(wait) = self.wait {
            // After a failed commit the storage takes no more writes and the process is to be restarted, which
            // rebuilds all allocations from what is stored: there is nothing to roll back.
            wait.await.map_err(|error| Refusal::storage(&error))?;
        }
        warnings.extend(self.warnings);
        Ok(Written { object: self.object, warnings })
    }
}

fn modified(target: &Target) -> Refusal {
    let why = "the object has been modified; please apply your changes to the latest version and try again";
    Refusal::conflict(target.resource, &target.name, why)
}

/// Equal but for the revision.
fn same(left: &Value, right: &Value) -> bool {
    let fields = |value: &Value| value.as_object().map_or(0, serde_json::Map::len);
    fields(left) == fields(right)
        && left.as_object().into_iter().flatten().all(|(field, value)| {
            if field == "metadata" {
                let mut with_revision = value.clone();
                with_revision["resourceVersion"] = right["metadata"]["resourceVersion"].clone();
                with_revision == right["metadata"]
            } else {
                right.get(field) == Some(value)
            }
        })
}

/// Why nothing may be created in this namespace, if so. The caller holds `namespaces`.
fn namespace_refusal(store: &dyn Store, target: &Target) -> Option<Refusal> {
    let namespaces = Resource::core("namespaces");
    let Some(namespace) = store.head(&Key::new(&namespaces.bucket(), "", &target.namespace)) else {
        return Some(Refusal::not_found(namespaces, &target.namespace));
    };
    object::is_terminating(&namespace.value).then(|| {
        let message = format!("namespace {} is being terminated", target.namespace);
        let why = format!(
            "unable to create new content in namespace {} because it is being terminated",
            target.namespace
        );
        let cause = crate::admission::Cause {
            reason: "NamespaceTerminating".to_owned(),
            message,
            field: "metadata.namespace".to_owned(),
        };
        Refusal::forbidden(target.resource, &target.name, &why).with_causes(&[cause])
    })
}
