//! `tidy`: the rules of the repository that no compiler checks. All findings are printed before it fails.

mod edges;
mod files;

use anyhow::{Result, bail};

use crate::conformance;
use crate::workspace::Workspace;

pub(crate) fn tidy(workspace: &Workspace) -> Result<()> {
    let mut findings = edges::check(workspace)?;
    findings.extend(files::check(workspace)?);
    findings.extend(conformance::check(workspace)?);
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("findings: {}", findings.len());
    }
    println!("tidy");
    Ok(())
}
