//! Tools from crates.io, compiled once in a pinned version.

use std::fs;

use anyhow::Result;

use crate::process::run;
use crate::workspace::{Workspace, cargo_home};

pub(super) fn ensure(workspace: &Workspace, tool: &str, version: &str) -> Result<()> {
    if present(workspace, tool, version) {
        return Ok(());
    }
    println!("installing {tool} {version}: compiled once, one or two minutes");
    run(&mut workspace.cargo(&["install", "--quiet", "--locked", "--force", "--version", version, tool]))
}

/// By cargo's own record: the tools do not agree on how to ask for their version.
fn present(workspace: &Workspace, tool: &str, version: &str) -> bool {
    let record = fs::read_to_string(cargo_home().join(".crates.toml")).unwrap_or_default();
    workspace.which(tool).is_some() && record.contains(&format!("\"{tool} {version} ("))
}
