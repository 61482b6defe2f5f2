//! A container: a process in the Pod's namespace and in the Pods' cgroup.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use kube::ResourceExt;
use quilla_tests::command::in_place;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command as AsyncCommand};
use tokio::time::timeout;

use crate::Node;
use crate::probe::Probe;

pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) probe: Option<Probe>,
    pub(crate) ready: bool,
    pub(crate) restarts: u32,
    command: AsyncCommand,
    child: Child,
}

impl Container {
    /// `netns` is `None` in the host's network, where this process already is.
    pub(crate) fn start(node: &Node, pod: &Pod, spec: &Spec, netns: Option<&Path>) -> Result<Self> {
        let mut command = in_place(&node.cgroup, netns, &program(node, spec));
        if spec.command.is_none() {
            command.args(["--name", &pod.name_any()]);
            for port in spec.ports.iter().flatten() {
                command.arg("--port").arg(port.container_port.to_string());
            }
            if netns.is_none() {
                command.args(node.addresses.iter().map(|address| format!("--address={address}")));
            }
        }
        for word in spec.command.iter().flatten().skip(1).chain(spec.args.iter().flatten()) {
            command.arg(word);
        }
        let mut command = AsyncCommand::from(logged(node, pod, spec, command)?);
        command.kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("start container {}", spec.name))?;
        Ok(Self {
            name: spec.name.clone(),
            image: spec.image.clone().unwrap_or_default(),
            probe: spec.readiness_probe.as_ref().and_then(|probe| Probe::of(probe, spec)),
            ready: false,
            restarts: 0,
            command,
            child,
        })
    }

    /// Restarts it when it has ended; whether it was alive.
    pub(crate) fn keep_alive(&mut self) -> Result<bool> {
        if self.child.try_wait().context("look after the container")?.is_none() {
            return Ok(true);
        }
        self.restarts += 1;
        self.child = self.command.spawn().context("start the container")?;
        Ok(false)
    }

    /// Asks it to end and insists after `grace`.
    pub(crate) async fn stop(&mut self, grace: Duration) {
        let id = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        // Both signals fail for one reason only: it has ended already, which is what is wanted.
        let asked = id.is_some_and(|id| kill_process(id, Signal::TERM).is_ok());
        if !asked || timeout(grace, self.child.wait()).await.is_err() {
            drop(self.child.kill().await);
        }
    }
}

/// The spec's own command, or the one program that stands for every image.
fn program(node: &Node, spec: &Spec) -> String {
    let own = spec.command.as_ref().and_then(|command| command.first());
    own.cloned().unwrap_or_else(|| node.server.to_string_lossy().into_owned())
}

fn logged(node: &Node, pod: &Pod, spec: &Spec, mut command: Command) -> Result<Command> {
    let file = format!("{}.{}.{}.log", pod.namespace().unwrap_or_default(), pod.name_any(), spec.name);
    let path = node.log_dir.join(file);
    let log = std::fs::File::options().create(true).append(true).open(&path);
    let log = log.with_context(|| format!("open {}", path.display()))?;
    command.stdin(Stdio::null()).stdout(log.try_clone().context("share the log")?).stderr(log);
    Ok(command)
}
