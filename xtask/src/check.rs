//! `check`: everything that can be judged without running the product. Cheap steps first; one that fails does not stop
//! the others.

use anyhow::{Result, ensure};

use crate::ebpf::{self, cargo_bpf};
use crate::process::{read, run};
use crate::workspace::Workspace;
use crate::{setup, tidy};

/// The kernel crate is linted for its own target; for the host it is an empty `main`.
const HOST: [&str; 3] = ["--workspace", "--exclude", "quilla-ebpf"];

type Step = (&'static str, fn(&Workspace) -> Result<()>);

const STEPS: [Step; 11] = [
    ("lock file", lock),
    ("format", format),
    ("tidy", tidy::tidy),
    ("spelling", spelling),
    ("toml", toml),
    ("unused dependencies", unused),
    ("licences and sources", licences),
    ("kernel object", ebpf::check),
    ("lints, BPF target", lints_bpf),
    ("lints, host", lints_host),
    ("documentation", documentation),
];

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    setup::linters(workspace)?;
    setup::bpf_toolchain(workspace)?;
    let mut failed = Vec::new();
    for (name, step) in STEPS {
        println!("\n== {name}");
        if let Err(error) = step(workspace) {
            println!("{error:#}");
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "{} of {} checks failed: {}", failed.len(), STEPS.len(), failed.join(", "));
    println!("\nall {} checks passed", STEPS.len());
    Ok(())
}

/// Before anything else: the next cargo command would bring the file up to date in silence.
fn lock(workspace: &Workspace) -> Result<()> {
    read(&mut workspace.cargo(&["metadata", "--locked", "--format-version", "1"])).map(drop)
}

fn format(workspace: &Workspace) -> Result<()> {
    run(&mut workspace.cargo(&["fmt", "--all", "--check"]))
}

fn spelling(workspace: &Workspace) -> Result<()> {
    run(&mut workspace.command("typos"))
}

fn toml(workspace: &Workspace) -> Result<()> {
    run(workspace.command("taplo").args(["fmt", "--check"]).env("RUST_LOG", "warn"))
}

fn unused(workspace: &Workspace) -> Result<()> {
    run(&mut workspace.cargo(&["machete"]))
}

/// Not the advisories: their database is a git repository, and CI has crates.io and nothing else.
fn licences(workspace: &Workspace) -> Result<()> {
    run(&mut workspace.cargo(&["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]))
}

fn lints_bpf(workspace: &Workspace) -> Result<()> {
    run(cargo_bpf(workspace, "clippy")?.args(["--", "-D", "warnings"]))
}

fn lints_host(workspace: &Workspace) -> Result<()> {
    run(workspace.cargo(&["clippy"]).args(HOST).args(["--all-targets", "--", "-D", "warnings"]))
}

/// With private items: the readers are those who change the code, and a link to a private item is as good as another.
fn documentation(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo(&["doc", "--no-deps", "--document-private-items"]);
    run(cargo.args(HOST).env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"))
}
