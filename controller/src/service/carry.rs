//! What an update takes over from the stored Service, and what it leaves behind. A client that writes back only what
//! it once wrote keeps its addresses and ports; a Service that changes type loses what its new type cannot have,
//! unless the client asked for it in this very update. Called on update, before defaults.

use k8s_openapi::api::core::v1::ServiceSpec;

use super::{is_external_name, kind, list, takes_node_ports, wants_health_check, wants_node_ports};

/// Completes `new` from `old`, then drops what its type cannot have.
pub(super) fn over(new: &mut ServiceSpec, old: &ServiceSpec) {
    if !is_external_name(new) && !is_external_name(old) {
        addresses(new, old);
    }
    // One that shall have none allocated (S27) gives up those it does not name.
    if wants_node_ports(new) && takes_node_ports(old) {
        node_ports(new, old);
    }
    if wants_health_check(new) && wants_health_check(old) && new.health_check_node_port.unwrap_or(0) == 0 {
        new.health_check_node_port = old.health_check_node_port;
    }
    drop_dependent(new, old);
}

fn addresses(new: &mut ServiceSpec, old: &ServiceSpec) {
    if new.cluster_ip.as_deref().is_none_or(str::is_empty) {
        new.cluster_ip.clone_from(&old.cluster_ip);
    }
    if list(new.cluster_ips.as_ref()).is_empty() && new.cluster_ip == old.cluster_ip {
        new.cluster_ips.clone_from(&old.cluster_ips);
    }
    if list(new.ip_families.as_ref()).is_empty() {
        new.ip_families.clone_from(&old.ip_families);
    }
    if new.ip_family_policy.is_none() {
        new.ip_family_policy.clone_from(&old.ip_family_policy);
    }
    let downgraded = new.ip_family_policy.as_deref() == Some("SingleStack")
        && old.ip_family_policy.as_deref() != Some("SingleStack");
    if downgraded && new.cluster_ips == old.cluster_ips && new.ip_families == old.ip_families {
        new.cluster_ips.iter_mut().for_each(|addresses| addresses.truncate(1));
        new.ip_families.iter_mut().for_each(|families| families.truncate(1));
    }
}

fn node_ports(new: &mut ServiceSpec, old: &ServiceSpec) {
    let mut taken: Vec<_> = list(new.ports.as_ref())
        .iter()
        .filter_map(|port| {
            port.node_port.filter(|&number| number != 0).map(|number| (protocol(port), number))
        })
        .map(|(protocol, number)| (protocol.to_owned(), number))
        .collect();
    for port in new.ports.iter_mut().flatten().filter(|port| port.node_port.unwrap_or(0) == 0) {
        let same = list(old.ports.as_ref())
            .iter()
            .find(|stored| stored.port == port.port && protocol(stored) == protocol(port))
            .and_then(|stored| stored.node_port)
            .map(|number| (protocol(port).to_owned(), number));
        if let Some(same) = same.filter(|same| !taken.contains(same)) {
            port.node_port = Some(same.1);
            taken.push(same);
        }
    }
}

fn protocol(port: &k8s_openapi::api::core::v1::ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

/// A field is dropped when the old type could have it, the new one cannot, and it is as it was.
fn drop_dependent(new: &mut ServiceSpec, old: &ServiceSpec) {
    if is_external_name(new) && !is_external_name(old) && new.cluster_ip == old.cluster_ip {
        new.cluster_ip = None;
        new.cluster_ips = None;
        new.ip_families = None;
        new.ip_family_policy = None;
        new.internal_traffic_policy = None;
    }
    if !takes_node_ports(new) && takes_node_ports(old) {
        drop_node_ports(new, old);
        if new.external_traffic_policy == old.external_traffic_policy
            && list(new.external_ips.as_ref()).is_empty()
        {
            new.external_traffic_policy = None;
        }
    }
    if !wants_health_check(new)
        && wants_health_check(old)
        && new.health_check_node_port == old.health_check_node_port
    {
        new.health_check_node_port = None;
    }
    if kind(new) != "LoadBalancer" && kind(old) == "LoadBalancer" {
        if new.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports {
            new.allocate_load_balancer_node_ports = None;
        }
        if new.load_balancer_class == old.load_balancer_class {
            new.load_balancer_class = None;
        }
    }
}

fn drop_node_ports(new: &mut ServiceSpec, old: &ServiceSpec) {
    let stored: Vec<_> = list(old.ports.as_ref()).iter().filter_map(|port| port.node_port).collect();
    for port in new.ports.iter_mut().flatten() {
        if port.node_port.is_some_and(|number| stored.contains(&number)) {
            port.node_port = None;
        }
    }
}
