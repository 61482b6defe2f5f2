//! Every developer and CI command: `cargo xtask` alone lists them.
//!
//! One file per command. A command never assumes an earlier one: what it needs it checks, builds or installs itself.

#![forbid(unsafe_code)]

mod bench;
mod check;
mod ci;
mod conformance;
mod demo;
mod doctor;
mod ebpf;
mod process;
mod product;
mod setup;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say what this machine has, and what cannot run here and why
    Doctor,
    /// Install what a fresh Debian machine lacks
    Setup,
    /// Build the kernel object into ebpf/objects/
    Ebpf {
        /// Change nothing; fail when the committed object is not what the sources give
        #[arg(long)]
        check: bool,
    },
    /// Build the product's binaries
    Build {
        #[arg(long)]
        release: bool,
    },
    /// Formatting, lints on both targets, documentation, spelling, licences, tidy
    Check,
    /// Run tests: all tiers, or one, or one with a name filter
    Test { tier: Option<String>, filter: Option<String> },
    /// Bring up a three-node cluster in network namespaces, show that it works, clean up; `--keep` leaves it up
    #[command(disable_help_flag = true)]
    Demo {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// A cluster in network namespaces to work in: `up [--routing MODE]`, `down`, `shell NODE [COMMAND]`
    #[command(disable_help_flag = true)]
    Dev {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure an optimised build: `packets`, `memory`, `cni`, `sizes`
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<String>,
    },
    /// Write the pages that are made from the sources: docs/conformance.md
    Gen,
    /// Crate edges, file sizes, names, root entries, generated pages
    Tidy,
    /// Exactly what CI runs: check, then test
    Ci,
}

fn main() -> ExitCode {
    // Not by `fn main() -> Result`: where RUST_BACKTRACE is set it prints a page of frames below a one-line reason.
    if let Err(error) = run(Cli::parse().command) {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(command: Command) -> Result<()> {
    let workspace = Workspace::find();
    match command {
        Command::Doctor => {
            doctor::doctor(&workspace);
            Ok(())
        }
        Command::Setup => setup::setup(&workspace),
        Command::Ebpf { check: true } => ebpf::check(&workspace),
        Command::Ebpf { check: false } => ebpf::build(&workspace),
        Command::Build { release } => product::build(&workspace, release),
        Command::Check => check::check(&workspace),
        Command::Test { tier, filter } => test::test(&workspace, tier.as_deref(), filter.as_deref()),
        Command::Demo { args } => demo::demo(&workspace, &args),
        Command::Dev { args } => demo::dev(&workspace, &args),
        Command::Bench { args } => bench::bench(&workspace, &args),
        Command::Gen => conformance::generate(&workspace),
        Command::Tidy => tidy::tidy(&workspace),
        Command::Ci => ci::ci(&workspace),
    }
}
