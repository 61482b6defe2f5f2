//! Kubernetes' strategic merge patch: merge patch, but lists merge by key where the kind says so.
//!
//! Invariant: no directive (`$patch`, `$retainKeys`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`) ever reaches
//! the result. Format: <https://github.com/kubernetes/community/blob/master/contributors/devel/sig-api-machinery/strategic-merge-patch.md>

use serde_json::{Map, Value};

use super::PatchError;

/// How a list at some path merges; lists without a rule are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListMerge {
    /// Elements are objects with this key.
    By(&'static str),
    /// Elements are plain values; the list is a set.
    Set,
}

/// Rules by dotted path of field names, list elements not counting as a step.
pub(crate) type MergeRules = &'static [(&'static str, ListMerge)];

/// What holds for the metadata of every kind.
const METADATA: MergeRules =
    &[("metadata.finalizers", ListMerge::Set), ("metadata.ownerReferences", ListMerge::By("uid"))];

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_VALUES: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;
type Patched<T> = Result<T, PatchError>;

pub(super) fn apply(original: &Value, patch: &Value, rules: MergeRules) -> Patched<Value> {
    let empty = Object::new();
    let patch = patch.as_object().unwrap_or(&empty);
    let merge = Merge { rules };
    merge.object(original.as_object().unwrap_or(&empty), patch, "").map(Value::Object)
}

struct Merge {
    rules: MergeRules,
}

impl Merge {
    fn rule(&self, path: &str) -> Option<ListMerge> {
        self.rules.iter().chain(METADATA).find(|(of, _)| *of == path).map(|(_, rule)| *rule)
    }

    fn object(&self, original: &Object, patch: &Object, path: &str) -> Patched<Object> {
        let mut result = match directive(patch)? {
            Some(Directive::Delete) => return Ok(Object::new()),
            Some(Directive::Replace) => Object::new(),
            Some(Directive::Merge) | None => original.clone(),
        };
        if let Some(retained) = patch.get(RETAIN_KEYS) {
            let retained = list(retained, RETAIN_KEYS)?;
            result.retain(|field, _| retained.iter().any(|kept| kept == field));
        }
        for (field, values) in stripped(patch, DELETE_VALUES) {
            let values = list(values, DELETE_VALUES)?;
            if let Some(Value::Array(present)) = result.get_mut(field) {
                present.retain(|value| !values.contains(value));
            }
        }
        for (field, change) in patch.iter().filter(|(field, _)| !field.starts_with('$')) {
            let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
            match self.value(result.get(field), change, &path)? {
                Some(value) => result.insert(field.clone(), value),
                None => result.remove(field),
            };
        }
        for (field, order) in stripped(patch, ELEMENT_ORDER) {
            let path = if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
            let before = original.get(field).and_then(Value::as_array);
            if let Some(Value::Array(merged)) = result.get_mut(field) {
                self.reorder(merged, list(order, ELEMENT_ORDER)?, before, &path);
            }
        }
        Ok(result)
    }

    fn value(&self, original: Option<&Value>, change: &Value, path: &str) -> Patched<Option<Value>> {
        match change {
            Value::Null => Ok(None),
            Value::Object(patch) => {
                let empty = Object::new();
                let original = original.and_then(Value::as_object).unwrap_or(&empty);
                if directive(patch)? == Some(Directive::Delete) {
                    return Ok(None);
                }
                self.object(original, patch, path).map(|merged| Some(Value::Object(merged)))
            }
            Value::Array(patch) => {
                let original = original.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                self.list(original, patch, path).map(|merged| Some(Value::Array(merged)))
            }
            plain => Ok(Some(plain.clone())),
        }
    }

    fn list(&self, original: &[Value], patch: &[Value], path: &str) -> Patched<Vec<Value>> {
        match self.rule(path) {
            // Through `value` all the same, so that no directive inside an element survives.
            None => patch.iter().filter_map(|value| self.value(None, value, path).transpose()).collect(),
            Some(ListMerge::Set) => {
                let mut result = original.to_vec();
                for value in patch {
                    if !result.contains(value) {
                        result.push(value.clone());
                    }
                }
                Ok(result)
            }
            Some(ListMerge::By(key)) => self.keyed(original, patch, path, key),
        }
    }

    fn keyed(&self, original: &[Value], patch: &[Value], path: &str, key: &str) -> Patched<Vec<Value>> {
        let elements = patch
            .iter()
            .map(|element| {
                element
                    .as_object()
                    .ok_or_else(|| PatchError::Malformed(format!("an element of {path} is not an object")))
            })
            .collect::<Patched<Vec<_>>>()?;
        let mut replace = false;
        for element in &elements {
            replace |= directive(element)? == Some(Directive::Replace);
        }
        let mut result = if replace { Vec::new() } else { original.to_vec() };
        for element in elements {
            let directive = directive(element)?;
            // A bare `{"$patch": "replace"}` only says that the list is replaced.
            if directive == Some(Directive::Replace) && element.len() == 1 {
                continue;
            }
            let id = element.get(key).ok_or_else(|| {
                PatchError::Malformed(format!("an element of {path} lacks its merge key {key:?}"))
            })?;
            if directive == Some(Directive::Delete) {
                result.retain(|present| present.get(key) != Some(id));
                continue;
            }
            let found = result.iter_mut().find(|present| present.get(key) == Some(id));
            let empty = Object::new();
            let before = found.as_deref().and_then(Value::as_object).unwrap_or(&empty);
            let merged = Value::Object(self.object(before, element, path)?);
            match found {
                Some(present) => *present = merged,
                None => result.push(merged),
            }
        }
        Ok(result)
    }

    /// Puts the elements the client named in the order it gave; the others keep their place among those known before.
    fn reorder(&self, merged: &mut Vec<Value>, order: &[Value], before: Option<&Vec<Value>>, path: &str) {
        let key = match self.rule(path) {
            Some(ListMerge::By(key)) => Some(key),
            Some(ListMerge::Set) => None,
            None => return,
        };
        let id = |value: &Value| key.map_or_else(|| value.clone(), |key| value[key].clone());
        let rank = |list: &[Value], value: &Value| list.iter().position(|other| id(other) == id(value));
        let before = before.map_or(&[][..], Vec::as_slice);
        let (mut named, mut others): (Vec<_>, Vec<_>) =
            merged.drain(..).partition(|value| rank(order, value).is_some());
        named.sort_by_key(|value| rank(order, value));
        others.sort_by_key(|value| rank(before, value));
        let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
        while let (Some(left), Some(right)) = (named.peek(), others.peek()) {
            let left_first =
                rank(before, left).is_none_or(|left| rank(before, right).is_some_and(|right| left < right));
            merged.extend(if left_first { named.next() } else { others.next() });
        }
        merged.extend(named.chain(others));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Directive {
    Replace,
    Delete,
    Merge,
}

fn directive(patch: &Object) -> Patched<Option<Directive>> {
    match patch.get(DIRECTIVE) {
        None => Ok(None),
        Some(Value::String(word)) if word == "replace" => Ok(Some(Directive::Replace)),
        Some(Value::String(word)) if word == "delete" => Ok(Some(Directive::Delete)),
        Some(Value::String(word)) if word == "merge" => Ok(Some(Directive::Merge)),
        Some(other) => Err(PatchError::Malformed(format!("unknown {DIRECTIVE} directive {other}"))),
    }
}

/// The fields a directive with a `/FIELD` suffix speaks of.
fn stripped<'a>(patch: &'a Object, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    patch.iter().filter_map(move |(field, value)| Some((field.strip_prefix(prefix)?, value)))
}

fn list<'a>(value: &'a Value, directive: &str) -> Patched<&'a [Value]> {
    value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| PatchError::Malformed(format!("{directive} is not a list")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RULES: MergeRules = &[
        ("spec.containers", ListMerge::By("name")),
        ("spec.containers.env", ListMerge::By("name")),
        ("spec.set", ListMerge::Set),
    ];

    fn patched(original: &Value, patch: &Value) -> Value {
        apply(original, patch, RULES).unwrap_or_else(|error| panic!("{patch}: {error}"))
    }

    fn pod() -> Value {
        json!({"spec": {
            "containers": [
                {"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]},
                {"name": "b", "image": "b:1"},
            ],
            "set": [1, 2], "args": [1, 2],
        }})
    }

    #[test]
    fn keyed_lists_merge_to_any_depth_and_plain_ones_are_replaced() {
        let patch = json!({"spec": {"args": [3], "set": [2, 3], "containers": [
            {"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": null}]},
            {"name": "c", "image": "c:1", "command": null},
        ]}});
        assert_eq!(
            patched(&pod(), &patch),
            json!({"spec": {
                "containers": [
                    {"name": "a", "image": "a:1", "env": [{"name": "X"}, {"name": "Y", "value": "2"}]},
                    {"name": "b", "image": "b:1"},
                    {"name": "c", "image": "c:1"},
                ],
                "set": [1, 2, 3], "args": [3],
            }})
        );
    }

    #[test]
    fn delete_and_replace_directives() {
        let delete = json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}], "$deleteFromPrimitiveList/set": [1]}});
        let result = patched(&pod(), &delete);
        assert_eq!(result["spec"]["containers"], json!([{"name": "b", "image": "b:1"}]));
        assert_eq!(result["spec"]["set"], json!([2]));

        let replace = json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z", "image": "z"}]}});
        assert_eq!(patched(&pod(), &replace)["spec"]["containers"], json!([{"name": "z", "image": "z"}]));

        let object = json!({"spec": {"$patch": "replace", "args": [1]}});
        assert_eq!(patched(&pod(), &object), json!({"spec": {"args": [1]}}));
        assert_eq!(patched(&pod(), &json!({"spec": {"$patch": "delete"}})), json!({}));
    }

    #[test]
    fn retain_keys_clears_the_other_members_of_a_union() {
        let original = json!({"strategy": {"type": "Rolling", "rolling": {"x": 1}}});
        let patch = json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}});
        assert_eq!(patched(&original, &patch), json!({"strategy": {"type": "Recreate"}}));
    }

    #[test]
    fn element_order_places_new_elements_and_keeps_unknown_ones() {
        let patch = json!({"spec": {
            "$setElementOrder/containers": [{"name": "new"}, {"name": "b"}, {"name": "a"}],
            "containers": [{"name": "new", "image": "n"}],
        }});
        let names: Vec<_> = patched(&pod(), &patch)["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|container| container["name"].clone())
            .collect();
        assert_eq!(names, ["new", "b", "a"]);

        // "b" is not the client's: it stays after "a".
        let partly = json!({"spec": {
            "$setElementOrder/containers": [{"name": "a"}, {"name": "new"}],
            "containers": [{"name": "new", "image": "n"}],
        }});
        let names: Vec<_> = patched(&pod(), &partly)["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|container| container["name"].clone())
            .collect();
        assert_eq!(names, ["a", "new", "b"]);
    }

    #[test]
    fn malformed_patches_are_refused() {
        for patch in [
            json!({"spec": {"containers": [{"image": "no key"}]}}),
            json!({"spec": {"containers": ["a"]}}),
            json!({"spec": {"$patch": "frob"}}),
            json!({"spec": {"$retainKeys": "x"}}),
        ] {
            assert!(matches!(apply(&pod(), &patch, RULES), Err(PatchError::Malformed(_))), "{patch}");
        }
    }
}
