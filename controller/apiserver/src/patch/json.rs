//! JSON patch (RFC 6902).
//!
//! Invariant: operations apply in order, all or none; a failed `test` refuses the patch.

use serde::Deserialize;
use serde_json::Value;

use super::PatchError;

/// More operations than this are refused, as kube-apiserver does.
const MOST_OPERATIONS: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Operation {
    Add { path: String, value: Value },
    Remove { path: String },
    Replace { path: String, value: Value },
    Move { from: String, path: String },
    Copy { from: String, path: String },
    Test { path: String, value: Value },
}

pub(super) fn apply(original: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = Vec::<Operation>::deserialize(patch)
        .map_err(|error| PatchError::Malformed(format!("cannot decode the JSON patch: {error}")))?;
    if operations.len() > MOST_OPERATIONS {
        return Err(PatchError::Malformed(format!(
            "the JSON patch has more than {MOST_OPERATIONS} operations"
        )));
    }
    let mut result = original.clone();
    for operation in operations {
        step(&mut result, operation)?;
    }
    Ok(result)
}

fn step(document: &mut Value, operation: Operation) -> Result<(), PatchError> {
    match operation {
        Operation::Add { path, value } => add(document, &path, value),
        Operation::Remove { path } => remove(document, &path).map(drop),
        Operation::Replace { path, value } => {
            *document.pointer_mut(&path).ok_or_else(|| missing(&path))? = value;
            Ok(())
        }
        Operation::Move { from, path } => {
            let value = remove(document, &from)?;
            add(document, &path, value)
        }
        Operation::Copy { from, path } => {
            let value = document.pointer(&from).ok_or_else(|| missing(&from))?.clone();
            add(document, &path, value)
        }
        Operation::Test { path, value } => match document.pointer(&path) {
            Some(found) if *found == value => Ok(()),
            _ => Err(PatchError::Inapplicable(format!("testing value {path} failed"))),
        },
    }
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), PatchError> {
    let Some((parent, token)) = locate(document, path)? else {
        *document = value;
        return Ok(());
    };
    match parent {
        Value::Object(map) => {
            map.insert(token, value);
        }
        Value::Array(list) => {
            let at = if token == "-" { Some(list.len()) } else { index(&token) };
            let at = at.filter(|at| *at <= list.len()).ok_or_else(|| missing(path))?;
            list.insert(at, value);
        }
        _ => return Err(missing(path)),
    }
    Ok(())
}

fn remove(document: &mut Value, path: &str) -> Result<Value, PatchError> {
    let Some((parent, token)) = locate(document, path)? else { return Ok(document.take()) };
    let removed = match parent {
        Value::Object(map) => map.remove(&token),
        Value::Array(list) => index(&token).filter(|at| *at < list.len()).map(|at| list.remove(at)),
        _ => None,
    };
    removed.ok_or_else(|| missing(path))
}

/// The container a path ends in, and the last token; None for the whole document.
fn locate<'a>(document: &'a mut Value, path: &str) -> Result<Option<(&'a mut Value, String)>, PatchError> {
    if path.is_empty() {
        return Ok(None);
    }
    let (parent, token) = path.rsplit_once('/').ok_or_else(|| missing(path))?;
    let parent = document.pointer_mut(parent).ok_or_else(|| missing(path))?;
    Ok(Some((parent, token.replace("~1", "/").replace("~0", "~"))))
}

/// Decimal without leading zeros, as RFC 6901 demands.
fn index(token: &str) -> Option<usize> {
    let canonical = token == "0" || !token.starts_with(['0', '+']);
    canonical.then(|| token.parse().ok()).flatten()
}

fn missing(path: &str) -> PatchError {
    PatchError::Inapplicable(format!("the path {path:?} does not exist in the object"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_operation() {
        let original = json!({"a": {"b/c": 1}, "list": [1, 2, 3]});
        let patch = json!([
            {"op": "test", "path": "/a/b~1c", "value": 1},
            {"op": "replace", "path": "/a/b~1c", "value": 2},
            {"op": "add", "path": "/list/1", "value": 9},
            {"op": "add", "path": "/list/-", "value": 4},
            {"op": "remove", "path": "/list/0"},
            {"op": "copy", "from": "/list", "path": "/copy"},
            {"op": "move", "from": "/a", "path": "/moved"},
        ]);
        let expected = json!({"moved": {"b/c": 2}, "list": [9, 2, 3, 4], "copy": [9, 2, 3, 4]});
        assert_eq!(apply(&original, &patch).unwrap(), expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let original = json!({"a": 1, "list": [1]});
        for patch in [
            json!([{"op": "test", "path": "/a", "value": 2}]),
            json!([{"op": "remove", "path": "/b"}]),
            json!([{"op": "replace", "path": "/b", "value": 1}]),
            json!([{"op": "add", "path": "/list/2", "value": 1}]),
            json!([{"op": "add", "path": "/list/01", "value": 1}]),
            json!([{"op": "add", "path": "/a/b", "value": 1}]),
            json!([{"op": "add", "path": "nope", "value": 1}]),
        ] {
            assert!(matches!(apply(&original, &patch), Err(PatchError::Inapplicable(_))), "{patch}");
        }
        for patch in [json!({}), json!([{"op": "frob", "path": "/a"}]), json!([{"op": "add", "path": "/a"}])]
        {
            assert!(matches!(apply(&original, &patch), Err(PatchError::Malformed(_))), "{patch}");
        }
    }
}
