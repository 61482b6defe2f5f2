//! Deliberately broken data paths, each of which the specification must notice.
//!
//! A mutant is a textual change to the sources of the kernel programs. It is built like the real object, from a copy of
//! the tree. A change whose text is no longer found exactly once fails the test: mutants do not rot in silence.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use quilla_datapath::Object;

use crate::explore::{Disagreement, explore};
use crate::{files, namespace};

struct Mutant {
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "checksums forget the addresses",
        file: "ebpf/core/src/connection.rs",
        from: "rewrite.addr_delta = delta(addresses(old), addresses(new));",
        to: "rewrite.addr_delta = 0;",
    },
    Mutant {
        name: "an established flow trusts any Ethernet source",
        file: "ebpf/src/hook/pod.rs",
        from: "&& skb.source_mac() == Ok(ingress.mac)",
        to: "",
    },
    Mutant {
        name: "the last hop is not noticed",
        file: "ebpf/src/pipeline.rs",
        from: "headers.hop_limit <= 1",
        to: "headers.hop_limit == 0",
    },
    Mutant {
        name: "an established overlay flow trusts any node",
        file: "ebpf/src/hook/overlay.rs",
        from: "helper::row(&NODES, slot).is_some_and(|node| route::is_node_at(node, origin))",
        to: "origin.len() == 16",
    },
    Mutant {
        name: "a SYN never reopens a closed connection",
        file: "ebpf/src/service.rs",
        from: "(opening && is_over(entry.state))",
        to: "(opening && is_over(entry.state) && false)",
    },
    Mutant {
        name: "a flow outlives its backend",
        file: "ebpf/src/flow.rs",
        from: "holds(a) && holds(b) && holds(c) && holds(d)",
        to: "holds(a) && holds(b) && holds(c) && d.index != u32::MAX",
    },
    Mutant {
        name: "a Pod may answer itself past us",
        file: "ebpf/src/nat.rs",
        from: "scratch.flow.backend != 0 && scratch.out.dst == headers.key.src",
        to: "false && scratch.out.dst == headers.key.src",
    },
    Mutant {
        name: "two connections share a tuple",
        file: "ebpf/src/flow.rs",
        from: "if !ours && !is_abandoned::<F>(holder, scratch) {",
        to: "if false && !ours && !is_abandoned::<F>(holder, scratch) {",
    },
    Mutant {
        name: "a slot beyond the Service's range",
        file: "ebpf/core/src/service.rs",
        from: "service.slot_base.wrapping_add(",
        to: "(service.slot_base + 1).wrapping_add(",
    },
    Mutant {
        name: "drops are counted as another reason",
        file: "ebpf/src/verdict.rs",
        from: "count(&DROPS, reason as u32, skb);",
        to: "count(&DROPS, reason as u32 + 1, skb);",
    },
    Mutant {
        name: "UDP without a checksum gets one",
        file: "ebpf/src/nat.rs",
        from: "rewrite, u64::from(BPF_F_MARK_MANGLED_0), true)?;",
        to: "rewrite, u64::from(BPF_F_MARK_MANGLED_0) & 0, true)?;",
    },
];

/// Enough for every mutant to be noticed many times over.
const PACKETS: u64 = 200_000;

/// The specification proves its worth: each mutant disagrees with it.
pub(crate) fn each_is_caught() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let copy = tempfile::tempdir().context("make a folder for the mutants")?;
    copy_sources(root, copy.path())?;
    // The same recipe without a change must agree: it is the change that is caught, and not the recipe.
    let control = compile(root, copy.path()).context("build the control")?;
    if let Some(story) = disagreement("control", &control)? {
        bail!("the control disagrees: {story}");
    }
    let mut survivors = Vec::new();
    for (number, mutant) in MUTANTS.iter().enumerate() {
        let object = build(mutant, root, copy.path()).with_context(|| mutant.name)?;
        match disagreement(&format!("mutant-{number}"), &object).with_context(|| mutant.name)? {
            Some(story) => println!("caught: {}: {story}", mutant.name),
            None => survivors.push(mutant.name),
        }
    }
    ensure!(survivors.is_empty(), "not noticed: {survivors:?}");
    Ok(())
}

/// The first line of the first disagreement. An object that does not load, say, is an error and no disagreement.
fn disagreement(name: &str, object: &[u8]) -> Result<Option<String>> {
    let netns = namespace(name)?;
    match netns.run(|| explore(&files(name), &Object::from_bytes(object), 1, PACKETS))? {
        Ok(_) => Ok(None),
        Err(error) if error.downcast_ref::<Disagreement>().is_some() => {
            Ok(Some(format!("{error:#}").lines().next().unwrap_or_default().to_owned()))
        }
        Err(error) => Err(error),
    }
}

/// What the kernel crates are built from, as a workspace of their own.
fn copy_sources(root: &Path, copy: &Path) -> Result<()> {
    let parts = ["abi", "ebpf", "Cargo.lock"].map(|part| root.join(part));
    let copied = Command::new("cp").arg("-r").args(parts).arg(copy).status().context("start cp")?;
    ensure!(copied.success(), "cp failed");
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("read Cargo.toml")?;
    let settings = manifest.find("[workspace.package]").context("[workspace.package] in Cargo.toml")?;
    let members = "[workspace]\nresolver = \"3\"\nmembers = [\"abi\", \"ebpf\", \"ebpf/core\"]\n\n";
    fs::write(copy.join("Cargo.toml"), format!("{members}{}", &manifest[settings..]))
        .context("write Cargo.toml")
}

/// Builds one mutant and puts the copy right again.
fn build(mutant: &Mutant, root: &Path, copy: &Path) -> Result<Vec<u8>> {
    let file = copy.join(mutant.file);
    let original = fs::read_to_string(&file).with_context(|| format!("read {}", mutant.file))?;
    let found = original.matches(mutant.from).count();
    ensure!(found == 1, "`{}` is {found} times in {}", mutant.from, mutant.file);
    fs::write(&file, original.replace(mutant.from, mutant.to)).context("write the mutant")?;
    let object = compile(root, copy);
    fs::write(&file, original).context("restore the source")?;
    object
}

fn compile(root: &Path, copy: &Path) -> Result<Vec<u8>> {
    let target: PathBuf = root.join("target/mutants");
    let output = Command::new("cargo")
        .current_dir(copy)
        .args(["build", "--quiet", "--package", "quilla-ebpf", "--target", "bpfel-unknown-none"])
        .args(["-Z", "build-std=core", "--profile", "bpf", "--target-dir"])
        .arg(&target)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Clinker=bpf-linker -Ctarget-cpu=v3 -Clink-arg=--btf -Awarnings")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .context("start cargo")?;
    if !output.status.success() {
        bail!("the mutant does not build: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::read(target.join("bpfel-unknown-none/bpf/quilla-ebpf")).context("read the mutant")
}
