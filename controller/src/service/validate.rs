//! Validation of Services after defaults, with the field paths and words `kubectl` users know. Pure: what depends on
//! the cluster (configured families, free addresses) is said by `family` and `allocate`.

use k8s_openapi::api::core::v1::ServiceSpec;
use quilla_model::Family;

use super::{family, is_external_name, is_headless, kind, list, port, takes_node_ports, wants_health_check};
use crate::field::FieldErrors;
use crate::{selector, syntax};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameNode", "PreferSameZone"];
const POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
const LONGEST_AFFINITY: i32 = 86_400;

/// Complains about all that is wrong with `spec`, and with the step from `old` to it.
pub(super) fn service(errors: &mut FieldErrors, name: &str, spec: &ServiceSpec, old: Option<&ServiceSpec>) {
    if !syntax::is_dns_label(name) || !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        errors.invalid("metadata.name", name, "must be a DNS label that starts with a letter");
    }
    errors.one_of("spec.type", kind(spec), &TYPES);
    port::validate(errors, spec);
    selector::validate_pairs(errors, "spec.selector", spec.selector.as_ref());
    affinity(errors, spec);
    traffic(errors, spec);
    external_addresses(errors, spec);
    load_balancer(errors, spec);
    if is_external_name(spec) {
        external_name(errors, spec);
    } else {
        families(errors, spec);
        addresses(errors, spec);
    }
    if let Some(old) = old {
        change(errors, spec, old);
    }
}

fn affinity(errors: &mut FieldErrors, spec: &ServiceSpec) {
    let affinity = spec.session_affinity.as_deref().unwrap_or("None");
    errors.one_of("spec.sessionAffinity", affinity, &["ClientIP", "None"]);
    let client = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    if let Some(seconds) = client.and_then(|client| client.timeout_seconds)
        && !(1..=LONGEST_AFFINITY).contains(&seconds)
    {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        errors.invalid(field, seconds, "must be greater than 0 and less than or equal to 86400");
    }
}

fn traffic(errors: &mut FieldErrors, spec: &ServiceSpec) {
    if let Some(policy) = &spec.internal_traffic_policy {
        errors.one_of("spec.internalTrafficPolicy", policy, &["Cluster", "Local"]);
    }
    if let Some(policy) = &spec.external_traffic_policy {
        errors.one_of("spec.externalTrafficPolicy", policy, &["Cluster", "Local"]);
        if !takes_node_ports(spec) && list(spec.external_ips.as_ref()).is_empty() {
            errors.invalid(
                "spec.externalTrafficPolicy",
                policy,
                "may only be set for externally-accessible services",
            );
        }
    }
    if let Some(distribution) = &spec.traffic_distribution {
        errors.one_of("spec.trafficDistribution", distribution, &DISTRIBUTIONS);
    }
}

fn external_addresses(errors: &mut FieldErrors, spec: &ServiceSpec) {
    for (index, text) in list(spec.external_ips.as_ref()).iter().enumerate() {
        let field = format!("spec.externalIPs[{index}]");
        if let Some(address) = syntax::address(errors, &field, text) {
            syntax::endpoint_address(errors, &field, address);
        }
    }
}

fn load_balancer(errors: &mut FieldErrors, spec: &ServiceSpec) {
    let balanced = kind(spec) == "LoadBalancer";
    for (index, text) in list(spec.load_balancer_source_ranges.as_ref()).iter().enumerate() {
        syntax::cidr(errors, &format!("spec.loadBalancerSourceRanges[{index}]"), text.trim());
    }
    let only = "may only be used when `type` is 'LoadBalancer'";
    for (field, is_set) in [
        ("spec.loadBalancerSourceRanges", !list(spec.load_balancer_source_ranges.as_ref()).is_empty()),
        ("spec.allocateLoadBalancerNodePorts", spec.allocate_load_balancer_node_ports.is_some()),
        ("spec.loadBalancerClass", spec.load_balancer_class.is_some()),
    ] {
        if is_set && !balanced {
            errors.forbidden(field, only);
        }
    }
    if let Some(class) = spec.load_balancer_class.as_deref().filter(|class| !syntax::is_label_key(class)) {
        errors.invalid("spec.loadBalancerClass", class, "must be a name with an optional DNS prefix");
    }
    if let Some(number) = spec.health_check_node_port.filter(|&number| number != 0)
        && !wants_health_check(spec)
    {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid("spec.healthCheckNodePort", number, why);
    }
}

fn external_name(errors: &mut FieldErrors, spec: &ServiceSpec) {
    let never = "may not be set for ExternalName services";
    for (field, is_set) in [
        ("spec.clusterIPs", !list(spec.cluster_ips.as_ref()).is_empty()),
        ("spec.ipFamilies", !list(spec.ip_families.as_ref()).is_empty()),
        ("spec.ipFamilyPolicy", spec.ip_family_policy.is_some()),
        ("spec.internalTrafficPolicy", spec.internal_traffic_policy.is_some()),
    ] {
        if is_set {
            errors.forbidden(field, never);
        }
    }
    match spec.external_name.as_deref().map(|name| name.trim_end_matches('.')) {
        None | Some("") => errors.required("spec.externalName", ""),
        Some(name) if !syntax::is_dns_subdomain(name) => {
            errors.invalid("spec.externalName", name, "must be a DNS subdomain");
        }
        Some(_) => {}
    }
}

fn families(errors: &mut FieldErrors, spec: &ServiceSpec) {
    if let Some(policy) = &spec.ip_family_policy {
        errors.one_of("spec.ipFamilyPolicy", policy, &POLICIES);
    }
    let families = list(spec.ip_families.as_ref());
    for (index, text) in families.iter().enumerate() {
        let field = format!("spec.ipFamilies[{index}]");
        errors.one_of(&field, text, &["IPv4", "IPv6"]);
        if families[..index].contains(text) {
            errors.duplicate(&field, text);
        }
    }
    if families.len() == 2 && spec.ip_family_policy.as_deref() == Some("SingleStack") {
        errors.invalid(
            "spec.ipFamilies",
            families,
            "may hold only one family when `ipFamilyPolicy` is 'SingleStack'",
        );
    }
}

fn addresses(errors: &mut FieldErrors, spec: &ServiceSpec) {
    let addresses = list(spec.cluster_ips.as_ref());
    let first = spec.cluster_ip.as_deref().unwrap_or_default();
    if is_headless(spec) && takes_node_ports(spec) {
        errors.invalid(
            "spec.clusterIPs[0]",
            "None",
            format_args!("may not be set to 'None' for {} services", kind(spec)),
        );
    }
    if addresses.first().map(String::as_str).unwrap_or_default() != first {
        errors.invalid("spec.clusterIPs", addresses, "first value must match `clusterIP`");
    }
    if addresses.len() > 2 {
        errors.too_many("spec.clusterIPs", addresses.len(), 2);
    }
    if addresses.len() > 1 && is_headless(spec) {
        errors.invalid("spec.clusterIPs", addresses, "'None' must be the first and only value");
        return;
    }
    let mut seen: Vec<Family> = Vec::new();
    for (index, text) in addresses.iter().enumerate().filter(|_| !is_headless(spec)) {
        let field = format!("spec.clusterIPs[{index}]");
        let Some(found) = syntax::address(errors, &field, text).map(Family::of) else { continue };
        let named = list(spec.ip_families.as_ref()).get(index).and_then(|text| family::parse(text));
        if named.is_some_and(|named| named != found) {
            errors.invalid(&field, text, format_args!("expected an address of `ipFamilies[{index}]`"));
        }
        if seen.contains(&found) {
            errors.invalid(&field, text, "may hold one address of each family");
        }
        seen.push(found);
    }
    if seen.len() == 2 && spec.ip_family_policy.as_deref() == Some("SingleStack") {
        errors.invalid(
            "spec.clusterIPs",
            addresses,
            "may hold only one address when `ipFamilyPolicy` is 'SingleStack'",
        );
    }
}

/// What may not change once set.
fn change(errors: &mut FieldErrors, new: &ServiceSpec, old: &ServiceSpec) {
    if !is_external_name(new) && !is_external_name(old) {
        let pairs = list(new.cluster_ips.as_ref()).iter().zip(list(old.cluster_ips.as_ref()));
        for (index, (text, _)) in pairs.enumerate().filter(|(_, (text, stored))| text != stored) {
            let why = if index == 0 { "field is immutable" } else { "may not change once set" };
            errors.invalid(format!("spec.clusterIPs[{index}]"), text, why);
        }
        let pairs = list(new.ip_families.as_ref()).iter().zip(list(old.ip_families.as_ref()));
        for (index, (text, _)) in pairs.enumerate().filter(|(_, (text, stored))| text != stored) {
            errors.invalid(format!("spec.ipFamilies[{index}]"), text, "field is immutable");
        }
    }
    if wants_health_check(new)
        && wants_health_check(old)
        && new.health_check_node_port != old.health_check_node_port
    {
        errors.forbidden("spec.healthCheckNodePort", "field is immutable");
    }
    if kind(new) == "LoadBalancer"
        && kind(old) == "LoadBalancer"
        && new.load_balancer_class != old.load_balancer_class
    {
        errors.invalid("spec.loadBalancerClass", &new.load_balancer_class, "may not change once set");
    }
}
