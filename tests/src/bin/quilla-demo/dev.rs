//! `dev up`, `dev down`, `dev shell NODE`: a cluster in the background.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::in_place;
use quilla_tests::node::METRICS;
use quilla_tests::sandbox::{FILES, Record};
use quilla_tests::{binary, eventually, sandbox};
use rustix::process::{Pid, Signal, kill_process};

use crate::{CLUSTER, record, screen};

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Action {
    /// Start a cluster of three nodes in the background.
    Up(Wishes),
    /// End it and everything in it.
    Down,
    /// A shell on `node-a`, `node-b`, `node-c` or `fabric`, with kubectl and quilla set up.
    Shell {
        /// Which node.
        node: String,
        /// A command to run instead of a shell, with its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// What `up` leaves in the background.
    #[command(hide = true)]
    Serve(Wishes),
}

/// What cluster it is to be.
#[derive(Args, Clone, Debug)]
pub(crate) struct Wishes {
    /// How packets get to the Pods of other nodes, as `--routing` of the agent.
    ///
    /// In tunnels (`overlay`), plainly (`native`), or in tunnels only to nodes that are in none of the uplinks' networks
    /// (`auto`). The three nodes are in one network, so `auto` sends plainly, too. See docs/routing.md.
    #[arg(long, default_value = "overlay", value_parser = ["overlay", "native", "auto"])]
    routing: String,
}

/// The line of `serve` that `up` waits for.
const READY: &str = "the cluster is ready";

pub(crate) fn run(action: &Action) -> Result<()> {
    match action {
        Action::Up(wishes) => up(wishes),
        Action::Down => down(),
        Action::Shell { node, command } => shell(node, command),
        Action::Serve(wishes) => serve(wishes),
    }
}

pub(crate) fn how_to_look_inside() -> String {
    let files = format!("{FILES}/{CLUSTER}");
    format!(
        "  cargo xtask dev shell node-a     a shell on a node (or node-b, node-c, fabric)\n  \
           there:  kubectl get pods,services -o wide\n  \
           there:  quilla status;  quilla services;  quilla flows;  quilla drops\n  \
           there:  tail {files}/node-a/log/agent.log     (or podlet.log; {files}/controller.log)\n  \
           there:  curl http://{METRICS}/metrics     (each node its own, on its loopback)\n  \
           there:  nsenter --net=/run/netns/{CLUSTER}.node-a.NAMESPACE.POD ip address     (in a Pod)\n  \
         cargo xtask dev down             end it"
    )
}

fn log() -> Result<PathBuf> {
    Ok(binary::folder()?.join("quilla-dev.log"))
}

/// One record tells of one cluster: a second would leave the first without a way to end it.
pub(crate) fn is_only_one() -> Result<()> {
    ensure!(find()?.is_none(), "a cluster is up already: `cargo xtask dev down` ends it");
    Ok(())
}

fn up(wishes: &Wishes) -> Result<()> {
    is_only_one()?;
    let log = log()?;
    let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new("setsid");
    command.arg(program).args(["dev", "serve", "--routing", &wishes.routing]).stdin(Stdio::null());
    command.stderr(output.try_clone().context("share the log")?).stdout(output);
    screen::step("Starting a cluster of three nodes", || {
        let mut child = command.spawn().context("start the cluster")?;
        eventually::succeeds("the cluster is ready", || {
            let said = fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
            if said.contains(READY) {
                return Ok(Ok(()));
            }
            if let Some(status) = child.try_wait().context("look after the cluster")? {
                return Ok(Err(anyhow::anyhow!("{status}\n{said}")));
            }
            bail!("see {}", log.display())
        })??;
        Ok("it stays up in the background".to_owned())
    })?;
    screen::say(&how_to_look_inside());
    Ok(())
}

fn serve(wishes: &Wishes) -> Result<()> {
    sandbox::enter_recorded(Some(&record()?))?;
    let _cluster = Cluster::builder(CLUSTER).nodes(3).agent(&["--routing", &wishes.routing]).start()?;
    println!("{READY}");
    loop {
        std::thread::park();
    }
}

/// The kept cluster, if it lives.
fn find() -> Result<Option<Record>> {
    let path = record()?;
    let Ok(text) = fs::read_to_string(&path) else { return Ok(None) };
    let record: Record = serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
    // A record outlives a supervisor that was killed, and its number may be another program's by now.
    let name = fs::read_to_string(format!("/proc/{}/comm", record.process)).unwrap_or_default();
    // A dead process keeps its name until it is reaped, but is no longer in its cgroup.
    let events = fs::read_to_string(record.cgroup.join("cgroup.events")).unwrap_or_default();
    Ok((name.trim() == "unshare" && events.contains("populated 1")).then_some(record))
}

fn down() -> Result<()> {
    let record = find()?.context("no cluster is up")?;
    let process =
        i32::try_from(record.process).ok().and_then(Pid::from_raw).context("the record's process")?;
    // Without its record the cluster's supervisor knows that this end was asked for.
    let path = crate::record()?;
    fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    kill_process(process, Signal::KILL).context("end the cluster")?;
    eventually::succeeds("everything is gone", || {
        ensure!(!record.cgroup.exists(), "{} is still there", record.cgroup.display());
        Ok(())
    })?;
    screen::say("The cluster and everything in it are gone.");
    Ok(())
}

fn shell(node: &str, words: &[String]) -> Result<()> {
    let record = find()?.context("no cluster is up: `cargo xtask dev up` starts one")?;
    let children = format!("/proc/{0}/task/{0}/children", record.process);
    let children = fs::read_to_string(&children).with_context(|| format!("read {children}"))?;
    let first = children.split_whitespace().next().context("the cluster has ended")?;
    let netns = format!("/run/netns/{CLUSTER}.{node}");
    ensure!(
        Path::new(&format!("/proc/{first}/root{netns}")).exists(),
        "no node {node}: node-a to node-c, or fabric"
    );
    // The control plane's namespace has no cgroup of its own.
    let own = record.cgroup.join(CLUSTER).join(node);
    let cgroup = if own.exists() { own } else { record.cgroup.join(CLUSTER) };
    let mut command = in_place(&cgroup, None, "nsenter");
    command.args(["--target", first, "--mount", "--pid", "--ipc", "--"]);
    command.args(["nsenter", &format!("--net={netns}"), "--"]);
    command.env("KUBECONFIG", format!("{FILES}/{CLUSTER}/control-plane/admin.kubeconfig"));
    let programs = binary::folder()?;
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", programs.display()));
    command.env("QUILLA_ADMIN_SOCKET", format!("{FILES}/{CLUSTER}/{node}/run/admin.sock"));
    if words.is_empty() {
        command.env("PS1", format!("{node} # ")).args(["bash", "--norc"]);
    } else {
        command.args(words);
    }
    Err(command.exec()).context("start a shell")
}
