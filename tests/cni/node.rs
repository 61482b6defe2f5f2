//! A node: a namespace as the host, the agent, and the plugin called as a runtime calls it.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_tests::command::Run;
use quilla_tests::netns::Netns;
use quilla_tests::sandbox;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::agent::{Agent, Recorder, pools};

/// A host namespace with an agent.
#[derive(Debug)]
pub(crate) struct Node {
    name: &'static str,
    pub(crate) host: Netns,
    pub(crate) files: TempDir,
    pub(crate) recorder: Recorder,
    pub(crate) agent: Option<Agent>,
}

/// A Pod's namespace with the container identifier it is known by.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) netns: Netns,
}

/// One call of the plugin: environment and configuration, to be bent by the tests.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    host: PathBuf,
    pub(crate) env: Vec<(&'static str, String)>,
    pub(crate) config: Value,
}

/// What the plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Node {
    /// A node whose namespaces are named after the test.
    pub(crate) fn start(name: &'static str) -> Result<Self> {
        let mut node = Self::without_agent(name)?;
        node.start_agent()?;
        Ok(node)
    }

    /// A node whose agent is down.
    pub(crate) fn without_agent(name: &'static str) -> Result<Self> {
        let host = Netns::create(&format!("qcni-{name}"))?;
        let files =
            tempfile::Builder::new().prefix(name).tempdir_in(sandbox::FILES).context("make folder")?;
        Ok(Self { name, host, files, recorder: Recorder::default(), agent: None })
    }

    pub(crate) fn start_agent(&mut self) -> Result<()> {
        self.agent = Some(Agent::start(self.files.path(), Some(pools()), self.recorder.clone())?);
        Ok(())
    }

    /// The agent is gone as after a crash.
    pub(crate) fn kill_agent(&mut self) {
        self.agent = None;
    }

    pub(crate) fn pod(&self, name: &str) -> Result<Pod> {
        let name = format!("{}-{name}", self.name);
        Ok(Pod { netns: Netns::create(&format!("qcni-{name}"))?, id: name })
    }

    /// A call with everything a runtime sets.
    pub(crate) fn call(&self, command: &str, pod: &Pod) -> Call {
        let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};X=y", pod.id);
        Call {
            host: self.host.path().to_owned(),
            env: vec![
                ("CNI_COMMAND", command.to_owned()),
                ("CNI_CONTAINERID", pod.id.clone()),
                ("CNI_NETNS", pod.netns.path().display().to_string()),
                ("CNI_IFNAME", "eth0".to_owned()),
                ("CNI_ARGS", args),
                ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ],
            config: json!({
                "cniVersion": "1.1.0",
                "name": "quilla",
                "type": "quilla-cni",
                "agentSocket": self.files.path().join("cni.sock"),
                "dataDir": self.records(),
                "agentTimeoutSeconds": 3,
            }),
        }
    }

    /// ADD, which must succeed; its result.
    pub(crate) fn add(&self, pod: &Pod) -> Result<Value> {
        self.call("ADD", pod).run()?.result()
    }

    /// DEL, which must succeed.
    pub(crate) fn del(&self, pod: &Pod) -> Result<()> {
        self.call("DEL", pod).run()?.silence()
    }

    pub(crate) fn records(&self) -> PathBuf {
        self.files.path().join("records")
    }

    /// Number of release records.
    pub(crate) fn record_count(&self) -> Result<usize> {
        match std::fs::read_dir(self.records()) {
            Ok(entries) => Ok(entries.count()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).context("list records"),
        }
    }

    /// Everything ADD could leave behind on the host and in the Pod.
    pub(crate) fn state(&self, pod: &Pod) -> Result<String> {
        Ok(format!("host:\n{}\npod:\n{}", network_state(&self.host)?, network_state(&pod.netns)?))
    }
}

/// Links, addresses, routes, rules, neighbours and the settings ADD touches.
pub(crate) fn network_state(netns: &Netns) -> Result<String> {
    let mut state = String::new();
    for arguments in [
        "-d -o link show",
        "-o addr show",
        "-4 route show table all",
        "-6 route show table all",
        "-4 rule show",
        "-6 rule show",
        "neigh show nud all",
    ] {
        state.push_str(&netns.command("ip").args(arguments.split(' ')).text()?);
    }
    let settings = "grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf 2>/dev/null | sort";
    state.push_str(&netns.command("sh").args(["-c", settings]).text()?);
    Ok(state)
}

impl Call {
    /// Replaces or removes a variable.
    #[must_use]
    pub(crate) fn with_env(mut self, name: &'static str, value: Option<&str>) -> Self {
        self.env.retain(|(key, _)| *key != name);
        self.env.extend(value.map(|value| (name, value.to_owned())));
        self
    }

    /// Replaces or adds a configuration key.
    #[must_use]
    pub(crate) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config[key] = value.into();
        self
    }

    pub(crate) fn run(&self) -> Result<Answer> {
        self.run_with_input(self.config.to_string().as_bytes())
    }

    /// The plugin, for a thread that is in the host's namespace.
    pub(crate) fn command_on_host(&self) -> Result<Command> {
        Ok(self.prepare(Command::new(plugin()?)))
    }

    /// The plugin in the host's namespace.
    pub(crate) fn command(&self) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.host.display())).arg("--").arg(plugin()?);
        Ok(self.prepare(command))
    }

    /// Nothing but the call's own variables in the environment.
    fn prepare(&self, mut command: Command) -> Command {
        command.env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
        command.envs(self.env.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run_with_input(&self, input: &[u8]) -> Result<Answer> {
        let mut child = self.command()?.spawn().context("start the plugin")?;
        let mut stdin = child.stdin.take().context("standard input")?;
        // The plugin may refuse before it has read everything.
        drop(stdin.write_all(input));
        drop(stdin);
        let output = child.wait_with_output().context("wait for the plugin")?;
        Ok(Answer {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).context("standard output")?,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

impl Answer {
    /// The result of a call that must succeed and say something.
    pub(crate) fn result(&self) -> Result<Value> {
        ensure!(self.success, "the plugin failed: {self:?}");
        serde_json::from_str(&self.stdout).with_context(|| format!("{self:?}"))
    }

    /// A call that must succeed and say nothing.
    pub(crate) fn silence(&self) -> Result<()> {
        ensure!(self.success && self.stdout.is_empty(), "want success in silence: {self:?}");
        Ok(())
    }

    /// The error object of a call that must fail; CNI-1 and CNI-2 ask for all of this.
    pub(crate) fn error(&self, code: u64) -> Result<Value> {
        ensure!(!self.success, "the plugin succeeded: {self:?}");
        let error: Value = serde_json::from_str(&self.stdout).with_context(|| format!("{self:?}"))?;
        ensure!(error["code"] == code, "want code {code}: {self:?}");
        let texts = ["cniVersion", "msg", "details"];
        let complete = texts.iter().all(|key| error[key].as_str().is_some_and(|text| !text.is_empty()));
        ensure!(complete, "incomplete error object: {self:?}");
        ensure!(!self.stderr.is_empty(), "nothing in the log: {self:?}");
        Ok(error)
    }
}

/// The plugin's binary: the one named, or the one beside this test's folder.
pub(crate) fn plugin() -> Result<PathBuf> {
    if let Some(named) = env::var_os("QUILLA_CNI_PLUGIN") {
        return Ok(named.into());
    }
    let own = env::current_exe().context("find this program")?;
    let folder = own.parent().and_then(Path::parent).context("find the target folder")?;
    let path = folder.join("quilla-cni");
    ensure!(path.exists(), "{} is missing: run `cargo build -p quilla-cni` first", path.display());
    Ok(path)
}

/// The Pod's addresses in a result, without their prefix lengths.
pub(crate) fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().cloned().unwrap_or_default();
    let addresses = ips.iter().filter_map(|ip| ip["address"].as_str()?.split('/').next().map(str::to_owned));
    addresses.collect()
}
