//! The endpoints a Service should have, grouped as slices must be: one family, one set of ports and one weight to a
//! group. Called by the reconciler with the Pods the Service selects.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use quilla_model::Family;

use super::{Topology, hints, pod, weight};

/// What the slices of a group share, in a form that can be compared and ordered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// `IPv4` or `IPv6`.
    pub address_type: String,
    ports: Vec<Port>,
    /// How many new connections an endpoint takes, against one of weight 1.
    pub(super) weight: u8,
}

/// One port of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    name: String,
    protocol: String,
    number: Option<i32>,
    app_protocol: Option<String>,
}

/// The endpoints of a group by identity: Pod and address.
pub(super) type Endpoints = BTreeMap<String, Endpoint>;

impl Group {
    /// The group an existing slice belongs to.
    pub fn of(slice: &EndpointSlice) -> Self {
        let mut ports: Vec<_> = slice.ports.iter().flatten().map(Port::of).collect();
        ports.sort();
        Self { address_type: slice.address_type.clone(), ports, weight: weight::of(&slice.metadata) }
    }

    pub fn ports(&self) -> Vec<EndpointPort> {
        self.ports.iter().map(Port::to_api).collect()
    }
}

impl Port {
    fn of(port: &EndpointPort) -> Self {
        Self {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            number: port.port,
            app_protocol: port.app_protocol.clone(),
        }
    }

    fn to_api(&self) -> EndpointPort {
        EndpointPort {
            name: Some(self.name.clone()),
            protocol: Some(self.protocol.clone()),
            port: self.number,
            app_protocol: self.app_protocol.clone(),
        }
    }
}

/// What tells an endpoint from another, whatever its state.
pub(super) fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    let address = endpoint.addresses.first().map(String::as_str).unwrap_or_default();
    format!("{uid}/{address}")
}

/// The endpoints of `service`.
pub fn desired<'a>(
    service: &Service,
    pods: impl IntoIterator<Item = &'a Pod>,
    topology: &Topology,
) -> BTreeMap<Group, Endpoints> {
    let mut groups: BTreeMap<Group, Endpoints> = BTreeMap::new();
    let Some(spec) = &service.spec else { return groups };
    for pod in pods.into_iter().filter(|pod| !pod::is_finished(pod)) {
        let Some(ports) = ports_of(spec, pod) else { continue };
        for address_type in spec.ip_families.iter().flatten() {
            let family = if address_type == "IPv6" { Family::V6 } else { Family::V4 };
            let Some(address) = pod::address(pod, family) else { continue };
            if quilla_model::address::unusable(address).is_some() {
                continue;
            }
            let endpoint = endpoint(service, pod, address.to_string(), topology);
            let weight = weight::of(&pod.metadata);
            let group = Group { address_type: address_type.clone(), ports: ports.clone(), weight };
            groups.entry(group).or_default().insert(identity(&endpoint), endpoint);
        }
    }
    hints::write(service, &mut groups, topology);
    groups
}

/// The Service's ports as this Pod serves them; `None` if it serves none of those asked for.
fn ports_of(spec: &ServiceSpec, pod: &Pod) -> Option<Vec<Port>> {
    let asked = spec.ports.as_deref().unwrap_or_default();
    let found = asked.iter().filter_map(|port| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            number: Some(pod::target_port(pod, port)?),
            app_protocol: port.app_protocol.clone(),
        })
    });
    let mut found: Vec<_> = found.collect();
    found.sort();
    (asked.is_empty() || !found.is_empty()).then_some(found)
}

fn endpoint(service: &Service, pod: &Pod, address: String, topology: &Topology) -> Endpoint {
    let spec = service.spec.as_ref();
    let node_name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|name| !name.is_empty());
    let zone = node_name.as_deref().and_then(|node| topology.zone(node)).map(str::to_owned);
    let conditions = conditions(pod, spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true));
    Endpoint {
        addresses: vec![address],
        conditions: Some(conditions),
        hostname: hostname(service, pod),
        node_name,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone,
        ..Endpoint::default()
    }
}

/// S6.
fn conditions(pod: &Pod, publish_not_ready: bool) -> EndpointConditions {
    let serving = pod::is_ready(pod);
    let terminating = pod::is_terminating(pod);
    EndpointConditions {
        ready: Some(publish_not_ready || serving && !terminating),
        serving: Some(serving),
        terminating: Some(terminating),
    }
}

/// A Pod's own name under its governing Service.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let governed = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    governed.then(|| spec.hostname.clone()).flatten().filter(|name| !name.is_empty())
}
