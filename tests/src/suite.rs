//! The `main` of test binaries that build topologies: the sandbox first, then the tests, in parallel.
//!
//! The usual harness starts threads before any code of ours runs, too late for new namespaces; this one keeps its
//! command line and its closing line.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::require::{Need, skip};
use crate::sandbox;

/// A test: its name and its body.
pub type Test = (&'static str, fn() -> Result<()>);

/// Lists the tests of a binary by their paths: `tests![harness::isolation, pods::same_node]`.
#[macro_export]
macro_rules! tests {
    ($($($part:ident)::+),+ $(,)?) => {
        &[$((concat!($("::", stringify!($part)),+), $($part)::+ as fn() -> anyhow::Result<()>)),+]
    };
}

/// Runs the tests in a sandbox. All of them need root and cgroup2; without, each is skipped, or fails in CI.
pub fn main(tests: &[Test]) -> ExitCode {
    let arguments = Arguments::from_args();
    let needs = [Need::Root, Need::Btf, Need::Cgroup2, Need::Kubectl];
    let able = needs.iter().all(|need| need.missing().is_none());
    if able
        && !arguments.list
        && let Err(error) = sandbox::enter()
    {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let trials = tests.iter().map(|&(name, body)| {
        let name = name.trim_start_matches("::").to_owned();
        Trial::test(name.clone(), move || if skip(&name, &needs) { Ok(()) } else { attempt(body) })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// Errors with their causes; a panic has printed its message already.
fn attempt(body: fn() -> Result<()>) -> Result<(), Failed> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{error:#}").into()),
        Err(_) => Err("panicked, see above".into()),
    }
}
