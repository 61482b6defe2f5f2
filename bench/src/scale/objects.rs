//! The cluster as objects of the API, for a real controller and a real agent. Used by `scale`.

use std::sync::Arc;

use quilla_model::{Endpoint, EndpointSlice, Family, Service, Snapshot};
use serde_json::{Value, json};

use crate::memory::Intent;

/// Rows of each Service: two ports, and the address.
const ROWS: usize = 3;

pub(super) fn intent(snapshot: &Snapshot) -> Intent {
    let slices = || snapshot.slices.values().flat_map(|slices| slices.values().map(Arc::as_ref));
    let v4 = slices().filter(|slice| slice.family == Family::V4);
    Intent {
        lists: [
            list(snapshot.services.values().map(|service| self::service(service))),
            list(slices().map(slice)),
        ],
        services: ROWS * snapshot.services.len(),
        backends: v4.map(|slice| slice.endpoints.len() * slice.ports.len()).sum(),
    }
}

fn list(items: impl Iterator<Item = Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items.collect::<Vec<_>>() })
}

/// The controller chooses the addresses.
fn service(service: &Service) -> Value {
    let families = if service.cluster_ips.len() > 1 { "PreferDualStack" } else { "SingleStack" };
    let ports = service.ports.iter().map(|port| json!({ "name": &*port.name, "port": port.port }));
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": &*service.name.name, "namespace": &*service.name.namespace },
        "spec": { "ipFamilyPolicy": families, "ports": ports.collect::<Vec<_>>() },
    })
}

fn slice(slice: &EndpointSlice) -> Value {
    let ports = slice.ports.iter().map(|port| json!({ "name": &*port.name, "port": port.port }));
    let namespace = &*slice.name.namespace;
    let endpoints = slice.endpoints.iter().map(|endpoint| self::endpoint(endpoint, namespace));
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": &*slice.name.name,
            "namespace": namespace,
            "labels": { "kubernetes.io/service-name": &*slice.service.name },
        },
        "addressType": if slice.family == Family::V4 { "IPv4" } else { "IPv6" },
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn endpoint(endpoint: &Endpoint, namespace: &str) -> Value {
    json!({
        "addresses": [endpoint.address],
        "conditions": { "ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating },
        "nodeName": endpoint.node.as_deref(),
        "targetRef": { "kind": "Pod", "namespace": namespace, "name": endpoint.pod.as_deref() },
    })
}
