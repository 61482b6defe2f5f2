//! The kinds the server knows, each one row of a table; everything else in this crate is the same for all kinds.
//!
//! Read by every module. Invariant: a kind is added by one row in `table` (plus its columns), and no other module names
//! a kind, save `namespace` and `collector` for the two the API itself gives a life cycle.

mod columns;
mod decode;
mod defaults;
mod event;
mod name;
mod table;
mod validate;

use serde_json::Value;

use crate::admission::Cause;
use crate::patch::MergeRules;

pub(crate) use columns::Column;
pub(crate) use decode::decode;
pub(crate) use name::{NameRule, check_metadata};
pub(crate) use table::RESOURCES;

/// One kind in one version.
pub(crate) struct Resource {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) short_names: &'static [&'static str],
    pub(crate) categories: &'static [&'static str],
    pub(crate) namespaced: bool,
    pub(crate) status: StatusRule,
    /// Counts changes outside metadata and status in `metadata.generation`.
    pub(crate) generation: bool,
    pub(crate) name: NameRule,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`.
    pub(crate) fields: &'static [&'static str],
    pub(crate) merge: MergeRules,
    pub(crate) columns: &'static [Column],
    /// Fields that must be there, as dotted paths; `[]` goes through a list.
    pub(crate) required: &'static [&'static str],
    /// Checks types by going through the kind's own Rust type; unknown fields are gone from what it returns.
    typed: decode::Typed,
    default: fn(&mut Value),
    /// Where the kind is another face of a stored kind.
    alias: Option<&'static Alias>,
}

/// Whether a kind has a status of its own, written only through the `status` subresource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusRule {
    Absent,
    Separate,
    /// A new object may bring its status along: Nodes register with theirs.
    SeparateOnceCreated,
}

/// A kind that is stored as another one, with some fields named differently.
pub(crate) struct Alias {
    bucket: &'static str,
    to_stored: fn(Value) -> Value,
    from_stored: fn(Value) -> Value,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.qualified())
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Resource {}

impl Resource {
    pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
    }

    /// The kind as stored, for the server's own use.
    pub(crate) fn core(plural: &str) -> &'static Self {
        Self::find("", "v1", plural).expect("the table has the core kinds the server itself uses")
    }

    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    pub(crate) fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// As messages name it: `pods`, `networkpolicies.networking.k8s.io`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    pub(crate) fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// Where its objects are stored.
    pub(crate) fn bucket(&self) -> String {
        self.alias.map_or_else(|| format!("{}/{}", self.group, self.plural), |alias| alias.bucket.to_owned())
    }

    pub(crate) fn has_status(&self) -> bool {
        self.status != StatusRule::Absent
    }

    /// Stored as another kind, so not what `Store` returns as it is.
    pub(crate) fn is_alias(&self) -> bool {
        self.alias.is_some()
    }

    /// Sets `apiVersion` and `kind`, and renames what the stored kind names otherwise.
    pub(crate) fn to_shown(&self, mut object: Value) -> Value {
        if let Some(alias) = self.alias {
            object = (alias.from_stored)(object);
        }
        self.stamp(&mut object);
        object
    }

    pub(crate) fn to_stored(&self, object: Value) -> Value {
        match self.alias {
            Some(alias) => (alias.to_stored)(object),
            None => object,
        }
    }

    pub(crate) fn stamp(&self, object: &mut Value) {
        object["apiVersion"] = Value::String(self.api_version());
        object["kind"] = Value::String(self.kind.to_owned());
    }

    pub(crate) fn set_defaults(&self, object: &mut Value) {
        (self.default)(object);
    }

    /// The faults the generic rules find.
    pub(crate) fn faults(&self, object: &Value) -> Vec<Cause> {
        let mut faults = check_metadata(self, object);
        for path in self.required {
            validate::required_at(object, path, &mut faults);
        }
        faults
    }
}
