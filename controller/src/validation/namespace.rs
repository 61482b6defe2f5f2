//! Namespaces: names that fit into DNS, and the label policies select them by (N9).

use k8s_openapi::api::core::v1::Namespace;

use crate::field::FieldErrors;
use crate::syntax;

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub fn namespace(errors: &mut FieldErrors, new: &Namespace) {
    let name = new.metadata.name.as_deref().unwrap_or_default();
    syntax::dns_label(errors, "metadata.name", name);
    let label = new.metadata.labels.as_ref().and_then(|labels| labels.get(NAME_LABEL));
    if let Some(label) = label.filter(|label| *label != name) {
        errors.invalid(format!("metadata.labels[{NAME_LABEL}]"), label, format_args!("must be {name:?}"));
    }
}
