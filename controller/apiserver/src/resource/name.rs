//! Names and labels: the syntax rules all objects share.
//!
//! `Resource::faults` calls it. Invariant: the same rules, limits and wording as apimachinery's validation.

use serde_json::Value;

use super::Resource;
use crate::admission::Cause;
use crate::object;
use crate::status::{invalid, required};

/// What a kind's names may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameRule {
    /// RFC 1123 subdomain, up to 253 characters.
    Subdomain,
    /// RFC 1123 label, up to 63.
    Label,
    /// RFC 1035 label, up to 63, beginning with a letter.
    Label1035,
    /// An IP address in canonical form.
    Address,
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
     and must start and end with an alphanumeric character (e.g. 'example.com')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
     alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
     an alphanumeric character";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
     and must start and end with an alphanumeric character";

impl NameRule {
    /// What is wrong with the name, if anything.
    fn fault(self, name: &str) -> Option<String> {
        let limit = if self == Self::Subdomain { 253 } else { 63 };
        let (valid, why) = match self {
            Self::Subdomain => (name.split('.').all(is_label), SUBDOMAIN),
            Self::Label => (is_label(name), LABEL),
            Self::Label1035 => {
                (is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase()), LABEL_1035)
            }
            Self::Address => {
                let canonical = name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_string() == name);
                return (!canonical).then(|| "must be an IP address in canonical form".to_owned());
            }
        };
        if name.len() > limit {
            return Some(format!("must be no more than {limit} characters"));
        }
        (!valid).then(|| why.to_owned())
    }
}

/// Checks name, labels, annotations and finalizers.
pub(crate) fn check_metadata(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut faults = Vec::new();
    let name = object::name(object);
    if name.is_empty() {
        faults.push(Cause {
            message: "Required value: name or generateName is required".to_owned(),
            ..required("metadata.name")
        });
    } else if let Some(why) = resource.name.fault(name) {
        faults.push(invalid("metadata.name", name, &why));
    }
    let metadata = &object["metadata"];
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        if let Some(why) = qualified_name_fault(key) {
            faults.push(invalid("metadata.labels", key, why));
        }
        let value = value.as_str().unwrap_or_default();
        if !value.is_empty() && !is_qualified(value) {
            faults.push(invalid("metadata.labels", value, LABEL_VALUE));
        }
    }
    for key in metadata["annotations"].as_object().into_iter().flatten().map(|(key, _)| key) {
        if let Some(why) = qualified_name_fault(&key.to_ascii_lowercase()) {
            faults.push(invalid("metadata.annotations", key, why));
        }
    }
    for finalizer in metadata["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if let Some(why) = qualified_name_fault(finalizer) {
            faults.push(invalid("metadata.finalizers", finalizer, why));
        }
    }
    faults
}

/// `[DOMAIN/]NAME`.
fn qualified_name_fault(key: &str) -> Option<&'static str> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if prefix.is_some_and(|prefix| prefix.len() > 253 || !prefix.split('.').all(is_label)) {
        return Some("prefix part must be a lowercase RFC 1123 subdomain");
    }
    (!is_qualified(name)).then_some(QUALIFIED)
}

fn is_qualified(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_label(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 253
        && text.starts_with(edge)
        && text.ends_with(edge)
        && text.chars().all(|c| edge(c) || c == '-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_by_rule() {
        for (rule, name, good) in [
            (NameRule::Subdomain, "a.b-c.1", true),
            (NameRule::Subdomain, "A", false),
            (NameRule::Subdomain, "a..b", false),
            (NameRule::Subdomain, "-a", false),
            (NameRule::Label, "1a", true),
            (NameRule::Label, "a.b", false),
            (NameRule::Label1035, "1a", false),
            (NameRule::Label1035, "a1", true),
            (NameRule::Address, "10.0.0.1", true),
            (NameRule::Address, "fd00::1", true),
            (NameRule::Address, "fd00:0::1", false),
        ] {
            assert_eq!(rule.fault(name).is_none(), good, "{rule:?} {name}");
        }
        assert!(NameRule::Label.fault(&"a".repeat(64)).is_some());
    }

    #[test]
    fn labels_and_annotations() {
        let faults =
            |metadata: Value| check_metadata(Resource::core("pods"), &json!({"metadata": metadata})).len();
        assert_eq!(
            faults(
                json!({"name": "a", "labels": {"x.io/a": "b", "c": ""}, "annotations": {"A": "any thing"}})
            ),
            0
        );
        assert_eq!(faults(json!({"name": "a", "labels": {"-a": "b c"}})), 2);
        assert_eq!(faults(json!({"name": "a", "annotations": {"a/b/c": ""}})), 1);
        assert_eq!(faults(json!({})), 1);
    }
}
