//! Tools from crates.io, compiled once in a pinned version.

use anyhow::Result;

use crate::process::{read, run};
use crate::workspace::Workspace;

pub(super) fn ensure(workspace: &Workspace, tool: &str, version: &str) -> Result<()> {
    if present(workspace, tool, version) {
        return Ok(());
    }
    println!("installing {tool} {version}: compiled once, about a minute");
    run(&mut workspace.cargo(&["install", "--quiet", "--locked", "--force", "--version", version, tool]))
}

fn present(workspace: &Workspace, tool: &str, version: &str) -> bool {
    workspace.which(tool).is_some_and(|binary| {
        let printed = read(workspace.command(binary).arg("--version")).unwrap_or_default();
        printed.split_whitespace().any(|word| word == version)
    })
}
