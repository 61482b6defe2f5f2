//! A plugin that is measured: where it is, what it is told, in whose namespace it runs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quilla_tests::binary;
use quilla_tests::netns::{Netns, run_inside};
use quilla_tests::node::Node;
use serde_json::{Value, json};

use super::disk::Disk;

/// Where Debian has the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// What is timed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb {
    Add,
    Del,
}

/// A plugin with its configuration, and the host it works on.
pub(super) struct Contender {
    /// What a reader calls it.
    pub(super) name: &'static str,
    /// A word for names of namespaces.
    pub(super) id: &'static str,
    pub(super) is_ours: bool,
    program: PathBuf,
    config: Value,
    host: PathBuf,
    /// The references' host, which ends with them.
    _host: Option<Netns>,
}

impl Contender {
    /// Ours on nodes of a cluster, the references each on a host of its own.
    pub(super) fn all(clsact: &Node, tcx: &Node, disk: &Disk) -> Result<Vec<Self>> {
        let ptp = Self::reference("ptp", 1, &json!({}), disk)?;
        let bridge = Self::reference("bridge", 2, &json!({ "bridge": "cni0", "isGateway": true }), disk)?;
        Ok(vec![Self::ours("quilla", "clsact", clsact)?, Self::ours("quilla, tcx", "tcx", tcx)?, ptp, bridge])
    }

    fn ours(name: &'static str, id: &'static str, node: &Node) -> Result<Self> {
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "quilla",
            "type": "quilla-cni",
            "agentSocket": node.files().join("run/cni.sock"),
            "dataDir": node.files().join("state/cni"),
        });
        Ok(Self {
            name,
            id,
            is_ours: true,
            program: binary::path("quilla-cni")?,
            config,
            host: node.netns().path().to_owned(),
            _host: None,
        })
    }

    fn reference(name: &'static str, network: u8, own: &Value, disk: &Disk) -> Result<Self> {
        let program = Path::new(REFERENCE).join(name);
        ensure!(program.is_file(), "{} is missing: install containernetworking-plugins", program.display());
        let host = Netns::create(&format!("cni-host-{name}"))?;
        let data = disk.folder(&format!("host-local-{name}"))?;
        let mut config = json!({
            "cniVersion": "1.0.0",
            "name": name,
            "type": name,
            "mtu": 1450,
            "ipam": {
                "type": "host-local",
                "dataDir": data,
                "ranges": [[{ "subnet": format!("10.99.{network}.0/24") }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        });
        for (key, value) in own.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        let (host_path, host) = (host.path().to_owned(), Some(host));
        Ok(Self { name, id: name, is_ours: false, program, config, host: host_path, _host: host })
    }

    /// From the start of the process to its exit; `None` for an ADD that failed, which a runtime tries again.
    pub(super) fn call(&self, verb: Verb, pod: &Netns, id: &str) -> Result<Option<Duration>> {
        let mut command = self.command(verb, pod, id);
        let input = self.config.to_string();
        let timed = move || -> Result<_> {
            let start = Instant::now();
            let mut child = command.spawn().context("start the plugin")?;
            child.stdin.take().context("standard input")?.write_all(input.as_bytes()).context("write")?;
            let output = child.wait_with_output().context("wait for the plugin")?;
            Ok((start.elapsed(), output))
        };
        // Started by a thread that is on the host, as a runtime is.
        let (elapsed, output) = run_inside(&self.host, timed)??;
        let succeeded = output.status.success();
        ensure!(succeeded || matches!(verb, Verb::Add), "{verb:?}: {output:?}");
        Ok(succeeded.then_some(elapsed))
    }

    fn command(&self, verb: Verb, pod: &Netns, id: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.env("CNI_COMMAND", if matches!(verb, Verb::Add) { "ADD" } else { "DEL" });
        command.env("CNI_CONTAINERID", id).env("CNI_NETNS", pod.path()).env("CNI_IFNAME", "eth0");
        command.env("CNI_PATH", REFERENCE);
        // Without a Pod: for one that its watch does not know, as for none that a kubelet starts, the agent would ask the
        // apiserver first.
        command.env("CNI_ARGS", "IgnoreUnknown=1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}
