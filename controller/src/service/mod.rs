//! Admission of Services: defaults, validation, dual stack, and the allocation of cluster IPs and node ports, in one
//! synchronous step as in Kubernetes; and of the networks these come from. Called by `admission`. A Service that is
//! stored has everything it needs.

mod addresses;
mod allocate;
mod carry;
mod defaults;
mod family;
mod port;
mod status;
mod validate;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};

pub use allocate::{Allocator, NodePortRange};
pub use family::Families;

use crate::field::FieldErrors;

/// A Service without a `spec` is as one with an empty `spec`.
static EMPTY: ServiceSpec = empty_spec();

/// Decides on Services and owns what they hold.
#[derive(Debug)]
pub struct ServiceAdmission {
    families: Families,
    reserved: Vec<IpNet>,
    allocator: Mutex<Allocator>,
}

impl ServiceAdmission {
    /// The family of the first CIDR is the cluster's default.
    pub fn new(cidrs: &[IpNet], node_ports: NodePortRange) -> Self {
        let families = Families::of(cidrs);
        Self { families, reserved: Vec::new(), allocator: Mutex::new(Allocator::new(cidrs, node_ports)) }
    }

    /// Keeps Services off the addresses of Pods: a packet's destination must mean one thing.
    #[must_use]
    pub fn reserving(mut self, cidrs: &[IpNet]) -> Self {
        self.reserved = cidrs.to_vec();
        self
    }

    /// Takes over what a stored Service holds. Returns what it shares with another one.
    pub fn adopt(&self, service: &Service) -> Vec<String> {
        self.allocator().adopt(spec_of(service))
    }

    /// Services may have addresses of these networks from now on. Networks of a family the cluster was not started with
    /// are refused: its nodes have no addresses of that family.
    pub fn add_cidrs(&self, owner: &str, cidrs: &[IpNet]) -> Result<(), FieldErrors> {
        let mut errors = FieldErrors::default();
        for (index, cidr) in cidrs.iter().enumerate() {
            let field = format!("spec.cidrs[{index}]");
            let overlaps = |other: &&IpNet| other.contains(cidr) || cidr.contains(*other);
            if !self.families.has(cidr) {
                let why = "its address family is not configured on this cluster";
                errors.invalid(field, cidr.to_string(), why);
            } else if let Some(other) = self.reserved.iter().find(overlaps) {
                errors.invalid(
                    field,
                    cidr.to_string(),
                    format_args!("overlaps {other}, the addresses of pods"),
                );
            }
        }
        errors.into_result()?;
        self.allocator().addresses.add(owner, cidrs);
        Ok(())
    }

    /// Ends what [`Self::add_cidrs`] began. Fails with the addresses that would belong to no network any more.
    pub fn remove_cidrs(&self, owner: &str) -> Result<(), Vec<IpAddr>> {
        let mut allocator = self.allocator();
        let stranded = allocator.addresses.only_in(owner);
        if !stranded.is_empty() {
            return Err(stranded);
        }
        allocator.addresses.remove(owner);
        Ok(())
    }

    /// Completes `new` and holds what it needs; what only `old` held is free again.
    pub fn admit(&self, new: Option<&mut Service>, old: Option<&Service>) -> Result<(), FieldErrors> {
        let Some(new) = new else {
            self.allocator().exchange(old.map(spec_of), None);
            return Ok(());
        };
        let name = new.metadata.name.clone().unwrap_or_default();
        let spec = new.spec.get_or_insert_default();
        let old = old.map(spec_of);
        family::sync_cluster_ips(spec, old);
        if let Some(old) = old {
            carry::over(spec, old);
        }
        defaults::apply(spec);
        let mut errors = FieldErrors::default();
        validate::service(&mut errors, &name, spec, old);
        errors.into_result()?;
        self.families.settle(spec)?;
        self.allocator().assign(spec, old)?;
        status::settle(new);
        Ok(())
    }

    /// Completes a status that is written apart from the specification, and checks it.
    pub fn admit_status(new: &mut Service) -> Result<(), FieldErrors> {
        status::admit(new)
    }

    /// Undoes [`Self::admit`] for a write that was not stored.
    pub fn roll_back(&self, new: Option<&Service>, old: Option<&Service>) {
        self.allocator().exchange(new.map(spec_of), old.map(spec_of));
    }

    fn allocator(&self) -> MutexGuard<'_, Allocator> {
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spec_of(service: &Service) -> &ServiceSpec {
    service.spec.as_ref().unwrap_or(&EMPTY)
}

const fn empty_spec() -> ServiceSpec {
    ServiceSpec {
        allocate_load_balancer_node_ports: None,
        cluster_ip: None,
        cluster_ips: None,
        external_ips: None,
        external_name: None,
        external_traffic_policy: None,
        health_check_node_port: None,
        internal_traffic_policy: None,
        ip_families: None,
        ip_family_policy: None,
        load_balancer_class: None,
        load_balancer_ip: None,
        load_balancer_source_ranges: None,
        ports: None,
        publish_not_ready_addresses: None,
        selector: None,
        session_affinity: None,
        session_affinity_config: None,
        traffic_distribution: None,
        type_: None,
    }
}

// === what a specification asks for ===

fn kind(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().unwrap_or("ClusterIP")
}

fn is_external_name(spec: &ServiceSpec) -> bool {
    kind(spec) == "ExternalName"
}

fn is_headless(spec: &ServiceSpec) -> bool {
    !is_external_name(spec) && spec.cluster_ip.as_deref() == Some("None")
}

/// Whether the type takes node ports at all.
fn takes_node_ports(spec: &ServiceSpec) -> bool {
    matches!(kind(spec), "NodePort" | "LoadBalancer")
}

/// Whether missing node ports are to be filled in.
fn wants_node_ports(spec: &ServiceSpec) -> bool {
    kind(spec) == "NodePort"
        || kind(spec) == "LoadBalancer" && spec.allocate_load_balancer_node_ports != Some(false)
}

fn wants_health_check(spec: &ServiceSpec) -> bool {
    kind(spec) == "LoadBalancer" && spec.external_traffic_policy.as_deref() == Some("Local")
}

/// A list that is absent is as an empty one.
fn list<T>(field: Option<&Vec<T>>) -> &[T] {
    field.map(Vec::as_slice).unwrap_or_default()
}
