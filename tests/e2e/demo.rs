//! The demo is a test: it checks each of its claims.

use std::process::Command;

use anyhow::{Result, ensure};
use quilla_tests::binary;
use quilla_tests::command::Run;

pub(crate) fn the_demo_keeps_its_word() -> Result<()> {
    let said = Command::new(binary::path("quilla-demo")?).arg("demo").text()?;
    ensure!(said.contains("Done.") && !said.contains("failed"), "{said}");
    Ok(())
}
