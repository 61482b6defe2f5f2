//! Running other programs: always in the workspace root, always echoed, always checked.

use std::env;
use std::ffi::OsStr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// Variables that cargo sets for `xtask` itself. Some build scripts ask to be run again when they change, so a child
/// that inherited them would rebuild what a plain `cargo build` has built, and the other way round.
const OWN: [&str; 5] =
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_"];

impl Workspace {
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.root());
        if let Ok(path) = env::join_paths(self.search_path()) {
            command.env("PATH", path);
        }
        for (name, _) in env::vars_os() {
            if OWN.iter().any(|own| name.to_string_lossy().starts_with(own)) {
                command.env_remove(&name);
            }
        }
        command
    }

    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("cargo");
        command.args(arguments);
        command
    }
}

/// Runs to the end; anything but success is an error that names the command. What is echoed goes to standard error:
/// standard output belongs to what was asked for.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    eprintln!("+ {line}");
    let status = command.status().with_context(|| format!("start {line}"))?;
    if !status.success() {
        bail!("`{line}`: {status}");
    }
    Ok(())
}

/// Like [`run`], and returns what it printed on standard output.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("start {line}"))?;
    if !output.status.success() {
        bail!("`{line}`: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {line}"))
}

/// Like [`run`], but gives up after `limit`: for downloads that may hang where the network is closed.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let line = describe(command);
    eprintln!("+ {line}");
    let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("start {line}"))?;
    if !wait_within(&mut child, limit).with_context(|| line.clone())? {
        bail!("`{line}` failed");
    }
    Ok(())
}

/// Waits for the end of a child, and ends it itself after `limit`.
pub(crate) fn wait_within(child: &mut Child, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().context("wait for a child")? {
            return Ok(status.success());
        }
        if Instant::now() >= deadline {
            child.kill().context("end a child that took too long")?;
            child.wait().context("wait for a child")?;
            bail!("still running after {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
