//! The Node object: created once, then kept alive by its Ready condition's heartbeat.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::Node;

const HEARTBEAT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(200);

pub(crate) async fn keep(node: &Node) -> Result<()> {
    let api: Api<v1::Node> = Api::all(node.client.clone());
    loop {
        let pause = match beat(&api, node).await {
            Ok(()) => HEARTBEAT,
            Err(error) => {
                warn!(error = format!("{error:#}"), "cannot register the node");
                RETRY
            }
        };
        sleep(pause).await;
    }
}

async fn beat(api: &Api<v1::Node>, node: &Node) -> Result<()> {
    if api.get_opt(&node.name).await.context("get the node")?.is_none() {
        let object = serde_json::from_value(object(node)).context("describe the node")?;
        api.create(&PostParams::default(), &object).await.context("create the node")?;
        info!(node = node.name, "node is registered");
    }
    let patch = Patch::Merge(status(node));
    api.patch_status(&node.name, &PatchParams::default(), &patch)
        .await
        .context("report the node's status")?;
    Ok(())
}

fn object(node: &Node) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.name,
            "labels": {
                "kubernetes.io/hostname": node.name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": node.zone,
            },
        },
    })
}

fn status(node: &Node) -> Value {
    let now = Timestamp::now();
    let internal = node.addresses.iter().map(|address| json!({"type": "InternalIP", "address": address}));
    let hostname = json!({"type": "Hostname", "address": node.name});
    json!({
        "status": {
            "addresses": internal.chain([hostname]).collect::<Vec<_>>(),
            "capacity": {"pods": "110"},
            "allocatable": {"pods": "110"},
            "conditions": [{
                "type": "Ready",
                "status": "True",
                "reason": "PodletReady",
                "message": "podlet is posting ready status",
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }],
            "nodeInfo": {
                "architecture": std::env::consts::ARCH,
                "operatingSystem": "linux",
                "kubeletVersion": concat!("v1.34.0-quilla.", env!("CARGO_PKG_VERSION")),
                "containerRuntimeVersion": "quilla-podlet://1",
                "kernelVersion": "", "osImage": "namespace", "bootID": "", "machineID": "",
                "systemUUID": "", "kubeProxyVersion": "",
            },
        },
    })
}
