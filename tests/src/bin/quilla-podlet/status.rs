//! The status that is reported for a Pod.

use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::Node;
use crate::container::Container;

/// `serving` is false from the moment the Pod is told to end.
pub(crate) fn running(
    node: &Node,
    addresses: &[IpAddr],
    containers: &[Container],
    started: Timestamp,
    serving: bool,
) -> Value {
    let ready = serving && containers.iter().all(|container| container.ready);
    let condition = |kind: &str, holds: bool| {
        let status = if holds { "True" } else { "False" };
        json!({"type": kind, "status": status, "lastTransitionTime": Timestamp::now()})
    };
    let list = |addresses: &[IpAddr]| addresses.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>();
    json!({
        "status": {
            "phase": "Running",
            "hostIP": node.addresses.first(),
            "hostIPs": list(&node.addresses),
            "podIP": addresses.first(),
            "podIPs": list(addresses),
            "startTime": started,
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", true),
                condition("ContainersReady", ready),
                condition("Ready", ready),
            ],
            "containerStatuses": containers.iter().map(|one| container(one, started, serving)).collect::<Vec<_>>(),
        },
    })
}

fn container(container: &Container, started: Timestamp, serving: bool) -> Value {
    json!({
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "ready": serving && container.ready,
        "started": true,
        "restartCount": container.restarts,
        "state": {"running": {"startedAt": started}},
    })
}
