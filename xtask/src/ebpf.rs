//! `ebpf`: the kernel object, from `ebpf/` to `ebpf/objects/`.
//!
//! The object is committed, so that the product builds where the BPF toolchain is missing. That is only honest while
//! the object is what the sources give: the build is the same byte for byte on every machine and from every clone, and
//! `--check` builds it again and compares.

mod compile;
mod fingerprint;
mod object;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

pub(crate) use compile::{RUSTC, cargo_bpf, sysroot};

use crate::ebpf::fingerprint::Record;
use crate::setup;
use crate::workspace::Workspace;

const OBJECT: &str = "ebpf/objects/quilla.bpf.o";
const RECORD: &str = "ebpf/objects/quilla.bpf.sha256";

pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let object = produce(workspace)?;
    let record = Record::of(workspace, &object)?;
    fs::create_dir_all(workspace.path("ebpf/objects")).context("create ebpf/objects")?;
    write_if_changed(&workspace.path(OBJECT), &object)?;
    write_if_changed(&workspace.path(RECORD), record.to_string().as_bytes())?;
    println!("{OBJECT}: {} bytes, sha256 {}", object.len(), record.object);
    Ok(())
}

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let committed = fs::read(workspace.path(OBJECT)).with_context(|| format!("read {OBJECT}"))?;
    let recorded = fs::read_to_string(workspace.path(RECORD)).with_context(|| format!("read {RECORD}"))?;
    let expected = Record::of(workspace, &committed)?;
    if recorded != expected.to_string() {
        bail!("{RECORD} does not match the sources and {OBJECT}: run `cargo xtask ebpf` and commit both");
    }
    if produce(workspace)? != committed {
        bail!("{OBJECT} is not what the sources give: run `cargo xtask ebpf` and commit it");
    }
    println!("{OBJECT} is what the sources give");
    Ok(())
}

/// Builds, strips and inspects: what comes out can be loaded.
fn produce(workspace: &Workspace) -> Result<Vec<u8>> {
    setup::bpf_toolchain(workspace)?;
    let linked = compile::compile(workspace)?;
    let object = object::strip(&linked)?;
    object::inspect(&object)?;
    Ok(object)
}

/// Leaves the time stamp alone where nothing changed, so that cargo does not rebuild what embeds the object.
fn write_if_changed(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}
