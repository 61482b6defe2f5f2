//! One Pod's life: namespace, network, processes, readiness; then all of it backwards.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use quilla_tests::cni::{Attachment, addresses};
use quilla_tests::command::Run;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::container::Container;
use crate::probe::Probe;
use crate::{Node, status};

const RETRY: Duration = Duration::from_millis(300);
/// A process that has not ended by then is killed; the API's default of 30 s would only make tests wait.
const MOST_GRACE: Duration = Duration::from_secs(2);

/// What a running Pod has.
struct Running {
    addresses: Vec<IpAddr>,
    containers: Vec<Container>,
    started: Timestamp,
}

pub(crate) async fn run(node: Arc<Node>, pod: Pod, stop: CancellationToken) {
    let shown = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let sandbox = Sandbox::of(&node, &pod);
    if let Some(mut running) = start(&node, &pod, &sandbox, &stop, &shown).await {
        info!(pod = shown, addresses = ?running.addresses, "pod is running");
        watch(&node, &pod, &mut running, &stop, &shown).await;
        report(&node, &pod, &running, false, &shown).await;
        for container in &mut running.containers {
            container.stop(MOST_GRACE).await;
        }
    }
    while let Err(error) = sandbox.remove(&node).await {
        warn!(pod = shown, error = format!("{error:#}"), "cannot take the pod down, trying again");
        sleep(RETRY).await;
    }
    if let Err(error) = finalise(&node, &pod).await {
        warn!(pod = shown, error = format!("{error:#}"), "cannot finish the deletion");
    }
    info!(pod = shown, "pod is gone");
}

/// Tries until it works or is no longer wanted.
async fn start(
    node: &Node,
    pod: &Pod,
    sandbox: &Sandbox,
    stop: &CancellationToken,
    shown: &str,
) -> Option<Running> {
    while !stop.is_cancelled() {
        match sandbox.set_up(node, pod).await {
            Ok(running) => return Some(running),
            Err(error) => {
                warn!(pod = shown, error = format!("{error:#}"), "cannot start the pod, trying again");
            }
        }
        if let Err(error) = sandbox.remove(node).await {
            warn!(pod = shown, error = format!("{error:#}"), "cannot undo the failed start");
        }
        tokio::select! { () = sleep(RETRY) => {}, () = stop.cancelled() => {} }
    }
    None
}

/// Probes, restarts what ended and reports what changed, until told to stop.
async fn watch(node: &Node, pod: &Pod, running: &mut Running, stop: &CancellationToken, shown: &str) {
    let probes: Vec<Option<Probe>> =
        running.containers.iter().map(|container| container.probe.clone()).collect();
    let mut reported = None;
    while !stop.is_cancelled() {
        let address = running.addresses.first().copied();
        for (container, probe) in running.containers.iter_mut().zip(&probes) {
            let alive = container.keep_alive().unwrap_or_else(|error| {
                warn!(pod = shown, error = format!("{error:#}"), "cannot restart a container");
                false
            });
            container.ready = alive
                && match (probe, address) {
                    (Some(probe), Some(address)) => probe.succeeds(address).await,
                    _ => true,
                };
        }
        let state: Vec<_> = running.containers.iter().map(|one| (one.ready, one.restarts)).collect();
        if reported.as_ref() != Some(&state) && report(node, pod, running, true, shown).await {
            reported = Some(state);
        }
        tokio::select! { () = sleep(Duration::from_millis(500)) => {}, () = stop.cancelled() => {} }
    }
}

/// Whether the report arrived.
async fn report(node: &Node, pod: &Pod, running: &Running, serving: bool, shown: &str) -> bool {
    let status = status::running(node, &running.addresses, &running.containers, running.started, serving);
    let api: Api<Pod> = Api::namespaced(node.client.clone(), &pod.namespace().unwrap_or_default());
    let outcome = api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status)).await;
    if let Err(error) = &outcome {
        warn!(pod = shown, error = %error, "cannot report the pod's status");
    }
    outcome.is_ok()
}

/// Removes the object, unless another one has taken its name.
async fn finalise(node: &Node, pod: &Pod) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(node.client.clone(), &pod.namespace().unwrap_or_default());
    let preconditions = Preconditions { uid: pod.uid(), ..Preconditions::default() };
    let parameters = DeleteParams::default().grace_period(0).preconditions(preconditions);
    match api.delete(&pod.name_any(), &parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error).context("delete the pod"),
    }
}

/// The host ports of its containers, as a kubelet tells them to the runtime.
fn port_mappings(pod: &Pod) -> Vec<Value> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let mapping = |port: &ContainerPort| {
        let (protocol, host_ip) = (port.protocol.as_deref().unwrap_or("TCP"), port.host_ip.as_deref());
        Some(json!({
            "hostPort": port.host_port?,
            "containerPort": port.container_port,
            "protocol": protocol.to_lowercase(),
            "hostIP": host_ip.unwrap_or_default(),
        }))
    };
    ports.filter_map(mapping).collect()
}

/// The Pod's network namespace; Pods of the host's network have none of their own.
struct Sandbox {
    netns: Option<String>,
    attachment: Attachment,
}

impl Sandbox {
    fn of(node: &Node, pod: &Pod) -> Self {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let uid = pod.uid().unwrap_or_default();
        let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        let netns = format!("{}.{namespace}.{name}", node.netns_prefix);
        let attachment = Attachment {
            container_id: uid.clone(),
            netns: Path::new("/run/netns").join(&netns),
            pod: [namespace, name, uid],
            runtime_config: json!({ "portMappings": port_mappings(pod) }),
        };
        Self { netns: (!host_network).then_some(netns), attachment }
    }

    async fn set_up(&self, node: &Node, pod: &Pod) -> Result<Running> {
        let addresses = match &self.netns {
            None => node.addresses.clone(),
            Some(netns) => self.wire(node, netns.clone()).await?,
        };
        let spec = pod.spec.as_ref().context("the pod has no spec")?;
        let netns = self.netns.as_ref().map(|_| self.attachment.netns.as_path());
        let containers =
            spec.containers.iter().map(|container| Container::start(node, pod, container, netns));
        let containers = containers.collect::<Result<_>>()?;
        Ok(Running { addresses, containers, started: Timestamp::now() })
    }

    async fn wire(&self, node: &Node, netns: String) -> Result<Vec<IpAddr>> {
        let (network, attachment) = (node.network.clone(), self.attachment.clone());
        let result: Value = spawn_blocking(move || {
            Command::new("ip").args(["netns", "add", &netns]).text()?;
            Command::new("ip").args(["-n", &netns, "link", "set", "lo", "up"]).text()?;
            network.add(&attachment)
        })
        .await
        .context("wire the pod")??;
        addresses(&result)
    }

    /// Also after a partial set-up: DEL of nothing is no error, and a missing namespace is what is wanted.
    async fn remove(&self, node: &Node) -> Result<()> {
        let Some(netns) = self.netns.clone() else { return Ok(()) };
        let (network, attachment) = (node.network.clone(), self.attachment.clone());
        spawn_blocking(move || {
            network.del(&attachment, None)?;
            if attachment.netns.exists() {
                Command::new("ip").args(["netns", "del", &netns]).text()?;
            }
            Ok(())
        })
        .await
        .context("take the pod down")?
    }
}
