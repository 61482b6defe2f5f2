//! `build`: the product's binaries, from the committed kernel object.

use anyhow::Result;

use crate::process::run;
use crate::workspace::Workspace;

pub(crate) fn build(workspace: &Workspace, release: bool) -> Result<()> {
    let mut cargo = workspace.cargo(&["build", "--bins"]);
    if release {
        cargo.arg("--release");
    }
    run(&mut cargo)
}
