//! The node agent: watches the apiserver and programs the kernel.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use quilla_agent::options::{Cli, Task};
use quilla_agent::{app, selftest};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // One line with all causes: a backtrace would bury them in the log.
        Err(error) => {
            eprintln!("quilla-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Cli { options, task } = Cli::parse();
    if let Some(Task::Probe { cgroup, to, token }) = task {
        return selftest::probe(&cgroup, to, &token).context("probe");
    }
    let Some(options) = options else {
        return Cli::command().print_help().context("print help");
    };
    start_log();
    quilla_datapath::allocator::give_memory_back();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(app::run(options)).context("run the agent")
}

/// The client library reports every failed connection as an error, and each refused watch as a warning; the watches say the same
/// once, with their kind.
fn start_log() {
    let chosen = EnvFilter::try_from_env("QUILLA_LOG");
    let filter = chosen.unwrap_or_else(|_| EnvFilter::new("info,kube_client=off,kube_runtime=error"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
