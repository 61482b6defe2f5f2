//! What a Service's `spec` says when it says nothing. Called before validation, on create and update.

use k8s_openapi::api::core::v1::{ClientIPConfig, ServicePort, ServiceSpec, SessionAffinityConfig};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{is_external_name, kind, takes_node_ports};

/// How long a client stays with its endpoint, in seconds (S18).
const AFFINITY_SECONDS: i32 = 10_800;

/// Fills in what is absent or empty.
pub(super) fn apply(spec: &mut ServiceSpec) {
    fill(&mut spec.type_, "ClusterIP");
    fill(&mut spec.session_affinity, "None");
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => affinity(spec),
        Some("None") => spec.session_affinity_config = None,
        _ => {}
    }
    if !is_external_name(spec) {
        fill(&mut spec.internal_traffic_policy, "Cluster");
    }
    if takes_node_ports(spec) {
        fill(&mut spec.external_traffic_policy, "Cluster");
    }
    if kind(spec) == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
    spec.ports.iter_mut().flatten().for_each(port);
}

fn affinity(spec: &mut ServiceSpec) {
    let config: &mut SessionAffinityConfig = spec.session_affinity_config.get_or_insert_default();
    let client: &mut ClientIPConfig = config.client_ip.get_or_insert_default();
    client.timeout_seconds.get_or_insert(AFFINITY_SECONDS);
}

fn port(port: &mut ServicePort) {
    fill(&mut port.protocol, "TCP");
    let absent = match &port.target_port {
        None | Some(IntOrString::Int(0)) => true,
        Some(IntOrString::String(name)) => name.is_empty(),
        Some(IntOrString::Int(_)) => false,
    };
    if absent {
        port.target_port = Some(IntOrString::Int(port.port));
    }
}

fn fill(field: &mut Option<String>, value: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(value.to_owned());
    }
}
