//! What a person types: asks the agent of this node, prints rows.
//!
//! Knows no kind of row: every answer is columns and rows. Changes nothing anywhere.
#![forbid(unsafe_code)]

mod admin;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};

/// Shows what the data plane of this node does.
#[derive(Debug, Parser)]
#[command(name = "quilla", version)]
struct Cli {
    /// The agent's admin socket.
    #[arg(long, global = true, env = "QUILLA_ADMIN_SOCKET", default_value = "/run/quilla/admin.sock")]
    socket: PathBuf,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(subcommand)]
    query: Query,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// Columns for people.
    Table,
    /// One JSON array for programs.
    Json,
}

/// The names are those of the agent's queries.
#[derive(Clone, Copy, Debug, Subcommand)]
enum Query {
    /// Whether the node works, in one line.
    Status,
    /// Frontends and what stands behind each.
    Services,
    /// Endpoints of Services by id, with the slots that select them.
    Backends,
    /// Connections in the flow table.
    Flows,
    /// Packets not delivered and why, packets delivered and how.
    Drops,
    /// Pods attached to this node.
    Endpoints,
    /// Other nodes and how they are reached.
    Nodes,
    /// Parts of objects that are skipped because they are wrong.
    Problems,
}

impl Query {
    fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Services => "services",
            Self::Backends => "backends",
            Self::Flows => "flows",
            Self::Drops => "drops",
            Self::Endpoints => "endpoints",
            Self::Nodes => "nodes",
            Self::Problems => "problems",
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quilla: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Cli { socket, output, query } = Cli::parse();
    let answer = admin::ask(&socket, query.name())
        .with_context(|| format!("ask the agent at {}", socket.display()))?;
    match output {
        Output::Table => print!("{}", table::columns(&answer)),
        Output::Json => println!("{:#}", table::objects(answer)),
    }
    Ok(())
}
