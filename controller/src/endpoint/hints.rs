//! Topology hints (S15, S16): proxies obey hints only, so what a Service says of topology must become some. Called by
//! `desired` with all endpoints of a Service. Pure: the same endpoints and nodes give the same hints.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointHints, ForNode, ForZone};

use super::Topology;
use super::desired::{Endpoints, Group};

/// The annotation of topology-aware routing (KEP-2433), and what it was called before.
const MODE_ANNOTATIONS: [&str; 2] =
    ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];

/// Writes the hints the Service asks for to its ready endpoints; the others get none.
pub(super) fn write(service: &Service, groups: &mut BTreeMap<Group, Endpoints>, topology: &Topology) {
    if is_auto(service) {
        for address_type in ["IPv4", "IPv6"] {
            share_out(address_type, groups, topology);
        }
    } else if let Some(distribution) =
        service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref())
    {
        groups.values_mut().flat_map(BTreeMap::values_mut).filter(|endpoint| is_ready(endpoint)).for_each(
            |endpoint| {
                endpoint.hints = near(distribution, endpoint.node_name.as_deref(), endpoint.zone.as_deref());
            },
        );
    }
}

/// The annotation comes before `spec.trafficDistribution`.
fn is_auto(service: &Service) -> bool {
    let annotations = service.metadata.annotations.as_ref();
    let mode = MODE_ANNOTATIONS.iter().find_map(|name| annotations?.get(*name));
    mode.is_some_and(|mode| mode == "Auto" || mode == "auto")
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
}

/// Each endpoint for its own zone, and its own node if that is preferred.
fn near(distribution: &str, node: Option<&str>, zone: Option<&str>) -> Option<EndpointHints> {
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes = node.map(|node| vec![ForNode { name: node.to_owned() }]);
    match distribution {
        "PreferClose" | "PreferSameZone" => {
            for_zones.map(|zones| EndpointHints { for_zones: Some(zones), for_nodes: None })
        }
        "PreferSameNode" if for_zones.is_some() || for_nodes.is_some() => {
            Some(EndpointHints { for_zones, for_nodes })
        }
        _ => None,
    }
}

/// Gives every zone endpoints in proportion to its CPUs: its own first, then those that other zones can spare. Writes
/// nothing if any precondition of S16 fails.
fn share_out(address_type: &str, groups: &mut BTreeMap<Group, Endpoints>, topology: &Topology) {
    let of_type = groups.iter_mut().filter(|(group, _)| group.address_type == address_type);
    let (mut counted, mut drained) = (Vec::new(), Vec::new());
    for (group, endpoints) in of_type {
        // What takes no new connections is no capacity, but without a hint it would undo those of the others (S14).
        let list = if group.weight == 0 { &mut drained } else { &mut counted };
        list.extend(endpoints.values_mut().filter(|endpoint| is_ready(endpoint)));
    }
    let Some(mut room) = topology.capacity().and_then(|capacity| targets(counted.len(), capacity)) else {
        return;
    };
    if counted.iter().chain(&drained).any(|endpoint| endpoint.zone.is_none()) {
        return;
    }
    let mut spare = Vec::new();
    for endpoint in counted {
        let zone = endpoint.zone.clone().unwrap_or_default();
        match room.get_mut(&zone).filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                endpoint.hints = Some(for_zone(zone));
            }
            None => spare.push(endpoint),
        }
    }
    let wanting = room.into_iter().flat_map(|(zone, left)| std::iter::repeat_n(zone, left));
    for (endpoint, zone) in spare.into_iter().zip(wanting) {
        endpoint.hints = Some(for_zone(zone));
    }
    for endpoint in drained {
        endpoint.hints = Some(for_zone(endpoint.zone.clone().unwrap_or_default()));
    }
}

fn for_zone(name: String) -> EndpointHints {
    EndpointHints { for_zones: Some(vec![ForZone { name }]), for_nodes: None }
}

/// How many of `count` endpoints each zone gets, all of them together. `None` if there are fewer endpoints than zones,
/// or some zone would have to bear more than 1.2 times its fair load (the threshold of KEP-2433).
fn targets(count: usize, capacity: &BTreeMap<String, u64>) -> Option<BTreeMap<String, usize>> {
    if count < capacity.len() {
        return None;
    }
    let total: u128 = capacity.values().copied().map(u128::from).sum();
    let share = |cpus: u64| count as u128 * u128::from(cpus);
    let least = |cpus: u64| usize::try_from((share(cpus) * 5).div_ceil(total * 6)).ok();
    let least = capacity.iter().map(|(zone, &cpus)| Some((zone.clone(), least(cpus)?)));
    let mut targets: BTreeMap<_, _> = least.collect::<Option<_>>()?;
    for _ in 0..count.checked_sub(targets.values().sum())? {
        // The zone that is furthest from its share; of equals, the first by name.
        let lacks = |zone: &String, given: usize| share(capacity[zone]).saturating_sub(given as u128 * total);
        let (_, given) = targets.iter_mut().rev().max_by_key(|(zone, given)| lacks(zone, **given))?;
        *given += 1;
    }
    Some(targets)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::targets;

    fn found(count: usize, cpus: &[u64]) -> Option<Vec<usize>> {
        let capacity: BTreeMap<_, _> =
            cpus.iter().enumerate().map(|(at, &cpu)| (format!("z{at}"), cpu)).collect();
        Some(targets(count, &capacity)?.into_values().collect())
    }

    #[test]
    fn s16_shares_follow_the_cpus_and_stop_at_the_threshold() {
        assert_eq!(found(6, &[4000, 4000, 4000]), Some(vec![2, 2, 2]));
        assert_eq!(found(9, &[8000, 4000, 6000]), Some(vec![4, 2, 3]));
        assert_eq!(found(7, &[4000, 4000, 4000]), Some(vec![3, 2, 2]));
        assert_eq!(found(2, &[4000, 4000, 4000]), None, "fewer endpoints than zones");
        assert_eq!(found(5, &[4000, 4000, 4000, 4000]), None, "each would need two: 1.25 > 1.2");
        assert_eq!(found(3, &[9000, 1000]), None, "2.7 need three, and 0.3 need one");
    }

    proptest! {
        #[test]
        fn every_endpoint_is_given_and_no_zone_overloaded(count in 1usize..500, cpus in prop::collection::vec(1u64..64_000, 2..6)) {
            let Some(found) = found(count, &cpus) else { return Ok(()) };
            prop_assert_eq!(found.iter().sum::<usize>(), count);
            let total: u64 = cpus.iter().sum();
            for (given, cpu) in found.into_iter().zip(cpus) {
                prop_assert!(given as u64 * total * 6 >= count as u64 * cpu * 5);
            }
        }
    }
}
