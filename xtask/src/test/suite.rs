//! Test binaries: which there are, how they are built, how one is run.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::UNIT;
use super::tally::Tally;
use crate::process::{read, run, wait_within};
use crate::workspace::Workspace;

const HARNESS: &str = "quilla-tests";

/// The tier that walks the fail-points.
const CNI: &str = "cni";

/// A binary still running after this is stuck: the whole suite takes minutes.
const LIMIT: Duration = Duration::from_mins(15);

/// The tier that builds a program for each mutant, and what it is given instead.
const SPEC: &str = "spec";
const LIMIT_OF_SPEC: Duration = Duration::from_mins(40);

/// Tests that run for as long as they are asked to, beyond that.
const LENGTHS: [&str; 2] = ["QUILLA_CHURN_SECONDS", "QUILLA_SOAK_SECONDS"];

/// How long the output of a binary that has ended may stay open.
const DRAIN: Duration = Duration::from_secs(10);

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
    if tiers.iter().any(|tier| tier == CNI) {
        build_with_failpoints(workspace)?;
    }
    println!("+ building the product and its tests");
    let mut suites: Vec<Suite> = read(&mut cargo)?.lines().filter_map(suite).collect();
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(suites)
}

/// Plugin and agent that die where a test wants them to: other programs from the same intermediate files.
fn build_with_failpoints(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo(&["build", "--package", "quilla-agent", "--package", "quilla-cni"]);
    cargo.args(["--features", "quilla-agent/failpoints,quilla-cni/failpoints"]);
    cargo.env("CARGO_BUILD_BUILD_DIR", workspace.target());
    cargo.env("CARGO_TARGET_DIR", workspace.target().join("failpoints"));
    run(&mut cargo)
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
    let harness = message["package_id"].as_str()?.contains(&format!("#{HARNESS}@"));
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
            .env("QUILLA_SKIP_LOG", skip_log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.executable.display()))?;
        let output = child.stdout.take().context("output of the tests")?;
        let tallies = echo(output);
        let succeeded = wait_within(&mut child, limit(&self.tier))
            .with_context(|| format!("{} of {}", self.name, self.tier))?;
        let mut tally = match last(&tallies) {
            Ok(Some(tally)) => tally,
            Ok(None) => {
                println!("{} died without a closing line", self.name);
                Tally { failed: 1, ..Tally::default() }
            }
            Err(LeftBehind) => {
                println!("{} left a process behind, which still holds its output", self.name);
                Tally { failed: 1, ..Tally::default() }
            }
        };
        if !succeeded && tally.failed == 0 {
            println!("{} failed after its closing line", self.name);
            tally.failed = 1;
        }
        Ok(tally)
    }
}

fn limit(tier: &str) -> Duration {
    let asked = LENGTHS.iter().filter_map(|name| env::var(name).ok()?.parse().ok());
    let least = if tier == SPEC { LIMIT_OF_SPEC } else { LIMIT };
    least + asked.map(Duration::from_secs).sum::<Duration>()
}

/// Prints what the tests print, and hands on each closing line. The channel closes at the end of the output.
fn echo(output: impl Read + Send + 'static) -> Receiver<Tally> {
    let (sender, tallies) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            if Tally::parse(&line).is_some_and(|tally| sender.send(tally).is_err()) {
                return;
            }
        }
    });
    tallies
}

struct LeftBehind;

/// The last closing line of a binary that has ended.
fn last(tallies: &Receiver<Tally>) -> Result<Option<Tally>, LeftBehind> {
    let mut last = None;
    loop {
        match tallies.recv_timeout(DRAIN) {
            Ok(tally) => last = Some(tally),
            Err(RecvTimeoutError::Disconnected) => return Ok(last),
            Err(RecvTimeoutError::Timeout) => return Err(LeftBehind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSING: &str = "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn the_last_closing_line_counts() {
        let output = format!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n{CLOSING}\n");
        let tally = last(&echo(std::io::Cursor::new(output))).ok().flatten();
        assert_eq!(tally, Some(Tally { passed: 2, failed: 0, skipped: 0 }));
    }

    #[test]
    fn output_that_is_not_text_does_not_hide_the_closing_line() {
        let output = [b"\xff\xfe\n", CLOSING.as_bytes()].concat();
        let tally = last(&echo(std::io::Cursor::new(output))).ok().flatten();
        assert_eq!(tally.map(|tally| tally.passed), Some(2));
    }

    #[test]
    fn only_the_harness_has_tiers() {
        let line = |package: &str, kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///q/{package}@0.1.0","manifest_path":"/q/x/Cargo.toml",
                "target":{{"name":"netns","kind":["{kind}"]}},"profile":{{"test":true}},"executable":"/q/target/x"}}"#
            )
        };
        let tier = |package, kind| suite(&line(package, kind)).map(|suite| suite.tier);
        assert_eq!(tier("tests#quilla-tests", "test").as_deref(), Some("netns"));
        assert_eq!(tier("tests#quilla-tests", "lib").as_deref(), Some(UNIT));
        assert_eq!(tier("agent/datapath#quilla-datapath", "test").as_deref(), Some(UNIT));
    }
}
