//! Test binaries: which there are, how they are built, how one is run.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::UNIT;
use super::tally::Tally;
use crate::process::{read, wait_within};
use crate::workspace::Workspace;

const HARNESS: &str = "quilla-tests";

/// A binary still running after this is stuck: the whole suite takes minutes.
const LIMIT: Duration = Duration::from_mins(15);

pub(super) struct Suite {
    pub(super) tier: String,
    name: String,
    executable: PathBuf,
    folder: PathBuf,
}

/// Cheapest first; a tier that is not named here comes last.
const ORDER: [&str; 7] = ["verifier", "packet", "spec", "api", "cni", "netns", "e2e"];

/// `unit`, then the test binaries of the harness crate.
pub(super) fn tiers(workspace: &Workspace) -> Result<Vec<String>> {
    let metadata = read(&mut workspace.cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("parse cargo metadata")?;
    let packages = metadata["packages"].as_array().context("packages in cargo metadata")?;
    let harness =
        packages.iter().find(|package| package["name"] == HARNESS).context("no crate quilla-tests")?;
    let targets = harness["targets"].as_array().context("targets in cargo metadata")?;
    let tests = targets.iter().filter(|target| target["kind"][0] == "test");
    let names = tests.filter_map(|target| target["name"].as_str().map(str::to_owned));
    let mut tiers: Vec<String> = std::iter::once(UNIT.to_owned()).chain(names).collect();
    tiers[1..].sort_by_key(|tier| ORDER.iter().position(|name| name == tier).unwrap_or(ORDER.len()));
    Ok(tiers)
}

/// One cargo call for binaries and tests alike, so that dependencies are compiled with one set of features.
pub(super) fn build(workspace: &Workspace, tiers: &[String]) -> Result<Vec<Suite>> {
    let mut cargo = workspace.cargo(&["build", "--bins", "--message-format", "json-render-diagnostics"]);
    if tiers.iter().any(|tier| tier == UNIT) {
        cargo.arg("--tests");
    } else {
        for tier in tiers {
            cargo.args(["--test", tier]);
        }
    }
    println!("+ building the product and its tests");
    let mut suites: Vec<Suite> = read(&mut cargo)?.lines().filter_map(suite).collect();
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(suites)
}

/// A test binary out of one line of cargo's messages.
fn suite(line: &str) -> Option<Suite> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let executable = PathBuf::from(message["executable"].as_str()?);
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let (target, kind) = (message["target"]["name"].as_str()?, message["target"]["kind"][0].as_str()?);
    let harness = message["package_id"].as_str()?.contains(HARNESS) || folder.ends_with("tests");
    let tier = if harness && kind == "test" { target } else { UNIT };
    Some(Suite { tier: tier.to_owned(), name: format!("{target} ({kind})"), executable, folder })
}

impl Suite {
    pub(super) fn run(&self, workspace: &Workspace, skip_log: &Path, filter: Option<&str>) -> Result<Tally> {
        println!("\n== {}: {}", self.tier, self.name);
        let mut child = workspace
            .command(&self.executable)
            .args(filter)
            .current_dir(&self.folder)
            .env("QUILLA_BIN_DIR", workspace.target().join("debug"))
            .env("QUILLA_SKIP_LOG", skip_log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.executable.display()))?;
        let lines = BufReader::new(child.stdout.take().context("output of the tests")?).lines();
        let reader = thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .inspect(|line| println!("{line}"))
                .filter_map(|line| Tally::parse(&line))
                .last()
        });
        let succeeded =
            wait_within(&mut child, LIMIT).with_context(|| format!("{} of {}", self.name, self.tier))?;
        let tally = reader.join().ok().flatten();
        ensure!(!succeeded || tally.is_some(), "{} ended without a closing line", self.name);
        // Dead without a closing line, or a failure that the line does not show: one more failed.
        let mut tally = tally.unwrap_or_default();
        if !succeeded && tally.failed == 0 {
            println!("{} died without a closing line", self.name);
            tally.failed = 1;
        }
        Ok(tally)
    }
}
