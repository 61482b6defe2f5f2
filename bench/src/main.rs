//! Measurements of the product, each a subcommand that prints Markdown: what `docs/performance.md` is made of.
//!
//! Run by `cargo xtask bench`, which builds everything with optimisation first. Nothing here passes or fails by time: a
//! measurement fails only when what it was about to measure did not happen.

#![forbid(unsafe_code)]

mod cni;
mod environment;
mod memory;
mod packets;
mod paths;
mod program;
mod scale;
mod sizes;
mod statistics;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use quilla_tests::sandbox::{self, Sandbox};

#[derive(Parser)]
#[command(name = "quilla-bench", about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    case: Case,
}

#[derive(Subcommand)]
enum Case {
    /// Nanoseconds and helper calls of an established packet on each path
    Packets(packets::Options),
    /// Throughput and latency between Pods, beside what a path could be made of
    Paths(paths::Options),
    /// One end of a path
    #[command(hide = true)]
    Load(paths::load::Options),
    /// Start to exit of the CNI plugin, alone and in a crowd, beside the reference plugins
    Cni(cni::Options),
    /// Memory of the agent and of its maps, and the time until the kernel is programmed
    Memory(memory::Options),
    /// A large cluster through the agent's reconciler into the maps
    Scale(scale::Options),
    /// Sizes of this build's binaries
    Sizes,
}

fn main() -> ExitCode {
    if let Err(error) = run(&Cli::parse().case) {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(case: &Case) -> Result<()> {
    match case {
        Case::Packets(options) => {
            enter()?;
            packets::measure(options)
        }
        Case::Paths(options) => {
            paths::prepare(options)?;
            enter()?;
            paths::measure(options)
        }
        Case::Load(options) => paths::load::run(options),
        Case::Cni(options) => {
            enter()?;
            cni::measure(options)
        }
        Case::Memory(options) => {
            enter()?;
            memory::measure(options)
        }
        Case::Scale(options) => {
            enter()?;
            scale::measure(options)
        }
        Case::Sizes => sizes::measure(),
    }
}

/// Returns inside a sandbox; on the way there says what kind of machine it is.
fn enter() -> Result<()> {
    if Sandbox::current().is_err() {
        environment::print();
    }
    sandbox::enter().map(drop)
}
