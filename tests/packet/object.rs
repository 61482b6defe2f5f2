//! Loads the committed kernel object for tests: small hashes, nothing pinned, switches as the test wants them.

use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::{Program, ProgramInfo};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use quilla_abi::map;
use quilla_abi::program::rodata;

/// Where `cargo xtask ebpf` puts it.
const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/objects/quilla.bpf.o");

/// Hashes that the default size would make hundreds of megabytes.
const HASHES: [&str; 6] =
    [map::FLOWS_V4, map::FLOWS_V6, map::FRAGMENTS_V4, map::FRAGMENTS_V6, map::SOCKETS_V4, map::SOCKETS_V6];

/// Read-only data that tests set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Switches {
    pub(crate) trace: bool,
    pub(crate) count_helpers: bool,
}

/// Creates the maps; no program is in the kernel yet.
pub(crate) fn load(switches: Switches) -> Result<Ebpf> {
    let bytes = std::fs::read(Path::new(OBJECT)).with_context(|| format!("read {OBJECT}"))?;
    let (trace, count) = (u32::from(switches.trace), u32::from(switches.count_helpers));
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    loader.override_global(rodata::TRACE, &trace, true).override_global(rodata::COUNT_HELPERS, &count, true);
    for name in HASHES {
        loader.map_max_entries(name, 4096);
    }
    loader.load(&bytes).context("create the maps of the kernel object")
}

/// Has the kernel verify one program.
pub(crate) fn verify(ebpf: &mut Ebpf, name: &str) -> Result<ProgramInfo> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        other => anyhow::bail!("{name} has type {:?}", other.prog_type()),
    }
    .with_context(|| format!("load {name}"))?;
    program.info().with_context(|| format!("ask for {name}"))
}
