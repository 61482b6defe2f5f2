//! Cargo for the BPF target. Everything that reaches the object's bytes is decided here or in `[profile.bpf]`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{read, run};
use crate::workspace::{Workspace, cargo_home};

/// The compiler whose output is committed. Another one gives another object, and is refused.
pub(crate) const RUSTC: &str = "1.95.0";

const TARGET: &str = "bpfel-unknown-none";

/// `v3` has the atomics that the counters need and loads on every supported kernel; `--btf` keeps type information,
/// without which map-in-map cannot be created and verifier logs have no source lines.
pub(super) const FLAGS: [&str; 3] = ["-Clinker=bpf-linker", "-Ctarget-cpu=v3", "-Clink-arg=--btf"];

/// `cargo SUBCOMMAND` on the kernel crate. The target directory is its own, so that these flags and the host's do not
/// evict each other.
pub(crate) fn cargo_bpf(workspace: &Workspace, subcommand: &str) -> Result<Command> {
    require_compiler(workspace)?;
    let mut cargo = workspace.cargo(&[subcommand, "--package", "quilla-ebpf", "--target", TARGET]);
    cargo
        .args(["-Z", "build-std=core", "--profile", "bpf", "--target-dir"])
        .arg(target_dir(workspace))
        // `build-std` needs it, and so do the intrinsics behind atomic counters; both are stable in this one compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(workspace)?.join("\u{1f}"))
        .env_remove("RUSTFLAGS");
    Ok(cargo)
}

pub(super) fn compile(workspace: &Workspace) -> Result<Vec<u8>> {
    run(&mut cargo_bpf(workspace, "build")?)?;
    let linked = target_dir(workspace).join(TARGET).join("bpf/quilla-ebpf");
    fs::read(&linked).with_context(|| format!("read {}", linked.display()))
}

fn target_dir(workspace: &Workspace) -> PathBuf {
    workspace.target().join("ebpf")
}

/// Source paths end up in BTF's line information: each root gets a name that is the same everywhere.
fn flags(workspace: &Workspace) -> Result<Vec<String>> {
    let rust_src = sysroot(workspace)?.join("lib/rustlib/src/rust");
    // The last match wins, so the most specific roots come last.
    let roots = [(cargo_home(), "/cargo"), (workspace.root().to_owned(), "/quilla"), (rust_src, "/rust")];
    let remaps = roots.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()));
    Ok(FLAGS.map(str::to_owned).into_iter().chain(remaps).collect())
}

pub(crate) fn sysroot(workspace: &Workspace) -> Result<PathBuf> {
    Ok(read(workspace.command("rustc").args(["--print", "sysroot"]))?.trim().into())
}

fn require_compiler(workspace: &Workspace) -> Result<()> {
    let version = read(workspace.command("rustc").arg("--version"))?;
    if version.split_whitespace().nth(1) != Some(RUSTC) {
        bail!("the kernel object is built by rustc {RUSTC}, this is {}", version.trim());
    }
    Ok(())
}
