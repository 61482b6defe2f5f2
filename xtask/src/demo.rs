//! `demo` and `dev`: build the product, then hand over to `quilla-demo`, which owns the cluster in namespaces.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{product, setup};

pub(crate) fn demo(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    hand_over(workspace, "demo", arguments)
}

pub(crate) fn dev(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    hand_over(workspace, "dev", arguments)
}

/// Replaces this process, so that signals and the exit code are the demo's own.
fn hand_over(workspace: &Workspace, name: &str, arguments: &[String]) -> Result<()> {
    setup::commands(workspace)?;
    product::build(workspace, false)?;
    let binary = workspace.target().join("debug/quilla-demo");
    let failure = workspace.command(&binary).arg(name).args(arguments).exec();
    Err(failure).with_context(|| format!("start {}", binary.display()))
}
