//! `cargo xtask demo` and `cargo xtask dev`: a cluster on this machine, to watch or to work in.
//!
//! Everything happens in a sandbox of namespaces: the machine's own network is neither used nor changed. Invariant:
//! whatever the demo says has been checked, and the first thing that is not so ends it with an error.

mod dev;
mod scenes;
mod screen;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use quilla_tests::{binary, netns, sandbox};

/// Name of the cluster, and so the prefix of its namespaces.
const CLUSTER: &str = "quilla";

/// `cargo xtask` hands its own words on, so its name is the one that people know.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "A Quilla cluster in network namespaces of this machine"
)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring up a cluster of three nodes, show that it works, clean up.
    Demo {
        /// Leave the cluster up after the demo, until Ctrl-C or `cargo xtask dev down`.
        #[arg(long)]
        keep: bool,
    },
    /// A cluster to work in.
    Dev {
        #[command(subcommand)]
        action: dev::Action,
    },
}

fn main() -> ExitCode {
    let outcome = match Options::parse().command {
        Command::Demo { keep } => demo(keep),
        Command::Dev { action } => dev::run(&action),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{}", screen::bad(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn demo(keep: bool) -> Result<()> {
    if keep {
        dev::is_only_one()?;
    }
    sandbox::enter_recorded(keep.then_some(record()?.as_path()))?;
    let cluster = scenes::play()?;
    if keep {
        screen::say(&format!(
            "\nThe cluster stays up until you press Ctrl-C. From another terminal:\n{}",
            dev::how_to_look_inside()
        ));
        loop {
            std::thread::park();
        }
    }
    screen::step("Cleaning up", || {
        cluster.stop()?;
        let left = netns::names(&format!("{CLUSTER}."));
        ensure!(left.is_empty(), "still there: {left:?}");
        Ok("no namespace of the cluster is left".to_owned())
    })?;
    screen::farewell();
    Ok(())
}

/// Where the one kept cluster of this build can be found.
fn record() -> Result<PathBuf> {
    Ok(binary::folder()?.join("quilla-dev.json"))
}
