//! Label selectors: matching and validation. Called by the reconcilers and the NetworkPolicy validation. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::field::FieldErrors;
use crate::syntax;

/// Labels or a Service's selector.
pub type Labels = BTreeMap<String, String>;

/// Whether `labels` carry every pair of `selector`; an empty selector matches nothing here, as a Service's does.
pub fn selects(selector: Option<&Labels>, labels: Option<&Labels>) -> bool {
    let Some(selector) = selector.filter(|pairs| !pairs.is_empty()) else { return false };
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// Complains about a Service's selector.
pub fn validate_pairs(errors: &mut FieldErrors, field: &str, pairs: Option<&Labels>) {
    for (key, value) in pairs.into_iter().flatten() {
        validate_pair(errors, field, key, value);
    }
}

/// Complains about a label selector of the newer form.
pub fn validate(errors: &mut FieldErrors, field: &str, selector: &LabelSelector) {
    for (key, value) in selector.match_labels.iter().flatten() {
        validate_pair(errors, &format!("{field}.matchLabels"), key, value);
    }
    for (index, one) in selector.match_expressions.iter().flatten().enumerate() {
        let field = format!("{field}.matchExpressions[{index}]");
        let values = one.values.as_deref().unwrap_or_default();
        match one.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(
                    format!("{field}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                errors.forbidden(
                    format!("{field}.values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                );
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(format!("{field}.operator"), other, "not a valid selector operator"),
        }
        if !syntax::is_label_key(&one.key) {
            errors.invalid(format!("{field}.key"), &one.key, "must be a label key");
        }
        for (index, value) in values.iter().enumerate().filter(|(_, value)| !syntax::is_label_value(value)) {
            errors.invalid(format!("{field}.values[{index}]"), value, "must be a label value");
        }
    }
}

fn validate_pair(errors: &mut FieldErrors, field: &str, key: &str, value: &str) {
    if !syntax::is_label_key(key) {
        errors.invalid(field, key, "must be a label key");
    }
    if !syntax::is_label_value(value) {
        errors.invalid(field, value, "must be a label value");
    }
}

#[cfg(test)]
mod tests {
    use super::{Labels, selects};

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_pair_must_be_there_and_nothing_selects_nothing() {
        let pod = labels(&[("app", "web"), ("tier", "front")]);
        assert!(selects(Some(&labels(&[("app", "web")])), Some(&pod)));
        assert!(!selects(Some(&labels(&[("app", "web"), ("tier", "back")])), Some(&pod)));
        assert!(!selects(Some(&labels(&[("app", "web")])), None));
        assert!(!selects(Some(&labels(&[])), Some(&pod)));
        assert!(!selects(None, Some(&pod)));
    }
}
