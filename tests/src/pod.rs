//! Pods of a test: created through the apiserver, run by the node's podlet, addressed here.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::command::in_place;
use crate::workload::Workload;

/// What a Pod is to be.
#[derive(Debug)]
pub struct PodBuilder<'c> {
    cluster: &'c Cluster,
    object: Value,
}

impl<'c> PodBuilder<'c> {
    pub(crate) fn new(cluster: &'c Cluster, node: &str, name: &str) -> Self {
        let port = json!({"name": "http", "containerPort": 8080});
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {}},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "server", "image": "quilla/pod", "ports": [port]}],
            },
        });
        Self { cluster, object }
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.object["metadata"]["labels"][key] = json!(value);
        self
    }

    /// Runs a real server instead of the harness's own; ready when it takes connections.
    pub fn runs(mut self, workload: Workload) -> Result<Self> {
        let name = self.object["metadata"]["name"].as_str().context("name of the pod")?;
        let mut container = workload.container(name, self.cluster.files())?;
        container["readinessProbe"] = json!({"tcpSocket": {"port": workload.port()}});
        self.object["spec"]["containers"] = json!([container]);
        Ok(self)
    }

    /// Puts it into the node's network.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.object["spec"]["hostNetwork"] = json!(true);
        self
    }

    /// Adds a second container that serves another port.
    #[must_use]
    pub fn sidecar(mut self, port: u16) -> Self {
        let sidecar = json!({"name": "sidecar", "image": "quilla/pod", "ports": [{"containerPort": port}]});
        if let Some(containers) = self.object["spec"]["containers"].as_array_mut() {
            containers.push(sidecar);
        }
        self
    }

    /// Ready when its server answers.
    #[must_use]
    pub fn probed(mut self) -> Self {
        let probe = json!({"httpGet": {"path": "/", "port": "http"}});
        self.object["spec"]["containers"][0]["readinessProbe"] = probe;
        self
    }

    /// Creates it without waiting for it; its name.
    pub fn create(self) -> Result<String> {
        self.cluster.apply(&self.object.to_string())?;
        let name = self.object["metadata"]["name"].as_str();
        name.map(str::to_owned).context("name of the pod")
    }

    /// Creates it and waits until it is ready.
    pub fn start(self) -> Result<Pod> {
        let cluster = self.cluster;
        cluster.wait_pod(&self.create()?)
    }
}

/// A running Pod.
#[derive(Debug)]
pub struct Pod {
    name: String,
    addresses: Vec<IpAddr>,
    netns: PathBuf,
    hooked: PathBuf,
    unhooked: PathBuf,
}

impl Pod {
    /// Finds the Pod of a ready object.
    pub(crate) fn of(cluster: &Cluster, object: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("incomplete pod");
        let (metadata, spec) = (&object["metadata"], &object["spec"]);
        let (name, node) = (text(&metadata["name"])?, cluster.node(&text(&spec["nodeName"])?));
        let ips = object["status"]["podIPs"].as_array().context("podIPs")?;
        let parse = |ip: &Value| -> Result<IpAddr> { Ok(text(&ip["ip"])?.parse()?) };
        let addresses = ips.iter().map(parse).collect::<Result<_>>()?;
        let netns = if spec["hostNetwork"] == true {
            node.netns().path().to_owned()
        } else {
            node.pod_netns(&text(&metadata["namespace"])?, &name)
        };
        let (hooked, unhooked) = (node.pod_cgroup().to_owned(), cluster.cgroup().to_owned());
        Ok(Self { name, addresses, netns, hooked, unhooked })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its address of one family.
    pub fn address(&self, v6: bool) -> IpAddr {
        let found = self.addresses.iter().find(|address| address.is_ipv6() == v6);
        *found.unwrap_or_else(|| panic!("{} has no such address: {:?}", self.name, self.addresses))
    }

    /// Path of its network namespace.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// A command as one of its processes.
    pub fn command(&self, program: &str) -> Command {
        in_place(&self.hooked, Some(&self.netns), program)
    }

    /// A command in its network but outside the cgroup of the socket hooks: Services are found per packet.
    pub fn command_without_hooks(&self, program: &str) -> Command {
        in_place(&self.unhooked, Some(&self.netns), program)
    }
}
