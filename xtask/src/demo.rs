//! `demo` and `dev`: build the product, then hand over to `quilla-demo`, which owns the cluster in namespaces. What only
//! looks at a cluster that is up, or ends it, does not build: it must work as it is, and at once.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{product, setup};

pub(crate) fn demo(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    prepare(workspace)?;
    hand_over(workspace, "demo", arguments)
}

pub(crate) fn dev(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let asks = |argument: &String| ["-h", "--help", "help"].contains(&argument.as_str());
    let looks = matches!(arguments.first().map(String::as_str), Some("shell" | "down"));
    let starts = !looks && !arguments.iter().any(asks);
    if starts || !program(workspace).exists() {
        prepare(workspace)?;
    }
    hand_over(workspace, "dev", arguments)
}

fn prepare(workspace: &Workspace) -> Result<()> {
    setup::commands(workspace)?;
    product::build(workspace, false)
}

fn program(workspace: &Workspace) -> PathBuf {
    workspace.target().join("debug/quilla-demo")
}

/// Replaces this process, so that signals and the exit code are the demo's own.
fn hand_over(workspace: &Workspace, name: &str, arguments: &[String]) -> Result<()> {
    let binary = program(workspace);
    let failure = workspace.command(&binary).arg(name).args(arguments).exec();
    Err(failure).with_context(|| format!("start {}", binary.display()))
}
