//! Get and list: consistent reads of one revision, in pages where the client asks for them.
//!
//! Called by `http::dispatch`. Invariant: all pages of a list show the same revision; when that has left the history the
//! next page is refused with 410.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::status::{Refusal, Result};
use crate::store::{Key, Store};

/// What to list, and how much of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ListOptions {
    /// None: all namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
    pub(crate) limit: Option<usize>,
    pub(crate) continue_token: Option<String>,
    pub(crate) revision: Option<u64>,
    /// `resourceVersionMatch=Exact`.
    pub(crate) exact: bool,
}

/// One page, in the kind's own form.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) revision: u64,
    pub(crate) objects: Vec<Arc<Value>>,
    pub(crate) continue_token: Option<String>,
    pub(crate) remaining: usize,
}

/// Where the next page begins.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    revision: u64,
    namespace: String,
    name: String,
}

pub(crate) fn get(store: &dyn Store, resource: &Resource, namespace: &str, name: &str) -> Result<Arc<Value>> {
    let found = store.get(&Key::new(&resource.bucket(), namespace, name));
    found.map(|found| shown(resource, found.value)).ok_or_else(|| Refusal::not_found(resource, name))
}

pub(crate) fn list(store: &dyn Store, resource: &Resource, options: &ListOptions) -> Result<Page> {
    let from = options.continue_token.as_deref().map(decode).transpose()?;
    let at = match &from {
        Some(from) => Some(from.revision),
        None => options.revision.filter(|_| options.exact),
    };
    let newest = *store.follow().borrow();
    if let Some(asked) = options.revision.filter(|asked| *asked > newest) {
        return Err(Refusal::storage(&crate::store::StoreError::Future { asked, newest }));
    }
    let listing = store.list(&resource.bucket(), options.namespace.as_deref(), at).map_err(|error| {
        let refusal = Refusal::storage(&error);
        if from.is_some() && refusal.code == 410 {
            return Refusal::expired(
                "The provided continue parameter is too old to display a consistent list result. \
                 You must start a new list without the continue parameter.",
            );
        }
        refusal
    })?;
    let after = |object: &Value| {
        from.as_ref().is_none_or(|from| {
            (object::namespace(object), object::name(object)) > (from.namespace.as_str(), from.name.as_str())
        })
    };
    let mut objects: Vec<_> = listing
        .objects
        .into_iter()
        .map(|object| shown(resource, object.value))
        .filter(|object| after(object) && options.selector.matches(object))
        .collect();
    let limit = options.limit.unwrap_or(usize::MAX);
    let remaining = objects.len().saturating_sub(limit);
    objects.truncate(limit);
    let continue_token = objects.last().filter(|_| remaining > 0).map(|last| encode(listing.revision, last));
    Ok(Page { revision: listing.revision, objects, continue_token, remaining })
}

/// The stored object as the kind that was asked for shows it.
pub(crate) fn shown(resource: &Resource, stored: Arc<Value>) -> Arc<Value> {
    if resource.is_alias() { Arc::new(resource.to_shown(Value::clone(&stored))) } else { stored }
}

fn encode(revision: u64, last: &Value) -> String {
    let token = Continue {
        revision,
        namespace: object::namespace(last).to_owned(),
        name: object::name(last).to_owned(),
    };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("three plain fields are serialisable"))
}

fn decode(token: &str) -> Result<Continue> {
    URL_SAFE_NO_PAD
        .decode(token)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or_else(|| Refusal::bad_request("continue key is not valid"))
}
