//! The sources of `core`, which `-Z build-std` compiles for the BPF target.
//!
//! rustup is the ordinary way. Where it cannot download, Debian's package has the same files: `core` and
//! `compiler-builtins` do not differ by a byte, so neither does the object.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::apt;
use crate::ebpf::{RUSTC, sysroot};
use crate::process::{run, run_within};
use crate::workspace::Workspace;

const SUITE: &str = "trixie-backports";
const RUSTUP_LIMIT: Duration = Duration::from_mins(2);

pub(crate) fn present(workspace: &Workspace) -> bool {
    library(workspace).is_ok_and(|library| complete(&library))
}

pub(super) fn ensure(workspace: &Workspace) -> Result<()> {
    let library = library(workspace)?;
    if complete(&library) {
        return Ok(());
    }
    println!("installing rust-src: the sources of `core`, for the BPF target");
    let mut rustup = workspace.command("rustup");
    rustup.args(["component", "add", "rust-src"]).env("RUST_BACKTRACE", "0");
    if let Err(error) = run_within(&mut rustup, RUSTUP_LIMIT) {
        println!("rustup could not ({error:#}); taking Debian's package");
    }
    if !complete(&library) {
        from_debian(workspace, &library)?;
    }
    ensure!(complete(&library), "rust-src is not complete in {}", library.display());
    Ok(())
}

fn library(workspace: &Workspace) -> Result<PathBuf> {
    Ok(sysroot(workspace)?.join("lib/rustlib/src/rust/library"))
}

fn complete(library: &Path) -> bool {
    ["Cargo.lock", "core/src/lib.rs", "compiler-builtins/Cargo.toml"]
        .iter()
        .all(|file| library.join(file).is_file())
}

fn from_debian(workspace: &Workspace, library: &Path) -> Result<()> {
    let unpacked = workspace.tools().join("rust-src");
    apt::unpack(workspace, SUITE, "rust-src", &format!("{RUSTC}+"), &unpacked)?;
    fs::create_dir_all(library).with_context(|| format!("create {}", library.display()))?;
    let source = unpacked.join(format!("usr/src/rustc-{RUSTC}/library/."));
    run(workspace.command("cp").arg("--recursive").arg(source).arg(library))?;
    fs::remove_dir_all(&unpacked).with_context(|| format!("remove {}", unpacked.display()))
}
