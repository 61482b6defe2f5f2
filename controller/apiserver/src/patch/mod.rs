//! The three patch formats, as pure functions on JSON values.
//!
//! `write::patch` calls `apply`. Invariant: a patch either applies as a whole or changes nothing.

mod json;
mod merge;
mod strategic;

use serde_json::Value;

pub(crate) use strategic::{ListMerge, MergeRules};

/// Why a patch cannot be applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PatchError {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    /// It does not fit this object.
    #[error("{0}")]
    Inapplicable(String),
}

/// The formats, by media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Merge,
    Strategic,
}

impl Format {
    pub(crate) const MEDIA_TYPES: &str =
        "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";

    pub(crate) fn of(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// The patched object.
pub(crate) fn apply(
    format: Format,
    original: &Value,
    patch: &Value,
    rules: MergeRules,
) -> Result<Value, PatchError> {
    if format != Format::Json && !patch.is_object() {
        return Err(PatchError::Malformed("the patch is not a JSON object".to_owned()));
    }
    match format {
        Format::Json => json::apply(original, patch),
        Format::Merge => Ok(merge::apply(original, patch)),
        Format::Strategic => strategic::apply(original, patch, rules),
    }
}
