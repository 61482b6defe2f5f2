//! Field selectors: `metadata.name=a,status.phase!=Failed`, on the fields a kind declares.
//!
//! Invariant: an unknown field is refused, as kube-apiserver does; a field that is absent compares as its zero value.

use serde_json::Value;

use crate::object;
use crate::status::{Refusal, Result};

/// A conjunction of comparisons.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSelector(Vec<Comparison>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Comparison {
    path: String,
    equal: bool,
    value: String,
}

impl FieldSelector {
    /// `fields` are those the kind has beyond its name and namespace.
    pub(crate) fn parse(text: &str, fields: &[&str]) -> Result<Self> {
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| comparison(part, fields))
            .collect::<Result<_>>()
            .map(Self)
    }

    /// Narrowed to one object.
    pub(crate) fn and_name(mut self, name: &str) -> Self {
        self.0.push(Comparison { path: "metadata.name".to_owned(), equal: true, value: name.to_owned() });
        self
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|comparison| {
            let value = match object::at(object, &comparison.path) {
                Value::String(text) => text.clone(),
                Value::Bool(flag) => flag.to_string(),
                Value::Number(number) => number.to_string(),
                _ if matches!(comparison.value.as_str(), "false" | "true") => "false".to_owned(),
                _ => String::new(),
            };
            (value == comparison.value) == comparison.equal
        })
    }
}

fn comparison(text: &str, fields: &[&str]) -> Result<Comparison> {
    let (path, equal, value) = if let Some((path, value)) = text.split_once("!=") {
        (path, false, value)
    } else if let Some((path, value)) = text.split_once('=') {
        (path, true, value.strip_prefix('=').unwrap_or(value))
    } else {
        return Err(Refusal::bad_request(format!("invalid field selector: {text:?}; can't understand it")));
    };
    if !matches!(path, "metadata.name" | "metadata.namespace") && !fields.contains(&path) {
        return Err(Refusal::bad_request(format!("field label not supported: {path}")));
    }
    Ok(Comparison { path: path.to_owned(), equal, value: value.replace('\\', "") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn compares_declared_fields_only() {
        let pod =
            json!({"metadata": {"name": "a"}, "spec": {"hostNetwork": true}, "status": {"phase": "Running"}});
        let fields = ["status.phase", "spec.nodeName", "spec.hostNetwork"];
        let matches = |text: &str| FieldSelector::parse(text, &fields).map(|selector| selector.matches(&pod));
        assert!(matches("metadata.name=a,status.phase!=Failed").unwrap());
        assert!(matches("spec.nodeName==").unwrap());
        assert!(matches("spec.hostNetwork=true").unwrap());
        assert!(!matches("metadata.name!=a").unwrap());
        assert_eq!(matches("spec.secret=x").unwrap_err().code, 400);
        assert_eq!(matches("spec.nodeName").unwrap_err().code, 400);
    }
}
