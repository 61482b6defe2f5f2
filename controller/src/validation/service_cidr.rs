//! `ServiceCIDR`: one network of each family at most, told once and for all.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use quilla_model::Family;

use crate::field::FieldErrors;
use crate::syntax;

const MOST: usize = 2;

/// Complains about all that is wrong with `new`, and with the step from `old` to it.
pub fn service_cidr(errors: &mut FieldErrors, new: &ServiceCIDR, old: Option<&ServiceCIDR>) {
    let texts = cidrs(new);
    if texts.is_empty() {
        errors.required("spec.cidrs", "at least one CIDR required");
    }
    if texts.len() > MOST {
        errors.invalid("spec.cidrs", texts, "may only hold up to 2 values");
    }
    let mut families = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let field = format!("spec.cidrs[{index}]");
        let Some(cidr) = syntax::cidr(errors, &field, text) else { continue };
        if cidr.trunc().to_string() != *text {
            let why = format_args!("must be in canonical form (\"{}\")", cidr.trunc());
            errors.invalid(&field, text, why);
        }
        let family = Family::of(cidr.addr());
        if families.contains(&family) {
            errors.invalid(&field, text, "may specify no more than one IP for each IP family");
        }
        families.push(family);
    }
    if old.is_some_and(|old| cidrs(old) != texts) {
        errors.invalid("spec.cidrs", texts, "field is immutable");
    }
}

/// The networks of an object that was found valid.
pub fn networks(object: &ServiceCIDR) -> Vec<IpNet> {
    cidrs(object).iter().filter_map(|text| text.parse().ok()).collect()
}

fn cidrs(object: &ServiceCIDR) -> &[String] {
    object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default()
}
