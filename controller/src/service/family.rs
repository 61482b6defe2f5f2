//! Which address families a Service has: the five dual-stack shapes of KEP-563. Called after validation, before
//! allocation. After [`Families::settle`], `ipFamilies` and `ipFamilyPolicy` are set for every Service but those of type
//! `ExternalName`.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServiceSpec;
use quilla_model::Family;

use super::{is_external_name, is_headless, list};
use crate::field::FieldErrors;

/// The families the cluster has, its default first.
#[derive(Clone, Debug)]
pub struct Families(Vec<Family>);

impl Families {
    /// In the order in which the CIDRs name them.
    pub fn of(cidrs: &[IpNet]) -> Self {
        let mut families = Vec::new();
        for family in cidrs.iter().map(|cidr| Family::of(cidr.addr())) {
            if !families.contains(&family) {
                families.push(family);
            }
        }
        Self(families)
    }

    /// Whether Services can have addresses like those of `cidr`.
    pub(super) fn has(&self, cidr: &IpNet) -> bool {
        self.0.contains(&Family::of(cidr.addr()))
    }

    /// Decides `ipFamilies` and `ipFamilyPolicy`.
    pub(super) fn settle(&self, spec: &mut ServiceSpec) -> Result<(), FieldErrors> {
        if is_external_name(spec) {
            return Ok(());
        }
        let mut errors = FieldErrors::default();
        let mut families = families_of(spec);
        self.infer(&mut errors, spec, &mut families);
        errors.into_result()?;
        let selectorless =
            is_headless(spec) && spec.selector.as_ref().is_none_or(std::collections::BTreeMap::is_empty);
        let default = match families.len() {
            2 => "RequireDualStack",
            _ if selectorless => "RequireDualStack",
            _ => "SingleStack",
        };
        let policy = spec.ip_family_policy.get_or_insert_with(|| default.to_owned()).clone();
        if !selectorless {
            self.check(&policy, &families)?;
        }
        if families.is_empty() {
            families.extend(self.0.first());
        }
        let both = selectorless || self.0.len() == 2;
        if policy != "SingleStack" && both && families.len() == 1 {
            families.extend(families.first().copied().map(other));
        }
        spec.ip_families = Some(families.into_iter().map(|family| name(family).to_owned()).collect());
        Ok(())
    }

    /// Adds the families of the addresses the client asked for.
    fn infer(&self, errors: &mut FieldErrors, spec: &ServiceSpec, families: &mut Vec<Family>) {
        for (index, text) in list(spec.cluster_ips.as_ref()).iter().enumerate().skip(families.len()) {
            let Some(family) = text.parse().ok().map(|address: IpAddr| Family::of(address)) else { continue };
            if self.0.contains(&family) {
                families.push(family);
            } else {
                let why = format!("{} is not configured on this cluster", name(family));
                errors.invalid(format!("spec.clusterIPs[{index}]"), text, why);
            }
        }
    }

    fn check(&self, policy: &str, families: &[Family]) -> Result<(), FieldErrors> {
        let mut errors = FieldErrors::default();
        if policy == "RequireDualStack" && self.0.len() < 2 {
            errors.invalid(
                "spec.ipFamilyPolicy",
                policy,
                "this cluster is not configured for dual-stack services",
            );
        }
        for (index, family) in families.iter().enumerate().filter(|(_, family)| !self.0.contains(family)) {
            errors.invalid(
                format!("spec.ipFamilies[{index}]"),
                name(*family),
                "not configured on this cluster",
            );
        }
        errors.into_result()
    }
}

/// The families `spec` names; what is none was complained about already.
pub(super) fn families_of(spec: &ServiceSpec) -> Vec<Family> {
    list(spec.ip_families.as_ref()).iter().filter_map(|text| parse(text)).collect()
}

pub(super) fn parse(text: &str) -> Option<Family> {
    match text {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

pub(super) fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn other(family: Family) -> Family {
    match family {
        Family::V4 => Family::V6,
        Family::V6 => Family::V4,
    }
}

/// Keeps `clusterIPs` in step with `clusterIP` for clients that know only the older field.
pub(super) fn sync_cluster_ips(new: &mut ServiceSpec, old: Option<&ServiceSpec>) {
    let first = new.cluster_ip.clone().filter(|text| !text.is_empty());
    let empty = list(new.cluster_ips.as_ref()).is_empty();
    let untouched = match old {
        None => empty,
        Some(old) => new.cluster_ip != old.cluster_ip && (empty || new.cluster_ips == old.cluster_ips),
    };
    if untouched {
        new.cluster_ips = first.map(|first| vec![first]);
    }
}
