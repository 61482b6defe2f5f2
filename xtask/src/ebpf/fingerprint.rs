//! What the committed object was made from: one hash over the sources, so that a machine without the BPF toolchain
//! can still tell that the object is stale.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::compile::{FLAGS, RUSTC};
use crate::process::read;
use crate::setup::BPF_LINKER;
use crate::workspace::Workspace;

/// The content of `quilla.bpf.sha256`; `sha256sum --check` understands it too.
pub(super) struct Record {
    pub(super) object: String,
    sources: String,
}

impl Record {
    pub(super) fn of(workspace: &Workspace, object: &[u8]) -> Result<Self> {
        Ok(Self { object: hex(&Sha256::digest(object)), sources: sources(workspace)? })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  quilla.bpf.o", self.object)?;
        writeln!(f, "# sources {}", self.sources)
    }
}

fn sources(workspace: &Workspace) -> Result<String> {
    let mut hash = Sha256::new();
    for line in [FLAGS.join(" "), format!("rustc {RUSTC}"), format!("bpf-linker {BPF_LINKER}")] {
        field(&mut hash, line.as_bytes());
    }
    field(&mut hash, profile(workspace)?.as_bytes());
    field(&mut hash, dependencies(workspace)?.as_bytes());
    for file in files(workspace)? {
        field(&mut hash, file.to_string_lossy().as_bytes());
        field(
            &mut hash,
            &fs::read(workspace.root().join(&file)).with_context(|| format!("read {}", file.display()))?,
        );
    }
    Ok(hex(&hash.finalize()))
}

/// Length first, so that no two lists of fields give the same bytes.
fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// Only what is linked into the object: a new dependency of the agent, or of a macro, does not make the object stale.
fn dependencies(workspace: &Workspace) -> Result<String> {
    let mut cargo = workspace.cargo(&["tree", "--package", "quilla-ebpf", "--target", "bpfel-unknown-none"]);
    cargo.args(["--edges", "normal,no-proc-macro", "--prefix", "none", "--no-dedupe", "--format", "{p}|{f}"]);
    let tree = read(&mut cargo)?;
    let lines: BTreeSet<String> = tree.lines().filter_map(dependency).collect();
    Ok(lines.into_iter().collect::<Vec<_>>().join("\n"))
}

/// Name, version and features. What else cargo prints is where the crate lies, which differs between clones.
fn dependency(line: &str) -> Option<String> {
    let (package, features) = line.split_once('|')?;
    let mut words = package.split(' ');
    Some(format!("{} {} {features}", words.next()?, words.next()?))
}

fn profile(workspace: &Workspace) -> Result<String> {
    let manifest = fs::read_to_string(workspace.path("Cargo.toml")).context("read Cargo.toml")?;
    let section = manifest.lines().skip_while(|line| *line != "[profile.bpf]").skip(1);
    Ok(section.take_while(|line| line.contains('=')).collect::<Vec<_>>().join("\n"))
}

/// Rust sources and manifests of the crates in the object, relative to the root, in order.
fn files(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in ["abi", "ebpf"] {
        walk(workspace.root(), Path::new(folder), &mut found)?;
    }
    found.sort();
    Ok(found)
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder)).with_context(|| format!("list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        let path = folder.join(entry.file_name());
        if entry.file_type().context("type of a source file")?.is_dir() {
            walk(root, &path, found)?;
        } else if path.extension().is_some_and(|end| end == "rs") || path.ends_with("Cargo.toml") {
            found.push(path);
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::dependency;

    #[test]
    fn where_a_crate_lies_does_not_matter() {
        let here = dependency("quilla-abi v0.1.0 (/here/abi)|user");
        assert_eq!(here.as_deref(), Some("quilla-abi v0.1.0 user"));
        assert_eq!(here, dependency("quilla-abi v0.1.0 (/there/deep/abi)|user"));
        assert_ne!(here, dependency("quilla-abi v0.1.0 (/here/abi)|"));
    }
}
