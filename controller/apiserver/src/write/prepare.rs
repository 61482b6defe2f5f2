//! From what a client sent to an object worth storing: kind, types, unknown fields, defaults, validation.
//!
//! `create` and `update` call it. Invariant: what `checked` returns has the right types, is in stored form, and is named
//! as the request says.

use serde_json::Value;

use super::{FieldValidation, Target, WriteOptions};
use crate::object;
use crate::resource::{Resource, decode};
use crate::status::{Refusal, Result};

/// An object of the right types, with what the client should be warned about.
pub(super) struct Checked {
    pub(super) object: Value,
    pub(super) warnings: Vec<String>,
}

/// Types and identity; no defaults and no validation yet.
pub(super) fn checked(target: &Target, mut body: Value, options: WriteOptions) -> Result<Checked> {
    let resource = target.resource;
    if !body.is_object() {
        return Err(Refusal::bad_request("the body of the request is not a JSON object"));
    }
    same_kind(resource, &body)?;
    resource.stamp(&mut body);
    same_identity(target, &mut body)?;
    let decoded = decode(resource, body).map_err(|error| {
        let (version, kind) = (resource.version, resource.kind);
        Refusal::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {error}"))
    })?;
    let unknown = decoded.unknown.iter().map(|path| format!("unknown field {path:?}")).collect::<Vec<_>>();
    let warnings = match options.validation {
        FieldValidation::Strict if !unknown.is_empty() => {
            let message = format!("strict decoding error: {}", unknown.join(", "));
            return Err(Refusal::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: {message}",
                resource.kind, resource.version, resource.kind
            )));
        }
        FieldValidation::Warn => unknown,
        FieldValidation::Strict | FieldValidation::Ignore => Vec::new(),
    };
    Ok(Checked { object: resource.to_stored(decoded.object), warnings })
}

/// Refuses what the generic rules find at fault.
pub(super) fn validated(target: &Target, object: &Value) -> Result<()> {
    let faults = target.resource.faults(object);
    if faults.is_empty() { Ok(()) } else { Err(Refusal::invalid(target.resource, &target.name, &faults)) }
}

fn same_kind(resource: &Resource, body: &Value) -> Result<()> {
    let expected = (resource.api_version(), resource.kind);
    let sent = |field: &str, default: &str| {
        body[field].as_str().filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
    };
    let (version, kind) = (sent("apiVersion", &expected.0), sent("kind", expected.1));
    if version == expected.0 && kind == expected.1 {
        return Ok(());
    }
    Err(Refusal::bad_request(format!(
        "the object provided is a {kind} in {version:?}, but this path expects a {} in {:?}",
        expected.1, expected.0
    )))
}

fn same_identity(target: &Target, body: &mut Value) -> Result<()> {
    let (namespace, name) = (object::namespace(body), object::name(body));
    if target.resource.namespaced && !namespace.is_empty() && namespace != target.namespace {
        return Err(Refusal::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if !target.name.is_empty() && !name.is_empty() && name != target.name {
        return Err(Refusal::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    let metadata = object::metadata(body);
    if target.resource.namespaced {
        metadata.insert("namespace".to_owned(), Value::String(target.namespace.clone()));
    } else {
        metadata.remove("namespace");
    }
    if !target.name.is_empty() {
        metadata.insert("name".to_owned(), Value::String(target.name.clone()));
    }
    Ok(())
}
