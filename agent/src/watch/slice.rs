//! Endpoint slices (S1, S5).

use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{
    Endpoint as ApiEndpoint, EndpointHints, EndpointPort as ApiPort, EndpointSlice as ApiSlice,
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use quilla_model::address::parse_lenient;
use quilla_model::endpoint::{DEFAULT_WEIGHT, MAX_WEIGHT};
use quilla_model::{Endpoint, EndpointPort, EndpointSlice, Family, Hints, ObjectName};

use super::driver::{Notes, Watch, name_of};
use super::pool::Shared;
use super::{Kind, Value, port};

/// Says which Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// When the Pod or the Service changed that the slice was written for.
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// A slice with this label is of a headless Service.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// How many connections its endpoints get in proportion to those of other slices: 0 to 100.
const WEIGHT: &str = "quilla.dev/weight";

pub(super) struct Watched;

impl Watch for Watched {
    type Object = ApiSlice;
    const KIND: Kind = Kind::EndpointSlice;

    fn read(object: &ApiSlice, notes: &mut Notes) -> Option<Value> {
        if object.labels().contains_key(HEADLESS) {
            return None;
        }
        let name = name_of(object);
        let service = object.labels().get(SERVICE_NAME)?.as_str().into();
        let service = ObjectName { namespace: Arc::clone(&name.namespace), name: service };
        let family = match object.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => return None,
            other => return notes.parsed("addressType", other, None),
        };
        let ports = object.ports.iter().flatten();
        let endpoints = object.endpoints.iter().flatten();
        let slice = EndpointSlice {
            service,
            family,
            ports: exact(ports.filter_map(|port| endpoint_port(port, notes))),
            endpoints: exact(endpoints.filter_map(|api| endpoint(api, &name.namespace, notes))),
            weight: weight(object, notes),
            name,
        };
        Some(Value::EndpointSlice(Arc::new(slice)))
    }

    fn share(value: &mut Value, shared: &mut Shared) {
        let Value::EndpointSlice(slice) = value else { return };
        let Some(slice) = Arc::get_mut(slice) else { return };
        shared.text(&mut slice.name.namespace);
        shared.text(&mut slice.service.namespace);
        slice.ports.iter_mut().for_each(|port| shared.text(&mut port.name));
        for endpoint in &mut slice.endpoints {
            endpoint.node.iter_mut().for_each(|node| shared.text(node));
            endpoint.hints.iter_mut().for_each(|hints| shared.hints(hints));
        }
    }

    fn trigger(object: &ApiSlice) -> Option<SystemTime> {
        let text = object.annotations().get(LAST_CHANGE)?;
        text.parse::<Timestamp>().ok().map(SystemTime::from)
    }
}

/// Without room for more: nothing is added to a slice that was read.
fn exact<T>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.collect();
    values.shrink_to_fit();
    values
}

fn weight(object: &ApiSlice, notes: &mut Notes) -> u8 {
    let Some(text) = object.annotations().get(WEIGHT) else { return DEFAULT_WEIGHT };
    let weight = text.parse().ok().filter(|weight| *weight <= MAX_WEIGHT);
    let allowed = format!("a whole number from 0 to {MAX_WEIGHT}; {DEFAULT_WEIGHT} is used");
    notes.annotation(WEIGHT, text, weight, &allowed).unwrap_or(DEFAULT_WEIGHT)
}

/// A port without a number means every port, which no Service port can mean.
fn endpoint_port(api: &ApiPort, notes: &mut Notes) -> Option<EndpointPort> {
    Some(EndpointPort {
        name: api.name.as_deref().unwrap_or_default().into(),
        port: port::number("port", api.port?, notes)?,
        protocol: port::protocol("protocol", api.protocol.as_deref(), notes)?,
    })
}

/// Only the first address counts; the API has said so since there are slices.
fn endpoint(api: &ApiEndpoint, namespace: &str, notes: &mut Notes) -> Option<Endpoint> {
    let text = api.addresses.first().map_or("", String::as_str);
    let address = notes.parsed("endpoint address", text, parse_lenient(text))?;
    let conditions = api.conditions.as_ref();
    let hints = api.hints.as_ref().map(hints);
    Some(Endpoint {
        address,
        ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        node: api.node_name.as_deref().map(Arc::from),
        pod: api.target_ref.as_ref().and_then(|target| pod(target, namespace)),
        hints: hints.filter(|hints| *hints != Hints::default()).map(Arc::new),
    })
}

/// Its name, if it is a Pod of that namespace; the API knows of no others.
fn pod(target: &ObjectReference, namespace: &str) -> Option<Box<str>> {
    let is_pod = target.kind.as_deref() == Some("Pod")
        && target.namespace.as_deref().is_none_or(|other| other == namespace);
    target.name.as_deref().filter(|name| is_pod && !name.is_empty()).map(Box::from)
}

fn hints(api: &EndpointHints) -> Hints {
    let nodes = api.for_nodes.iter().flatten().map(|node| node.name.as_str().into());
    let zones = api.for_zones.iter().flatten().map(|zone| zone.name.as_str().into());
    Hints { nodes: nodes.collect(), zones: zones.collect() }
}

#[cfg(test)]
mod tests {
    use quilla_model::{EndpointSlice, Family, Reason};
    use serde_json::{Value as Json, json};

    use std::time::{Duration, SystemTime};

    use super::{LAST_CHANGE, Watched};
    use crate::watch::driver::Watch;
    use crate::watch::driver::tests::read;
    use crate::watch::{Known, Value};

    fn slice_of(address_type: &str, labels: &Json, endpoints: &Json, ports: &Json) -> Known {
        let metadata = json!({"namespace": "shop", "name": "web-abc", "labels": labels});
        let object = json!({"metadata": metadata, "addressType": address_type, "endpoints": endpoints, "ports": ports});
        read::<Watched>(object)
    }

    fn slice(known: &Known) -> &EndpointSlice {
        match &known.value {
            Some(Value::EndpointSlice(slice)) => slice,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn s1_headless_and_named_slices_and_orphans_are_ignored() {
        let ours = json!({"kubernetes.io/service-name": "web"});
        let headless = json!({"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""});
        for (address_type, labels) in [("FQDN", &ours), ("IPv4", &headless), ("IPv4", &json!({}))] {
            let known = slice_of(address_type, labels, &json!([]), &json!([]));
            assert_eq!((known.value, known.problems), (None, vec![]), "{address_type} {labels}");
        }
    }

    #[test]
    fn s5_missing_conditions_mean_ready() {
        let labels = json!({"kubernetes.io/service-name": "web"});
        let endpoints = json!([
            {"addresses": ["10.0.0.1", "10.0.0.9"]},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "terminating": true}, "nodeName": "a",
             "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "a"}]}},
            {"addresses": ["nonsense"]},
            {"addresses": []},
        ]);
        let ports = json!([{"port": 8080}, {"name": "any"}, {"name": "bad", "port": 70000}]);
        let known = slice_of("IPv4", &labels, &endpoints, &ports);
        let slice = slice(&known);
        assert_eq!((slice.family, &*slice.service.name), (Family::V4, "web"));
        assert_eq!(slice.ports.len(), 1);
        let conditions: Vec<_> =
            slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
        assert_eq!(conditions, [(true, true, false), (false, true, true)]);
        assert_eq!(slice.endpoints[0].address, std::net::IpAddr::from([10, 0, 0, 1]));
        let hints = slice.endpoints[1].hints.as_deref().unwrap();
        assert_eq!((&*hints.zones[0], &*hints.nodes[0]), ("z1", "a"));
        let reasons: Vec<_> = known.problems.iter().map(|problem| problem.reason).collect();
        assert_eq!(reasons, [Reason::Malformed; 3], "a port and two endpoints");
    }

    #[test]
    fn s1_an_endpoint_has_the_name_of_its_pod_and_of_nothing_else() {
        let labels = json!({"kubernetes.io/service-name": "web"});
        let target = |kind: &str, namespace: &str| {
            let target = json!({"kind": kind, "namespace": namespace, "name": "web-1"});
            json!({"addresses": ["10.0.0.1"], "targetRef": target})
        };
        let endpoints = json!([
            target("Pod", "shop"),
            target("Pod", "other"),
            target("VirtualMachine", "shop"),
            {"addresses": ["10.0.0.2"]},
        ]);
        let known = slice_of("IPv4", &labels, &endpoints, &json!([]));
        let pods: Vec<_> = slice(&known).endpoints.iter().map(|endpoint| endpoint.pod.as_deref()).collect();
        assert_eq!(pods, [Some("web-1"), None, None, None]);
    }

    #[test]
    fn s53_a_slice_may_say_when_its_pod_changed() {
        let slice = |value: &str| {
            let metadata = json!({"name": "a", "annotations": {LAST_CHANGE: value}});
            serde_json::from_value(json!({"metadata": metadata, "addressType": "IPv4", "endpoints": []}))
                .unwrap()
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        assert_eq!(Watched::trigger(&slice("1970-01-01T00:00:01.5Z")), Some(at));
        assert_eq!(Watched::trigger(&slice("yesterday")), None);
    }

    #[test]
    fn a_weight_is_a_number_up_to_a_hundred() {
        let read = |weight: &str| {
            let known = read::<Watched>(json!({
                "metadata": {
                    "namespace": "shop", "name": "web-abc",
                    "labels": {"kubernetes.io/service-name": "web"},
                    "annotations": {"quilla.dev/weight": weight},
                },
                "addressType": "IPv4", "endpoints": [],
            }));
            (slice(&known).weight, known.problems.len())
        };
        assert_eq!([read("0"), read("7"), read("100")], [(0, 0), (7, 0), (100, 0)]);
        assert_eq!([read("101"), read("-1"), read("heavy"), read("")], [(1, 1); 4]);
    }
}
