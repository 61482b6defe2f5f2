//! The node agent: watches the apiserver and programs the kernel.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};
use quilla_agent::options::{Cli, Task};
use quilla_agent::{app, selftest};
use tracing_subscriber::EnvFilter;

fn main() -> Result<()> {
    let Cli { options, task } = Cli::parse();
    if let Some(Task::Probe { cgroup, to, token }) = task {
        return selftest::probe(&cgroup, to, &token).context("probe");
    }
    let Some(options) = options else {
        return Cli::command().print_help().context("print help");
    };
    let filter = EnvFilter::try_from_env("QUILLA_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(app::run(options)).context("run the agent")
}
