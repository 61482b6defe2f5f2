//! The CNI plugin: wires the network namespace of a Pod.
//!
//! Started by the container runtime once per operation; reads the environment and standard input, answers on standard
//! output. It does the netlink work itself, in the host's namespaces; addresses and eBPF are the agent's, asked over a
//! unix socket. An ADD that fails leaves nothing behind, and DEL needs nobody.
#![forbid(unsafe_code)]

mod add;
mod agent;
mod bandwidth;
mod chained;
mod check;
mod del;
mod gc;
mod host;
mod invocation;
mod ipam;
mod log;
mod netlink;
mod netns;
mod pod;
mod sysctl;
mod wishes;

use std::io::{self, Read, Write};
use std::process::ExitCode;

use quilla_cni_protocol::{CniError, ErrorCode, NetworkConfig, Request, SpecVersion};
use serde_json::{Value, json};

use crate::invocation::{Invocation, Verb};
use crate::ipam::Delegate;

fn main() -> ExitCode {
    let mut input = Vec::new();
    let outcome = io::stdin()
        .read_to_end(&mut input)
        .map_err(|error| CniError::new(ErrorCode::IO_FAILURE, "read standard input", error.to_string()))
        .and_then(|_| run(&input));
    let (document, code) = match outcome {
        Ok(document) => (document, ExitCode::SUCCESS),
        Err(error) => (Some(report(&error, &input)), ExitCode::FAILURE),
    };
    let Some(document) = document else { return code };
    match writeln!(io::stdout(), "{document}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// One operation; the document to print, if it has one.
fn run(input: &[u8]) -> Result<Option<Value>, CniError> {
    let invocation = Invocation::from_env(|name| std::env::var_os(name))?;
    if invocation.verb == Verb::Version {
        return version(input).map(Some);
    }
    let config = match invocation.verb {
        Verb::Del(_) => NetworkConfig::parse_for_del(input)?,
        _ => NetworkConfig::parse(input)?,
    };
    require_version(&invocation, &config)?;
    let ipam = Delegate::of(&config, &invocation.plugin_folders);
    let ipam = ipam.as_ref();
    match &invocation.verb {
        Verb::Add(target) => add::run(target, &config, ipam).map(Some),
        Verb::Del(attachment) => del::run(attachment, &config, ipam, None).map(|()| None),
        Verb::Check(target) => check::run(target, &config, ipam).map(|()| None),
        Verb::Gc => gc::run(&config, ipam).map(|()| None),
        Verb::Status => status(&config, ipam).map(|()| None),
        Verb::Version => version(input).map(Some),
    }
}

/// CHECK came with 0.4.0, GC and STATUS with 1.1.0.
fn require_version(invocation: &Invocation, config: &NetworkConfig) -> Result<(), CniError> {
    let (verb, oldest) = match invocation.verb {
        Verb::Check(_) => ("CHECK", SpecVersion::V0_4_0),
        Verb::Gc => ("GC", SpecVersion::V1_1_0),
        Verb::Status => ("STATUS", SpecVersion::V1_1_0),
        Verb::Add(_) | Verb::Del(_) | Verb::Version => return Ok(()),
    };
    if config.version >= oldest {
        return Ok(());
    }
    let details = format!("{verb} needs {oldest}, config is {}", config.version);
    Err(CniError::new(ErrorCode::INCOMPATIBLE_VERSION, "incompatible cni version", details))
}

fn version(input: &[u8]) -> Result<Value, CniError> {
    let document: Value = serde_json::from_slice(input).map_err(|error| {
        CniError::new(ErrorCode::DECODE_FAILURE, "decode version request", error.to_string())
    })?;
    let asked = document.get("cniVersion").and_then(Value::as_str).unwrap_or(SpecVersion::LATEST.as_str());
    Ok(json!({ "cniVersion": asked, "supportedVersions": SpecVersion::ALL.map(SpecVersion::as_str) }))
}

/// STATUS: whatever keeps an ADD from being served is "not available" to the runtime.
fn status(config: &NetworkConfig, ipam: Option<&Delegate<'_>>) -> Result<(), CniError> {
    agent::Agent::connect(config)
        .and_then(|mut agent| agent.ask_done(Request::Status))
        .and_then(|()| ipam.map_or(Ok(()), |ipam| ipam.forward("STATUS")))
        .map_err(|error| match error.code {
            ErrorCode::LIMITED_CONNECTIVITY => error,
            _ => CniError { code: ErrorCode::NOT_AVAILABLE, ..error },
        })
}

/// Tells the operator and makes the document for the runtime.
fn report(error: &CniError, input: &[u8]) -> Value {
    let log_file = NetworkConfig::parse(input).ok().and_then(|config| config.log_file);
    log::failure(error, log_file.as_deref());
    let version = NetworkConfig::requested_version(input);
    error.encode(version.as_deref().unwrap_or(SpecVersion::LATEST.as_str()))
}
