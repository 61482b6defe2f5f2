//! A whole cluster: control plane, nodes, agents, and `kubectl`.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use quilla_tests::cluster::Cluster;
//!
//! let cluster = Cluster::builder("pods-talk").nodes(2).start()?;
//! let client = cluster.pod("node-a", "client").start()?;
//! let server = cluster.pod("node-b", "server").start()?;
//! # let _ = (client, server);
//! cluster.stop()
//! # }
//! ```
//!
//! A test ends with [`Cluster::stop`]. A cluster that is dropped without it, because of an error or a panic, first
//! prints what it knows.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::command::{Daemon, Run};
use crate::netns::Netns;
use crate::node::Node;
use crate::pod::{Pod, PodBuilder};
use crate::sandbox::{FILES, Sandbox};
use crate::topology::{FABRIC, Machine, Topology};
use crate::{binary, dump, eventually, netns};

const PORT: u16 = 6443;

/// What a cluster is to be.
#[derive(Debug)]
pub struct Builder {
    name: String,
    nodes: u8,
    agent: Vec<String>,
}

impl Builder {
    /// How many nodes.
    #[must_use]
    pub fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// More arguments of the agents.
    #[must_use]
    pub fn agent(mut self, arguments: &[&str]) -> Self {
        self.agent = arguments.iter().map(|&argument| argument.to_owned()).collect();
        self
    }

    /// The control plane and bare nodes, without agents and podlets.
    pub fn control_plane(self) -> Result<Cluster> {
        let cgroup = Cgroup::create(&Sandbox::current()?.cgroup().join(&self.name))?;
        let Topology { fabric, outside, nodes, cgroup } = Topology::build(&self.name, self.nodes, cgroup)?;
        let files = Path::new(FILES).join(&self.name);
        fs::create_dir_all(&files).with_context(|| format!("create {}", files.display()))?;
        let mut cluster = Cluster {
            controller: None,
            nodes: Vec::new(),
            outside,
            fabric,
            cgroup,
            kubeconfig: files.join("control-plane/admin.kubeconfig"),
            files,
            stopped: false,
        };
        cluster.start_controller()?;
        cluster.add_nodes(&self.name, nodes)?;
        Ok(cluster)
    }

    /// Everything, and waits until it is ready.
    pub fn start(mut self) -> Result<Cluster> {
        let arguments = std::mem::take(&mut self.agent);
        let mut cluster = self.control_plane()?;
        cluster.start_nodes_with(&arguments)?;
        Ok(cluster)
    }
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    controller: Option<Daemon>,
    nodes: Vec<Node>,
    outside: Netns,
    fabric: Netns,
    cgroup: Cgroup,
    files: PathBuf,
    kubeconfig: PathBuf,
    stopped: bool,
}

impl Cluster {
    /// Describes a cluster; the name is the test's, and unique in its binary.
    pub fn builder(name: &str) -> Builder {
        Builder { name: name.to_owned(), nodes: 2, agent: Vec::new() }
    }

    /// Starts the controller, which may have run before, and waits until it serves.
    pub fn start_controller(&mut self) -> Result<()> {
        let data = self.files.join("control-plane");
        let mut command = self.fabric.command(&binary::path("quilla-controller")?.to_string_lossy());
        command.arg("--data-dir").arg(&data);
        command.args(["--listen", &format!("{}:{PORT}", FABRIC[0]), "--advertise-address", FABRIC[0]]);
        for range in ["10.244.0.0/16", "fd00:244::/48"] {
            command.args(["--cluster-cidr", range]);
        }
        for range in ["10.96.0.0/16", "fd00:96::/112"] {
            command.args(["--service-cidr", range]);
        }
        let controller =
            Daemon::start("quilla-controller", &mut command, &self.files.join("controller.log"))?;
        self.controller = Some(controller);
        eventually::succeeds("the apiserver serves", || {
            self.controller()?.check()?;
            self.kubectl(&["get", "namespace", "default"])
        })
        .map(drop)
    }

    fn add_nodes(&mut self, name: &str, machines: Vec<Machine>) -> Result<()> {
        for machine in machines {
            self.nodes.push(Node::prepare(name, machine, &self.files, &self.kubeconfig)?);
        }
        Ok(())
    }

    /// Starts podlets and agents, and waits until the agents can serve.
    pub fn start_nodes(&mut self) -> Result<()> {
        self.start_nodes_with(&[])
    }

    /// The same, with more arguments of the agents.
    fn start_nodes_with(&mut self, arguments: &[String]) -> Result<()> {
        for node in &mut self.nodes {
            node.start_podlet()?;
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        for node in &mut self.nodes {
            node.start_agent_with(&arguments)?;
        }
        self.nodes.iter_mut().try_for_each(Node::wait_ready)
    }

    /// `kill -9` of the controller from where the cluster is only read; it is to be started again.
    pub fn crash_controller(&self) -> Result<()> {
        self.controller.as_ref().context("the controller has not been started")?.signal(Signal::KILL)
    }

    /// The controller.
    pub fn controller(&mut self) -> Result<&mut Daemon> {
        self.controller.as_mut().context("the controller has not been started")
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> &Node {
        let node = self.nodes.iter().find(|node| node.name() == name);
        node.unwrap_or_else(|| panic!("no node {name}"))
    }

    /// A node, to change it.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        let node = self.nodes.iter_mut().find(|node| node.name() == name);
        node.unwrap_or_else(|| panic!("no node {name}"))
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Describes a Pod on a node.
    pub fn pod(&self, node: &str, name: &str) -> PodBuilder<'_> {
        PodBuilder::new(self, node, name)
    }

    /// The host beyond the underlay.
    pub fn outside(&self) -> &Netns {
        &self.outside
    }

    /// The underlay's bridge and router.
    pub fn fabric(&self) -> &Netns {
        &self.fabric
    }

    /// Credentials of the administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Where its components and its tests keep files.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// Lets the underlay, and so the outside, send what is for `address` to a node: what a router does with the address
    /// of a load balancer.
    pub fn route(&self, address: IpAddr, node: &str) -> Result<()> {
        let node = self.node(node).addresses()[usize::from(address.is_ipv6())];
        self.fabric.ip(&format!("route replace {address} via {node}")).map(drop)
    }

    /// Above the nodes' cgroups, so outside all socket hooks.
    pub(crate) fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The running components.
    pub(crate) fn daemons(&self) -> impl Iterator<Item = (&str, &Daemon)> {
        let nodes = self.nodes.iter().flat_map(|node| node.daemons().map(|daemon| (node.name(), daemon)));
        self.controller.iter().map(|controller| ("control plane", controller)).chain(nodes)
    }

    /// The command that runs kubectl as the administrator.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.fabric.command("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        // Its discovery cache would otherwise be shared between clusters of the same address.
        command.env("HOME", &self.files).env_remove("KUBECONFIG");
        command
    }

    /// Runs the real kubectl; its output.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_command(arguments).text()
    }

    /// `kubectl apply` of manifests.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_command(&["apply", "--validate=false", "-f", "-"]).text_from(manifests)
    }

    /// `kubectl get -o json`.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).context("parse kubectl's output")
    }

    /// Deletes a Pod and waits until it is gone.
    pub fn delete_pod(&self, name: &str) -> Result<()> {
        self.kubectl(&["delete", "pod", name, "--wait=true", "--timeout=60s"]).map(drop)
    }

    /// Waits until a Pod of the default namespace is ready.
    pub fn wait_pod(&self, name: &str) -> Result<Pod> {
        let object = eventually::succeeds(&format!("pod {name} is ready"), || {
            let object = self.get(&["pod", name])?;
            let conditions = object["status"]["conditions"].as_array();
            let ready =
                conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
            ensure!(ready, "last status: {}", object["status"]);
            Ok(object)
        })?;
        Pod::of(self, &object)
    }

    /// Waits until a Service has so many ready endpoints; its ClusterIPs.
    pub fn wait_service(&self, name: &str, endpoints: usize) -> Result<Vec<String>> {
        let selector = format!("kubernetes.io/service-name={name}");
        eventually::becomes(
            &format!("endpoints of {name}"),
            || {
                let slices = self.get(&["endpointslices", "-l", &selector])?;
                let all = slices["items"].as_array().into_iter().flatten();
                let v4 = all.filter(|slice| slice["addressType"] == "IPv4");
                let ready = v4.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
                Ok(ready.filter(|endpoint| endpoint["conditions"]["ready"] == true).count())
            },
            |ready| *ready == endpoints,
        )?;
        let service = self.get(&["service", name])?;
        let ips = service["spec"]["clusterIPs"].as_array().context("clusterIPs")?;
        Ok(ips.iter().filter_map(|ip| ip.as_str().map(str::to_owned)).collect())
    }

    /// Ends all of it in order; what a test that found nothing wrong does last.
    pub fn stop(mut self) -> Result<()> {
        self.stopped = true;
        let nodes = self.nodes.iter_mut();
        nodes
            .filter_map(|node| node.agent().ok())
            .try_for_each(|agent| agent.stop(Duration::from_secs(5)))?;
        self.controller()?.stop(Duration::from_secs(5))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.stopped {
            dump::cluster(self);
        }
        // The nodes' own go with their owners; those of Pods belong to podlets, which are about to be killed.
        for node in &self.nodes {
            netns::remove_all(&format!("{}.", node.netns().name()));
            // What is pinned outlives the agents, by design, and would fill the sandbox's memory test by test.
            if let Err(error) = fs::remove_dir_all(node.bpffs()) {
                eprintln!("remove {}: {error}", node.bpffs().display());
            }
        }
    }
}
