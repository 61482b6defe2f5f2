//! Type checking by the kinds' own Rust types: JSON in, JSON out with only the fields the type has.
//!
//! `write` calls it on each object a client sends. Invariant: what it returns decodes as the kind's type again.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::Resource;

/// Through a type and back; the error carries the path of the field at fault.
pub(super) type Typed = fn(&Value) -> Result<Value, String>;

/// An object of the right types.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) object: Value,
    /// Paths of the fields the type does not have.
    pub(crate) unknown: Vec<String>,
}

pub(super) fn typed<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, String> {
    let object: T = serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner();
        if path == "." { cause.to_string() } else { format!("{path}: {cause}") }
    })?;
    serde_json::to_value(object).map_err(|error| error.to_string())
}

/// `object` has `apiVersion` and `kind` of the resource already.
pub(crate) fn decode(resource: &Resource, mut object: Value) -> Result<Decoded, String> {
    quantities_to_text(&mut object);
    drop_nulls(&mut object);
    // Nobody may manage fields here yet, and managers' opaque records need no type check.
    object["metadata"].as_object_mut().map(|metadata| metadata.remove("managedFields"));
    let decoded = (resource.typed)(&object)?;
    let mut unknown = Vec::new();
    compare(&object, &decoded, "", &mut unknown);
    Ok(Decoded { object: decoded, unknown })
}

/// `null` means absent everywhere in the API.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Quantities may be sent as numbers (`cpu: 1`); their canonical form is text.
fn quantities_to_text(value: &mut Value) {
    let text = |value: &mut Value| {
        if let Value::Number(number) = value {
            *value = Value::String(number.to_string());
        }
    };
    match value {
        Value::Object(map) => {
            for (field, inner) in map.iter_mut() {
                match field.as_str() {
                    "limits" | "requests" | "capacity" | "allocatable" | "overhead" => {
                        inner.as_object_mut().into_iter().flat_map(|map| map.values_mut()).for_each(text);
                    }
                    "sizeLimit" | "divisor" => text(inner),
                    _ => {}
                }
                quantities_to_text(inner);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(quantities_to_text),
        _ => {}
    }
}

/// Collects the paths that are in `sent` but not in `kept`.
fn compare(sent: &Value, kept: &Value, path: &str, unknown: &mut Vec<String>) {
    match (sent, kept) {
        (Value::Object(sent), Value::Object(kept)) => {
            for (field, value) in sent {
                let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
                match kept.get(field) {
                    Some(kept) => compare(value, kept, &path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(sent), Value::Array(kept)) => {
            for (at, (sent, kept)) in sent.iter().zip(kept).enumerate() {
                compare(sent, kept, &format!("{path}[{at}]"), unknown);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: &Value) -> Result<Decoded, String> {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec});
        decode(Resource::core("pods"), object)
    }

    #[test]
    fn unknown_fields_are_named_and_dropped() {
        let decoded = pod(&json!({"containers": [{"name": "c", "imagee": "x"}], "nope": 1})).unwrap();
        assert_eq!(decoded.unknown, ["spec.containers[0].imagee", "spec.nope"]);
        assert_eq!(decoded.object["spec"], json!({"containers": [{"name": "c"}]}));
    }

    #[test]
    fn wrong_types_are_refused_with_their_path() {
        let error = pod(&json!({"containers": [{"name": 7}]})).unwrap_err();
        assert!(error.starts_with("spec.containers[0].name: invalid type"), "{error}");
    }

    #[test]
    fn numbers_as_quantities_and_nulls_are_understood() {
        let limits = json!({"limits": {"cpu": 1, "memory": "1Gi"}});
        let decoded =
            pod(&json!({"containers": [{"name": "c", "image": null, "resources": limits}]})).unwrap();
        assert!(decoded.unknown.is_empty(), "{:?}", decoded.unknown);
        assert_eq!(decoded.object["spec"]["containers"][0]["resources"]["limits"]["cpu"], "1");
    }
}
