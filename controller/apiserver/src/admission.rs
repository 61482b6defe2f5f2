//! The extension point: what a cluster knows beyond the generic rules of the API (allocations, kind-specific checks).
//!
//! Called by `write` for every create, update and delete. Invariant: for each `admit` that returned `Ok`, either the
//! object reached the storage or `rolled_back` is called with the same request, once.

use serde_json::Value;

/// A hook in the write path, after defaulting and validation of the generic parts, before storage. Serialised per
/// resource kind.
pub trait Admission: Send + Sync {
    /// `old` is None on create; on delete, `new` is None. Mutate `new` in place (e.g. allocate a clusterIP) or reject.
    fn admit(&self, request: &AdmissionRequest<'_>, new: Option<&mut Value>) -> Result<(), Rejection>;

    /// The write did not reach storage (conflict, dry run, storage error): give back what `admit` allocated.
    fn rolled_back(&self, request: &AdmissionRequest<'_>, new: Option<&Value>);

    /// What the client should know about an object that it wrote, or would have: one `Warning` header each (KEP-1693,
    /// RFC 9110 §5.5).
    fn warnings(&self, _request: &AdmissionRequest<'_>) -> Vec<String> {
        Vec::new()
    }
}

/// One write, as `Admission` sees it.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionRequest<'a> {
    /// API group, empty for the core group.
    pub group: &'a str,
    /// API version, e.g. `v1`.
    pub version: &'a str,
    /// Plural resource name, e.g. `services`.
    pub resource: &'a str,
    /// None for cluster-scoped objects.
    pub namespace: Option<&'a str>,
    /// Name of the object, already generated where the client asked for `generateName`.
    pub name: &'a str,
    /// What the client does.
    pub operation: Operation,
    /// E.g. `status`; None for the object itself.
    pub subresource: Option<&'a str>,
    /// The stored object; None on create.
    pub old: Option<&'a Value>,
    /// Nothing will be stored.
    pub dry_run: bool,
}

/// The kinds of write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// Update or patch of an object or of a subresource.
    Update,
    /// The object leaves the storage.
    Delete,
}

/// Why a write is refused; becomes a `Status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// HTTP status code, e.g. 422.
    pub code: u16,
    /// Kubernetes' `Status.reason`, e.g. `Invalid`.
    pub reason: &'static str,
    /// What a person reads.
    pub message: String,
    /// The fields at fault.
    pub causes: Vec<Cause>,
}

/// One field at fault; `Status.details.causes[]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// E.g. `FieldValueInvalid`.
    pub reason: String,
    /// What is wrong with it.
    pub message: String,
    /// Path in the object, e.g. `spec.ports[0].port`.
    pub field: String,
}

/// Admits everything unchanged.
#[derive(Debug, Clone, Copy, Default)]
pub struct AdmitAll;

impl Admission for AdmitAll {
    fn admit(&self, _: &AdmissionRequest<'_>, _: Option<&mut Value>) -> Result<(), Rejection> {
        Ok(())
    }

    fn rolled_back(&self, _: &AdmissionRequest<'_>, _: Option<&Value>) {}
}
