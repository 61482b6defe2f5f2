//! The outer namespace: a network without a way out, private mounts, a process tree that dies as one.
//!
//! A binary that builds topologies calls [`enter`] first thing in `main`. The first process becomes the supervisor: it
//! starts the same binary again inside the sandbox, waits, and removes the cgroup. When the supervisor dies, however,
//! the kernel kills everything inside, and with the last process go all namespaces, links and mounts. Invariant: code
//! behind `enter` cannot change the machine's own network or mounts.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

use anyhow::{Context, Result};
use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::cgroup::Cgroup;
use crate::command::{Run, in_place};

/// Set inside to the sandbox's cgroup.
const MARK: &str = "QUILLA_SANDBOX_CGROUP";

/// Files of topologies: data directories, sockets, logs. A tmpfs that only the sandbox sees.
pub const FILES: &str = "/run/quilla-sandbox";

/// Where the sandbox has its own bpffs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The inside of a sandbox.
#[derive(Clone, Debug)]
pub struct Sandbox {
    cgroup: PathBuf,
}

impl Sandbox {
    /// The cgroup that holds all of the sandbox's own.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The sandbox this process is in.
    pub fn current() -> Result<Self> {
        let cgroup =
            env::var_os(MARK).context("not inside a sandbox: main must call sandbox::enter first")?;
        Ok(Self { cgroup: cgroup.into() })
    }
}

/// Where a sandbox can be found from outside, while it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The process whose only child is the sandbox's first; killing it ends the sandbox.
    pub process: u32,
    /// The sandbox's cgroup.
    pub cgroup: PathBuf,
}

/// Returns inside the sandbox; outside of it, never returns. Must be called before any thread is started.
pub fn enter() -> Result<Sandbox> {
    enter_recorded(None)
}

/// The same, with a [`Record`] as JSON in a file for the sandbox's lifetime. Who removes the file and then kills the
/// recorded process ends the sandbox in peace: the program's exit code is 0.
pub fn enter_recorded(record: Option<&Path>) -> Result<Sandbox> {
    if env::var_os(MARK).is_none() {
        exit(supervise(record)?);
    }
    let sandbox = Sandbox::current()?;
    // Only the first process of the sandbox finds it bare; helpers that it starts find it ready.
    if !Path::new(FILES).exists() {
        furnish().context("furnish the sandbox")?;
    }
    Ok(sandbox)
}

/// The command that runs a program and its arguments, to be added, in a new sandbox which dies with the calling
/// thread's process. The new namespaces are bare until the program calls [`enter`].
pub fn wrapped(cgroup: &Cgroup, program: &Path) -> Command {
    let mut command = in_place(cgroup.path(), None, "setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--net", "--ipc", "--pid", "--fork"]);
    command.args(["--kill-child", "--mount-proc", "--"]);
    command.arg(program).env(MARK, cgroup.path());
    command
}

/// Waits for the sandbox, or for the word to end it, and removes what the kernel does not.
fn supervise(record: Option<&Path>) -> Result<i32> {
    let cgroup = Cgroup::of_sandbox()?;
    let program = env::current_exe().context("find this program")?;
    let mut command = wrapped(&cgroup, &program);
    command.args(env::args_os().skip(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let status = runtime.context("start a runtime")?.block_on(async {
        let mut child = tokio::process::Command::from(command).spawn().context("start the sandbox")?;
        if let (Some(path), Some(process)) = (record, child.id()) {
            let record = Record { process, cgroup: cgroup.path().to_owned() };
            let text = serde_json::to_string(&record).context("write the record")?;
            fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
        }
        let mut terminated = signal(SignalKind::terminate()).context("listen for signals")?;
        let ended = tokio::select! {
            ended = child.wait() => Some(ended.context("wait for the sandbox")?),
            _ = tokio::signal::ctrl_c() => None,
            _ = terminated.recv() => None,
        };
        if ended.is_none() {
            child.kill().await.context("end the sandbox")?;
        }
        Ok::<_, anyhow::Error>(ended)
    });
    drop(cgroup);
    if record.map(remove_record).transpose()? == Some(false) {
        println!("\nended by `dev down`");
        return Ok(0);
    }
    Ok(status?.map_or(130, |status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))))
}

/// Whether the record was still there.
fn remove_record(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

fn furnish() -> Result<()> {
    mount("tmpfs", "/run")?;
    mount("bpf", BPFFS)?;
    for folder in ["/run/netns", FILES] {
        fs::create_dir(folder).with_context(|| format!("create {folder}"))?;
    }
    Command::new("ip").args(["link", "set", "lo", "up"]).text()?;
    Ok(())
}

fn mount(kind: &str, at: &str) -> Result<()> {
    rustix::mount::mount("quilla", at, kind, MountFlags::empty(), None)
        .with_context(|| format!("mount {kind} at {at}"))
}
