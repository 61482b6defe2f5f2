//! The annotation by which a Pod takes more or fewer new connections than its siblings. Called by `desired` and
//! `slices`, and by the validation of Pods and slices. Endpoints of one slice have one weight: the slice carries it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::field::FieldErrors;

/// On a Pod, and on the slices of Pods of that weight; absent means [`DEFAULT`].
pub const WEIGHT_ANNOTATION: &str = "quilla.dev/weight";
pub(super) const DEFAULT: u8 = 1;
const LARGEST: u8 = 100;

/// From 0, which takes no new connections, to 100. What is no weight was refused at admission and counts as absent.
pub(super) fn of(metadata: &ObjectMeta) -> u8 {
    text(metadata).and_then(parse).unwrap_or(DEFAULT)
}

/// Makes `metadata` say `weight`.
pub(super) fn write(metadata: &mut ObjectMeta, weight: u8) {
    let annotations = metadata.annotations.get_or_insert_default();
    if weight == DEFAULT {
        annotations.remove(WEIGHT_ANNOTATION);
    } else {
        annotations.insert(WEIGHT_ANNOTATION.to_owned(), weight.to_string());
    }
    metadata.annotations.take_if(|annotations| annotations.is_empty());
}

/// Complains about an annotation that is no weight.
pub fn validate(errors: &mut FieldErrors, metadata: &ObjectMeta) {
    if let Some(text) = text(metadata).filter(|text| parse(text).is_none()) {
        let field = format!("metadata.annotations[{WEIGHT_ANNOTATION}]");
        errors.invalid(field, text, "must be a number from 0 to 100, inclusive");
    }
}

fn text(metadata: &ObjectMeta) -> Option<&str> {
    metadata.annotations.as_ref()?.get(WEIGHT_ANNOTATION).map(String::as_str)
}

/// Digits only: Rust's own parser would take `+5`.
fn parse(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?.filter(|&weight| weight <= LARGEST)
}
