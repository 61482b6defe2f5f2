//! Required fields, by path.
//!
//! `Resource::faults` calls it. Invariant: an empty string or list counts as missing, as in Kubernetes.

use serde_json::Value;

use crate::admission::Cause;
use crate::status::required;

/// `a.b[].c`: `c` must be in every element of the list `a.b`, which itself may be absent.
pub(super) fn required_at(object: &Value, path: &str, faults: &mut Vec<Cause>) {
    let Some((list, rest)) = path.split_once("[]") else {
        let missing = match crate::object::at(object, path) {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        faults.extend(missing.then(|| required(path)));
        return;
    };
    let elements = crate::object::at(object, list).as_array().into_iter().flatten();
    for (at, element) in elements.enumerate() {
        let mut inner = Vec::new();
        required_at(element, rest.trim_start_matches('.'), &mut inner);
        let placed = |cause: Cause| Cause { field: format!("{list}[{at}].{}", cause.field), ..cause };
        faults.extend(inner.into_iter().map(placed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn goes_through_lists() {
        let object = json!({"spec": {"containers": [{"name": "a"}, {"name": ""}], "none": []}});
        let mut faults = Vec::new();
        required_at(&object, "spec.containers[].name", &mut faults);
        required_at(&object, "spec.none", &mut faults);
        required_at(&object, "spec.absent[].x", &mut faults);
        let fields: Vec<_> = faults.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(fields, ["spec.containers[1].name", "spec.none"]);
    }
}
