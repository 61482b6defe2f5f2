//! A node of a whole cluster, with plugin and agent that die or fail where a test wants them to. What ADD and DEL leave
//! can be looked at wherever it could be: both namespaces, the maps, the pins, the journal, the records.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, MapData};
use quilla_abi::{endpoint, map};
use quilla_cni_protocol::failpoint::{ARMED, DIRECTORY, HIT, Point};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::netns::Netns;
use quilla_tests::node;
use quilla_tests::{binary, eventually};
use serde_json::{Value, json};

use crate::node::{Answer, Pod};

/// The one node of the cluster.
pub(crate) const NODE: &str = "node-a";

/// A cluster of one node, and the directory that arms its fail-points.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    points: PathBuf,
}

impl Site {
    /// A node whose agent is ready.
    pub(crate) fn start(name: &str) -> Result<Self> {
        let cluster = Cluster::builder(name).nodes(1).control_plane()?;
        let points = cluster.node(NODE).files().join("fail-points");
        fs::create_dir(&points).context("make the folder of fail-points")?;
        let mut site = Self { cluster, points };
        // It makes the Node, without which there are no addresses.
        site.cluster.node_mut(NODE).start_podlet()?;
        site.start_agent()?;
        site.cluster.node_mut(NODE).wait_ready()?;
        Ok(site)
    }

    pub(crate) fn node(&self) -> &node::Node {
        self.cluster.node(NODE)
    }

    pub(crate) fn start_agent(&mut self) -> Result<()> {
        let program = binary::with_failpoints("quilla-agent")?;
        let mut command = self.node().command(&program.to_string_lossy());
        command.env(DIRECTORY, &self.points);
        self.cluster.node_mut(NODE).start_agent_as(command)
    }

    /// The agent is gone as after `kill -9`.
    pub(crate) fn kill_agent(&mut self) -> Result<()> {
        self.cluster.node_mut(NODE).agent()?.kill()
    }

    /// Starts the agent again if it has ended.
    pub(crate) fn revive_agent(&mut self) -> Result<()> {
        if self.cluster.node_mut(NODE).agent()?.check().is_err() {
            self.start_agent()?;
        }
        Ok(())
    }

    /// Waits for an agent that is about to end.
    pub(crate) fn agent_ends(&mut self) -> Result<()> {
        eventually::succeeds("the agent ends", || {
            let agent = self.cluster.node_mut(NODE).agent()?;
            ensure!(agent.check().is_err(), "it runs");
            Ok(())
        })
    }

    /// Waits for what an agent can do that did not end.
    pub(crate) fn goes_on(&mut self) -> Result<()> {
        self.cluster.node_mut(NODE).wait_ready()
    }

    // === fail-points ===

    /// Each happens once, after the ones before it.
    pub(crate) fn arm(&self, mode: &str, points: &[(Point, u32)]) -> Result<()> {
        let lines: Vec<String> =
            points.iter().map(|(point, skip)| format!("{point:?} {mode} {skip}\n")).collect();
        drop(fs::remove_file(self.points.join(HIT)));
        fs::write(self.points.join(ARMED), lines.concat()).context("arm fail-points")
    }

    pub(crate) fn hits(&self) -> usize {
        fs::read_to_string(self.points.join(HIT)).map_or(0, |text| text.lines().count())
    }

    /// Nothing more happens; an error when not all that was armed has.
    pub(crate) fn disarm(&self) -> Result<()> {
        let left = fs::read_to_string(self.points.join(ARMED)).unwrap_or_default();
        fs::write(self.points.join(ARMED), "").context("disarm fail-points")?;
        ensure!(left.is_empty(), "never came by {left}");
        Ok(())
    }

    // === the runtime's side ===

    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "quilla",
            "type": "quilla-cni",
            "agentSocket": self.node().files().join("run/cni.sock"),
            "dataDir": self.records(),
            "agentTimeoutSeconds": 5,
        })
    }

    fn records(&self) -> PathBuf {
        self.node().files().join("state/cni")
    }

    /// Starts the plugin, its input written.
    pub(crate) fn spawn(&self, verb: &str, pod: &Pod, config: &Value) -> Result<Child> {
        let program = binary::with_failpoints("quilla-cni")?;
        let mut command = self.node().command(&program.to_string_lossy());
        command.env(DIRECTORY, &self.points);
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0");
        command.env("CNI_NETNS", pod.netns.path()).env("CNI_PATH", "/opt/cni/bin");
        command.env("CNI_ARGS", format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", pod.id));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start the plugin")?;
        let mut input = child.stdin.take().context("standard input")?;
        // A plugin that dies at once does not read it.
        drop(input.write_all(config.to_string().as_bytes()));
        Ok(child)
    }

    pub(crate) fn call(&self, verb: &str, pod: &Pod) -> Result<Answer> {
        self.call_with(verb, pod, &self.config())
    }

    pub(crate) fn call_with(&self, verb: &str, pod: &Pod, config: &Value) -> Result<Answer> {
        let output = self.spawn(verb, pod, config)?.wait_with_output().context("wait for the plugin")?;
        Ok(Answer {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).context("standard output")?,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// ADD as a patient runtime: again while the agent is starting, and only then.
    pub(crate) fn add(&self, pod: &Pod) -> Result<Value> {
        let answer = eventually::becomes(
            "an answer to add that is not try again",
            || self.call("ADD", pod),
            |answer| !answer.stdout.contains("\"code\":11"),
        )?;
        answer.result()
    }

    /// DEL, which always succeeds.
    pub(crate) fn del(&self, pod: &Pod) -> Result<()> {
        self.call("DEL", pod)?.silence()
    }

    // === what is there ===

    /// Rows of `quilla endpoints`.
    pub(crate) fn endpoints(&self) -> Result<Vec<Value>> {
        let text = self.node().quilla(&["-o", "json", "endpoints"])?;
        serde_json::from_str(&text).context("parse endpoints")
    }

    /// Everything of Pods on the node, and the Pod's namespace.
    pub(crate) fn traces(&self, pod: &Pod) -> Result<String> {
        let mut traces = String::new();
        for arguments in
            ["-o link show", "route show table all", "-6 route show table all", "neigh show nud all"]
        {
            let text = self.node().netns().command("ip").args(arguments.split(' ')).text()?;
            let ours = text.lines().filter(|line| line.replace("quilla_", "").contains("quil"));
            // Multicast neighbours come and go by themselves.
            let ours = ours.filter(|line| !line.contains("NOARP"));
            // The order of neighbours is that of a hash table.
            for line in ours.collect::<BTreeSet<_>>() {
                writeln!(traces, "{line}")?;
            }
        }
        writeln!(traces, "maps: {:?}", self.map_keys()?)?;
        writeln!(traces, "links: {:?}", names(&self.node().bpffs().join("quilla/links"))?)?;
        writeln!(traces, "records: {:?}", names(&self.records())?)?;
        writeln!(traces, "journal: {}", json!(self.endpoints()?))?;
        writeln!(traces, "pod: {}", crate::node::network_state(&pod.netns)?)?;
        Ok(traces)
    }

    fn map_keys(&self) -> Result<Vec<String>> {
        let mut keys = self.keys::<u32, { size_of::<endpoint::Interface>() }>(map::INTERFACES)?;
        keys.extend(self.keys::<[u8; 4], { size_of::<endpoint::Endpoint>() }>(map::ENDPOINTS_V4)?);
        keys.extend(self.keys::<[u8; 16], { size_of::<endpoint::Endpoint>() }>(map::ENDPOINTS_V6)?);
        Ok(keys)
    }

    fn keys<K: aya::Pod + Ord + std::fmt::Debug, const N: usize>(&self, name: &str) -> Result<Vec<String>> {
        let path = self.node().bpffs().join("quilla/maps").join(name);
        let data = MapData::from_pin(&path).with_context(|| format!("open {}", path.display()))?;
        let map = HashMap::<_, K, [u8; N]>::try_from(aya::maps::Map::HashMap(data))
            .with_context(|| format!("read {name}"))?;
        let mut keys = map.keys().collect::<Result<Vec<_>, _>>().with_context(|| format!("list {name}"))?;
        keys.sort();
        Ok(keys.iter().map(|key| format!("{name} {key:?}")).collect())
    }
}

/// A Pod's namespace under the name its container has too.
pub(crate) fn pod(id: &str) -> Result<Pod> {
    Ok(Pod { netns: Netns::create(id)?, id: id.to_owned() })
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    match fs::read_dir(folder) {
        Ok(entries) => {
            Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).with_context(|| format!("list {}", folder.display())),
    }
}
