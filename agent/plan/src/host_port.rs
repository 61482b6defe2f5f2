//! Ports of the node that lead to a Pod of it (CNI-33 `portMappings`). Called by [`crate::plan()`] for each endpoint.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use quilla_abi::service::scope;
use quilla_model::{Family, ObjectRef, Problem, Protocol, Reason, TrafficPolicy};

use crate::desired::{BackendKey, BackendSet, Frontend, FrontendKey, FrontendKind, Member, SetKey};
use crate::facts::{HostPort, LocalEndpoint};
use crate::frontend::ServicePlan;
use crate::service_facts::ServiceFacts;

/// The plan of one Pod's host ports.
pub fn plan_host_ports(endpoint: &LocalEndpoint, facts: &ServiceFacts) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let mut frontends = BTreeMap::new();
    for port in &endpoint.host_ports {
        if let Some(problem) = fault(endpoint, port, facts) {
            plan.problems.push(problem);
            continue;
        }
        let pod = [endpoint.ipv4.map(IpAddr::V4), endpoint.ipv6.map(IpAddr::V6)];
        for address in pod.into_iter().flatten() {
            let (key, backend) = set(endpoint, port, address);
            let before = frontends.len();
            for frontend in frontend_keys(port, Family::of(address), facts) {
                frontends.entry(frontend).or_insert_with(|| Frontend {
                    set: Arc::clone(&key),
                    kind: FrontendKind::HostPort,
                    flags: 0,
                });
            }
            if frontends.len() > before {
                let members = vec![Member { backend, weight: 1 }];
                plan.sets.insert(key, Arc::new(BackendSet { members, ..BackendSet::default() }));
                plan.backends.push(backend);
            }
        }
    }
    plan.frontends = frontends.into_iter().collect();
    plan.leave_overlay_alone(facts);
    plan.backends.sort_unstable();
    plan.backends.dedup();
    plan.shrink();
    plan
}

/// The address to listen on; every one of the node's if it is left out or all zero.
fn listens_on(port: &HostPort) -> Option<IpAddr> {
    port.host_ip.filter(|address| !address.is_unspecified())
}

fn fault(endpoint: &LocalEndpoint, port: &HostPort, facts: &ServiceFacts) -> Option<Problem> {
    let problem = |reason, detail: String| {
        let object = ObjectRef::new("Pod", &endpoint.pod);
        Some(Problem::new(object, reason, format!("hostPort {} {}{detail}", port.host_port, port.protocol)))
    };
    let foreign = |address: &IpAddr| {
        let localhost = *address == IpAddr::V4(Ipv4Addr::LOCALHOST);
        !localhost && !facts.addresses.contains(address)
    };
    if port.host_port == 0 || port.container_port == 0 {
        problem(Reason::Malformed, format!(": leads to port {}", port.container_port))
    } else if port.protocol == Protocol::Sctp {
        problem(Reason::Unsupported, " is not served".to_owned())
    } else if let Some(address) = listens_on(port).filter(foreign) {
        problem(Reason::UnusableAddress, format!(": hostIP {address} is no address of the node"))
    } else {
        None
    }
}

fn set(endpoint: &LocalEndpoint, port: &HostPort, address: IpAddr) -> (Arc<SetKey>, BackendKey) {
    let protocol = port.protocol.number();
    let key = SetKey {
        owner: ObjectRef::new("Pod", &endpoint.pod),
        port_name: port.container_port.to_string().into(),
        protocol,
        family: Family::of(address),
        policy: TrafficPolicy::Cluster,
        maglev: false,
    };
    (Arc::new(key), BackendKey { address, port: port.container_port, protocol })
}

/// Where clients find the port. At 127.0.0.1 these are the node's own processes.
fn frontend_keys(port: &HostPort, family: Family, facts: &ServiceFacts) -> Vec<FrontendKey> {
    let chosen = |address: &IpAddr| {
        Family::of(*address) == family && listens_on(port).is_none_or(|chosen| chosen == *address)
    };
    let key = |address, scope| FrontendKey {
        address,
        port: port.host_port,
        protocol: port.protocol.number(),
        scope,
    };
    let own = facts.addresses.iter().copied().filter(chosen);
    let own = own.flat_map(|address| [scope::INTERNAL, scope::EXTERNAL].map(|scope| key(address, scope)));
    let localhost = Some(IpAddr::V4(Ipv4Addr::LOCALHOST)).filter(chosen);
    own.chain(localhost.map(|address| key(address, scope::INTERNAL))).collect()
}
