//! Which objects a list, watch or deletecollection means: label and field selectors.
//!
//! Parsed by `http::query`, applied by `read` and `write`. Invariant: an object that matches no selector given is never
//! shown; an unparsable selector is a 400, never "everything".

mod field;
mod label;

use serde_json::Value;

pub(crate) use field::FieldSelector;
pub(crate) use label::LabelSelector;

/// Both selectors of a request; empty ones match everything.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selector {
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Selector {
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.matches(object) && self.fields.matches(object)
    }
}
