//! What is wrong with an object. The smallest possible part of it is skipped, if any, and everything else keeps working.

use std::fmt;
use std::sync::Arc;

/// Something that an operator should know, and why: the agent makes a metric and an event of it. A part that is malformed,
/// unusable or a duplicate is skipped; of others the detail says what is so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object at fault.
    pub object: ObjectRef,
    /// What kind of fault.
    pub reason: Reason,
    /// Which part of the object, and its value.
    pub detail: String,
}

impl Problem {
    /// A problem of an object.
    pub fn new(object: ObjectRef, reason: Reason, detail: impl Into<String>) -> Self {
        Self { object, reason, detail: detail.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.reason.label(), self.detail)
    }
}

/// An object of the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind, as the API spells it.
    pub kind: &'static str,
    /// Its namespace; empty for cluster-wide kinds.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl ObjectRef {
    /// A namespaced object.
    pub fn new(kind: &'static str, name: &crate::ObjectName) -> Self {
        Self { kind, namespace: Arc::clone(&name.namespace), name: Arc::clone(&name.name) }
    }

    /// A cluster-wide object.
    pub fn cluster(kind: &'static str, name: impl AsRef<str>) -> Self {
        Self { kind, namespace: "".into(), name: name.as_ref().into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.namespace {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// Kinds of faults; few, because they are a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Text that is no address, prefix, port or protocol.
    Malformed,
    /// An address that no endpoint or node can have.
    UnusableAddress,
    /// The same thing twice in one object.
    Duplicate,
    /// Two objects claim the same thing; the older name in the alphabet keeps it.
    Conflict,
    /// Something the data plane does not do.
    Unsupported,
    /// Something is missing that is needed.
    Missing,
    /// A kernel table has no room for it.
    Capacity,
}

impl Reason {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::Malformed,
        Self::UnusableAddress,
        Self::Duplicate,
        Self::Conflict,
        Self::Unsupported,
        Self::Missing,
        Self::Capacity,
    ];

    /// The name in metrics and events.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::UnusableAddress => "unusable_address",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::Unsupported => "unsupported",
            Self::Missing => "missing",
            Self::Capacity => "capacity",
        }
    }
}
