//! `bench`: build the product with optimisation, then hand over to `quilla-bench`, which measures it.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::process::run;
use crate::setup;
use crate::workspace::Workspace;

/// What is measured, what measures, and what stands for a kubelet meanwhile.
const PROGRAMS: [&str; 7] = [
    "quilla",
    "quilla-agent",
    "quilla-bench",
    "quilla-cni",
    "quilla-controller",
    "quilla-pod",
    "quilla-podlet",
];

pub(crate) fn bench(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    setup::commands(workspace)?;
    let mut build = workspace.cargo(&["build", "--release"]);
    for program in PROGRAMS {
        build.args(["--bin", program]);
    }
    run(&mut build)?;
    // Replaces this process, so that signals and the exit code are the measurement's own.
    let binary = workspace.target().join("release/quilla-bench");
    let failure = workspace.command(&binary).args(arguments).exec();
    Err(failure).with_context(|| format!("start {}", binary.display()))
}
