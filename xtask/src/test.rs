//! `test [tier] [filter]`: builds the product and the test binaries in one go, runs them tier by tier, counts.
//!
//! The binaries are run from here and not by `cargo test`: a tier that ran no test, a skip in CI and a binary that died
//! without its closing line are failures, and cargo would report none of them.

mod suite;
mod tally;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::setup;
use crate::test::tally::Tally;
use crate::workspace::Workspace;

/// Everything beside the code; the other tiers are the test binaries of `quilla-tests`.
const UNIT: &str = "unit";

pub(crate) fn test(workspace: &Workspace, tier: Option<&str>, filter: Option<&str>) -> Result<()> {
    let known = suite::tiers(workspace)?;
    let chosen: Vec<String> = match tier {
        Some(tier) if known.iter().any(|name| name == tier) => vec![tier.to_owned()],
        Some(tier) => bail!("no tier `{tier}`: there are {}", known.join(", ")),
        None => known,
    };
    setup::commands(workspace)?;
    let suites = suite::build(workspace, &chosen)?;
    let skips = SkipLog::create(workspace)?;

    let mut report = Vec::new();
    for tier in &chosen {
        let mut tally = Tally::default();
        for suite in suites.iter().filter(|suite| suite.tier == *tier) {
            tally += suite.run(workspace, &skips.path, filter)?;
        }
        report.push((tier, tally));
    }
    conclude(&report, &skips.take()?, filter)
}

/// Where `require!` writes one line for each test that it skips: libtest keeps the output of passing tests to itself.
struct SkipLog {
    path: PathBuf,
}

impl SkipLog {
    fn create(workspace: &Workspace) -> Result<Self> {
        let path = workspace.target().join(format!("skipped-tests.{}", std::process::id()));
        fs::write(&path, "").with_context(|| format!("create {}", path.display()))?;
        Ok(Self { path })
    }

    fn take(self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.path).with_context(|| format!("read {}", self.path.display()))?;
        fs::remove_file(&self.path).with_context(|| format!("remove {}", self.path.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

/// Prints the closing lines, the sum alone on the last one, and turns what went wrong into an error.
fn conclude(report: &[(&String, Tally)], skipped: &[String], filter: Option<&str>) -> Result<()> {
    println!();
    let mut sum = Tally::default();
    for (tier, tally) in report {
        println!("{tier:>9}: {tally}");
        sum += *tally;
    }
    for skip in skipped {
        println!("  skipped: {skip}");
    }
    // A test that skipped itself has returned, and libtest counted it as passed.
    let reasons = skipped.len();
    let sum = Tally { passed: sum.passed.saturating_sub(reasons), skipped: sum.skipped + reasons, ..sum };
    println!("{sum}");

    let idle: Vec<&str> =
        report.iter().filter(|(_, tally)| tally.ran() == 0).map(|(tier, _)| tier.as_str()).collect();
    ensure!(sum.failed == 0, "{} failed", sum.failed);
    ensure!(sum.ran() > 0, "no test ran");
    ensure!(filter.is_some() || idle.is_empty(), "no test ran in: {}", idle.join(", "));
    ensure!(
        skipped.is_empty() || std::env::var_os("CI").is_none(),
        "{reasons} skipped, and CI skips nothing"
    );
    Ok(())
}
