//! Nodes: Pod CIDRs are prefixes, one of each family at most, and stay as they are once set.

use k8s_openapi::api::core::v1::{Node, NodeSpec};
use quilla_model::Family;

use crate::field::FieldErrors;
use crate::syntax;

pub fn node(errors: &mut FieldErrors, new: &Node, old: Option<&Node>) {
    let Some(spec) = &new.spec else { return };
    let cidrs = spec.pod_cidrs.as_deref().unwrap_or_default();
    let mut families = Vec::new();
    for (index, text) in cidrs.iter().enumerate() {
        let field = format!("spec.podCIDRs[{index}]");
        let Some(family) = syntax::cidr(errors, &field, text).map(|cidr| Family::of(cidr.addr())) else {
            continue;
        };
        if families.contains(&family) {
            errors.invalid(&field, text, "may hold one CIDR of each family");
        }
        families.push(family);
    }
    let first = spec.pod_cidr.as_deref().filter(|text| !text.is_empty());
    match first {
        Some(text) if cidrs.is_empty() => {
            syntax::cidr(errors, "spec.podCIDR", text);
        }
        Some(text) if cidrs.first().map(String::as_str) != Some(text) => {
            errors.invalid("spec.podCIDRs[0]", &cidrs[0], format_args!("must match `podCIDR` {text:?}"));
        }
        _ => {}
    }
    if let Some(stored) = old.and_then(|old| old.spec.as_ref()) {
        unchanged(errors, spec, stored);
    }
}

fn unchanged(errors: &mut FieldErrors, new: &NodeSpec, old: &NodeSpec) {
    let is_set = |spec: &NodeSpec| spec.pod_cidr.as_deref().is_some_and(|text| !text.is_empty());
    if is_set(old) && new.pod_cidr != old.pod_cidr {
        errors.forbidden("spec.podCIDR", "node updates may not change podCIDR once set");
    }
    let stored = old.pod_cidrs.as_deref().unwrap_or_default();
    if !stored.is_empty() && new.pod_cidrs.as_deref().unwrap_or_default() != stored {
        errors.forbidden("spec.podCIDRs", "node updates may not change podCIDRs once set");
    }
    if let Some(provider) = old.provider_id.as_deref().filter(|text| !text.is_empty())
        && new.provider_id.as_deref() != Some(provider)
    {
        errors.forbidden("spec.providerID", "node updates may not change providerID once set");
    }
}
