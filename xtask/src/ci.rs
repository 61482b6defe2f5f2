//! `ci`: what `.ci/run` does, for a person who wants to see it green before pushing.

use std::process::Command;

use anyhow::Result;

use crate::process::run;
use crate::workspace::Workspace;

pub(crate) fn ci(workspace: &Workspace) -> Result<()> {
    run(Command::new("bash").arg(workspace.path(".ci/run")).env("CI", "true"))
}
