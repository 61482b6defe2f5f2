//! Tools that come as Python wheels with a compiled binary inside, unpacked into the target directory.

use anyhow::Result;

use crate::process::run;
use crate::workspace::Workspace;

pub(super) fn ensure(workspace: &Workspace, tools: &[(&str, &str)]) -> Result<()> {
    let installed = |(tool, version): &&(&str, &str)| {
        workspace.wheels().join(format!("{tool}-{version}.dist-info")).is_dir()
    };
    let wanted: Vec<String> = tools
        .iter()
        .filter(|tool| !installed(tool))
        .map(|(tool, version)| format!("{tool}=={version}"))
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    println!("unpacking {} into {}", wanted.join(" "), workspace.wheels().display());
    let mut pip = workspace.command("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--root-user-action",
        "ignore",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--upgrade",
        "--target",
    ]);
    run(pip.arg(workspace.wheels()).args(wanted))
}
