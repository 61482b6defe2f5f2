//! Loading the programs, with a verifier's log that is worth reading and costs nothing otherwise.
//!
//! Called by [`crate::Datapath::open`]. A verifier's log of a program that explodes is 16 MB and takes half a minute to
//! write, so it is asked for only after a failure that it can explain, and only its end is kept.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use quilla_abi::map as map_name;
use quilla_abi::program::rodata;

use crate::error::{DatapathError, Result};
use crate::map::PINNED;
use crate::object::Object;

/// How much of a verifier's log an error carries: the end says what was wrong.
const LOG_LIMIT: usize = 64 * 1024;
/// `BPF_F_IPV6` of `bpf_l4_csum_replace`.
const IPV6_CHECKSUM_FLAG: u32 = 1 << 7;

/// What the loader writes into the object's read-only data, and how large it makes the flow tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Constants {
    pub(crate) hz: u32,
    pub(crate) ipv6_checksum: bool,
    pub(crate) trace: bool,
    pub(crate) count_helpers: bool,
    pub(crate) flow_capacity: u32,
}

/// The loaded object and a descriptor of each of its programs.
pub(crate) struct Programs {
    pub(crate) object: Ebpf,
    pub(crate) fds: BTreeMap<String, OwnedFd>,
}

pub(crate) fn load(object: &Object<'_>, constants: Constants, maps: &Path) -> Result<Programs> {
    match load_with(object, constants, maps, VerifierLogLevel::STATS) {
        // Too many instructions, states or jumps: the log would only be long.
        Err(DatapathError::Program { source, .. }) if source.raw_os_error() != Some(libc::E2BIG) => {
            load_with(object, constants, maps, VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)
        }
        other => other,
    }
}

fn load_with(
    object: &Object<'_>,
    constants: Constants,
    maps: &Path,
    level: VerifierLogLevel,
) -> Result<Programs> {
    let Constants { hz, ipv6_checksum, trace, count_helpers, flow_capacity } = constants;
    let ipv6_checksum_flag = if ipv6_checksum { IPV6_CHECKSUM_FLAG } else { 0 };
    let (trace, count_helpers) = (u32::from(trace), u32::from(count_helpers));
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(level)
        .map_max_entries(map_name::FLOWS_V4, flow_capacity)
        .map_max_entries(map_name::FLOWS_V6, flow_capacity)
        .override_global(rodata::HZ, &hz, true)
        .override_global(rodata::IPV6_CHECKSUM_FLAG, &ipv6_checksum_flag, true)
        .override_global(rodata::TRACE, &trace, true)
        .override_global(rodata::COUNT_HELPERS, &count_helpers, true);
    for &map in PINNED {
        loader.map_pin_path(map, maps.join(map));
    }
    let mut object =
        loader.load(object.bytes()).map_err(|source| DatapathError::Object { source: Box::new(source) })?;
    let mut fds = BTreeMap::new();
    for (name, program) in object.programs_mut() {
        load_patiently(program).map_err(|error| describe(name, error))?;
        let fd = program
            .fd()
            .map_err(|error| describe(name, error))?
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| DatapathError::kernel("duplicate program", name, source))?;
        fds.insert(name.to_owned(), fd);
    }
    Ok(Programs { object, fds })
}

/// The kernel gives a verification up with `EAGAIN` when a signal arrives; as often as libbpf, we ask again.
fn load_patiently(program: &mut Program) -> Result<(), ProgramError> {
    const INTERRUPTIONS: u32 = 5;
    let interrupted = |error: &ProgramError| matches!(error, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN));
    for _ in 1..INTERRUPTIONS {
        match load_program(program) {
            Err(error) if interrupted(&error) => {}
            other => return other,
        }
    }
    load_program(program)
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn describe(program: &str, error: ProgramError) -> DatapathError {
    let (source, log) = match error {
        ProgramError::LoadError { io_error, verifier_log } => (io_error, tail(&verifier_log.to_string())),
        other => (io::Error::other(other), String::new()),
    };
    DatapathError::Program { program: program.to_owned(), log, source }
}

fn tail(log: &str) -> String {
    let start = log.ceil_char_boundary(log.len().saturating_sub(LOG_LIMIT));
    log[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_end() {
        let log = format!("{}the reason", "x".repeat(2 * LOG_LIMIT));
        let kept = tail(&log);
        assert_eq!(kept.len(), LOG_LIMIT);
        assert!(kept.ends_with("the reason"));
    }
}
