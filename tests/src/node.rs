//! A node that runs: its agent, its podlet, and commands on it.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::cgroup::Cgroup;
use crate::command::{Daemon, Run, in_place};
use crate::sandbox::BPFFS;
use crate::topology::Machine;
use crate::{binary, eventually};

/// Where a node's agent serves health and metrics, on the node's loopback.
pub const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9640);

/// Flow table entries per node: enough for any test here, and little enough for many nodes on one machine.
const FLOWS: &str = "65536";

/// A node of a cluster.
#[derive(Debug)]
pub struct Node {
    // Processes first: fields are dropped in this order, and a namespace should end after its processes.
    agent: Option<Daemon>,
    podlet: Option<Daemon>,
    pods: Cgroup,
    machine: Machine,
    files: PathBuf,
    bpffs: PathBuf,
    kubeconfig: PathBuf,
}

impl Node {
    /// The node's folders and network configuration; nothing runs yet.
    pub(crate) fn prepare(cluster: &str, machine: Machine, files: &Path, kubeconfig: &Path) -> Result<Self> {
        let files = files.join(&machine.name);
        let bpffs = Path::new(BPFFS).join(cluster).join(&machine.name);
        for folder in [files.join("run"), files.join("state"), files.join("log"), bpffs.clone()] {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let pods = machine.cgroup.child("pods")?;
        let node = Self {
            agent: None,
            podlet: None,
            pods,
            machine,
            files,
            bpffs,
            kubeconfig: kubeconfig.to_owned(),
        };
        let list = json!({
            "cniVersion": "1.1.0",
            "name": "quilla",
            "plugins": [{
                "type": "quilla-cni",
                "agentSocket": node.files.join("run/cni.sock"),
                "dataDir": node.files.join("state/cni"),
                "capabilities": { "portMappings": true },
            }],
        });
        fs::write(node.files.join("quilla.conflist"), list.to_string())
            .context("write the network configuration")?;
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.machine.addresses
    }

    /// Its network namespace.
    pub fn netns(&self) -> &crate::netns::Netns {
        &self.machine.netns
    }

    /// Where its agent pins programs and maps.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Where its agent listens and keeps its state.
    pub fn files(&self) -> &Path {
        &self.files
    }

    /// A command of the node's operator: in its network and, like all its processes, under its socket hooks.
    pub fn command(&self, program: &str) -> Command {
        in_place(self.machine.cgroup.path(), Some(self.machine.netns.path()), program)
    }

    /// Starts the agent, which may have run before.
    pub fn start_agent(&mut self) -> Result<()> {
        self.start_agent_with(&[])
    }

    /// The same, with more arguments.
    pub fn start_agent_with(&mut self, arguments: &[&str]) -> Result<()> {
        let program = binary::path("quilla-agent")?;
        let mut command = self.command(&program.to_string_lossy());
        command.args(arguments);
        self.start_agent_as(command)
    }

    /// Starts an agent by a command of the node's operator, to which its arguments are added.
    pub fn start_agent_as(&mut self, mut command: Command) -> Result<()> {
        command.args(["--node-name", self.name(), "--uplink", "eth0"]);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg("--cgroup").arg(self.machine.cgroup.path());
        command.arg("--bpffs").arg(&self.bpffs);
        command.arg("--state-dir").arg(self.files.join("state"));
        command.arg("--run-dir").arg(self.files.join("run"));
        command.args(["--metrics", &METRICS.to_string(), "--flow-capacity", FLOWS]);
        self.agent = None;
        self.agent = Some(Daemon::start("quilla-agent", &mut command, &self.log("agent"))?);
        Ok(())
    }

    /// The agent; an error when it has not been started.
    pub fn agent(&mut self) -> Result<&mut Daemon> {
        self.agent.as_mut().context("the agent has not been started")
    }

    /// Starts the podlet.
    pub fn start_podlet(&mut self) -> Result<()> {
        self.announce(&self.machine.addresses.clone())
    }

    /// Starts the podlet, which has the cluster know the node by these addresses. One that runs is replaced, and the Pods
    /// with it.
    pub fn announce(&mut self, addresses: &[IpAddr]) -> Result<()> {
        self.podlet = None;
        let program = binary::path("quilla-podlet")?;
        let mut command = self.command(&program.to_string_lossy());
        command.args(["--node-name", self.name()]);
        for address in addresses {
            command.args(["--address", &address.to_string()]);
        }
        command.args(["--zone", &format!("zone-{}", &self.name()[5..])]);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command.arg("--cni-conf").arg(self.files.join("quilla.conflist"));
        command.arg("--cni-bin").arg(binary::folder()?);
        command.arg("--cgroup").arg(self.pods.path());
        command.arg("--server").arg(binary::path("quilla-pod")?);
        command.args(["--netns-prefix", self.machine.netns.name()]);
        command.arg("--log-dir").arg(self.files.join("log"));
        self.podlet = Some(Daemon::start("quilla-podlet", &mut command, &self.log("podlet"))?);
        Ok(())
    }

    /// `kill -9` of the podlet: the node's object and its Pods stay as they are, and nobody looks after them.
    pub fn kill_podlet(&mut self) -> Result<()> {
        self.podlet.as_mut().context("the podlet has not been started")?.kill()?;
        self.podlet = None;
        Ok(())
    }

    /// `kill -9` of the agent, which is not expected to come again.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent()?.kill()?;
        self.agent = None;
        Ok(())
    }

    /// Waits until the agent has found itself able to serve.
    pub fn wait_ready(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("the agent has not been started")?;
        let ready = eventually::succeeds_while(
            &format!("agent of {} is ready", self.machine.name),
            || agent.check(),
            || {
                let answer = self.http(METRICS, "/readyz")?;
                ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                Ok(())
            },
        );
        self.agent = Some(agent);
        ready
    }

    /// What `quilla` prints, asking this node's agent.
    pub fn quilla(&self, arguments: &[&str]) -> Result<String> {
        let program = binary::path("quilla")?;
        let mut command = self.command(&program.to_string_lossy());
        command.arg("--socket").arg(self.files.join("run/admin.sock")).args(arguments).text()
    }

    /// The agent's metrics as text.
    pub fn metrics(&self) -> Result<String> {
        self.http(METRICS, "/metrics")
    }

    /// One HTTP request from the node, answer with its headers.
    pub fn http(&self, to: SocketAddr, path: &str) -> Result<String> {
        let exchange = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        self.machine.netns.run(exchange)?.with_context(|| format!("get {path} from {to}"))
    }

    /// Path of the network namespace of a Pod of this node.
    pub(crate) fn pod_netns(&self, namespace: &str, pod: &str) -> PathBuf {
        Path::new("/run/netns").join(format!("{}.{namespace}.{pod}", self.machine.netns.name()))
    }

    /// Cgroup in which Pods run.
    pub(crate) fn pod_cgroup(&self) -> &Path {
        self.pods.path()
    }

    /// Log file of a component.
    pub(crate) fn log(&self, component: &str) -> PathBuf {
        self.files.join("log").join(format!("{component}.log"))
    }

    /// The running components.
    pub(crate) fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.agent.iter().chain(&self.podlet)
    }
}
