//! Where a load balancer's addresses are told: the status of a Service. Called by `admission` for writes of the status,
//! and for changes of the type, which leave no address behind.

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};

use super::{EMPTY, kind};
use crate::field::FieldErrors;
use crate::syntax;

const MODES: [&str; 2] = ["Proxy", "VIP"];

/// Completes the status and complains about what makes no sense in it.
pub(super) fn admit(service: &mut Service) -> Result<(), FieldErrors> {
    let balanced = kind(service.spec.as_ref().unwrap_or(&EMPTY)) == "LoadBalancer";
    let balancer = service.status.as_mut().and_then(|status| status.load_balancer.as_mut());
    let Some(entries) = balancer.and_then(|balancer| balancer.ingress.as_mut()) else { return Ok(()) };
    let mut errors = FieldErrors::default();
    if !balanced && !entries.is_empty() {
        let why = "may only be used when `spec.type` is \"LoadBalancer\"";
        errors.forbidden("status.loadBalancer.ingress", why);
    }
    for (index, entry) in entries.iter_mut().enumerate() {
        if entry.ip.as_deref().is_some_and(|text| !text.is_empty()) {
            entry.ip_mode.get_or_insert_with(|| "VIP".to_owned());
        }
        validate(&mut errors, &format!("status.loadBalancer.ingress[{index}]"), entry);
    }
    errors.into_result()
}

fn validate(errors: &mut FieldErrors, field: &str, entry: &LoadBalancerIngress) {
    let ip = entry.ip.as_deref().filter(|text| !text.is_empty());
    if let Some(text) = ip {
        syntax::address(errors, &format!("{field}.ip"), text);
    }
    if let Some(mode) = &entry.ip_mode {
        errors.one_of(format!("{field}.ipMode"), mode, &MODES);
        if ip.is_none() {
            errors.forbidden(format!("{field}.ipMode"), "may not be specified when `ip` is not set");
        }
    }
    if let Some(name) = entry.hostname.as_deref().filter(|name| !name.is_empty()) {
        let field = format!("{field}.hostname");
        if name.parse::<std::net::IpAddr>().is_ok() {
            errors.invalid(field, name, "must be a DNS name, not an IP address");
        } else if !syntax::is_dns_subdomain(name) {
            errors.invalid(field, name, "must be a DNS subdomain");
        }
    }
}

/// Drops the addresses of a Service that is no load balancer (any more).
pub(super) fn settle(service: &mut Service) {
    if kind(service.spec.as_ref().unwrap_or(&EMPTY)) == "LoadBalancer" {
        return;
    }
    if let Some(balancer) = service.status.as_mut().and_then(|status| status.load_balancer.as_mut()) {
        balancer.ingress = None;
    }
}
