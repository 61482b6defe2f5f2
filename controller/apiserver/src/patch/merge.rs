//! JSON merge patch (RFC 7386).
//!
//! Invariant: null removes, objects merge, everything else replaces.

use serde_json::Value;

pub(super) fn apply(original: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut result = original.as_object().cloned().unwrap_or_default();
    for (field, change) in patch {
        if change.is_null() {
            result.remove(field);
        } else {
            let merged = apply(result.get(field).unwrap_or(&Value::Null), change);
            result.insert(field.clone(), merged);
        }
    }
    Value::Object(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn examples_of_the_rfc() {
        for (original, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"a": "b"}), json!(["c"]), json!(["c"])),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            assert_eq!(apply(&original, &patch), result, "{original} + {patch}");
        }
    }
}
