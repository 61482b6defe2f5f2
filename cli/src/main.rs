//! What a person types: asks the agent of this node, prints rows.
//!
//! Every answer is columns and rows; only `view` knows some of them by name. Changes nothing anywhere.
#![forbid(unsafe_code)]

mod admin;
mod table;
mod view;

use std::io::{ErrorKind, Write, stdout};
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
#[derive(Clone, Debug, Subcommand)]
enum Query {
    /// Whether the node works, in one line.
    Status,
    /// Frontends and what stands behind each.
    Services,
    /// Endpoints of Services by id, with the slots that select them.
    Backends,
    /// Connections in the flow table.
    Flows(view::FlowFilter),
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
    fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Services => "services",
            Self::Backends => "backends",
            Self::Flows(_) => "flows",
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
    let ask =
        |query| admin::ask(&socket, query).with_context(|| format!("ask the agent at {}", socket.display()));
    let mut answer = ask(query.name())?;
    if let Query::Flows(filter) = &query {
        let services = filter.service.as_ref().map(|_| ask(Query::Services.name())).transpose()?;
        view::flows(&mut answer, filter, services.as_ref());
    }
    let text = match output {
        Output::Table => {
            view::for_people(&query, &mut answer);
            table::columns(&answer)
        }
        Output::Json => format!("{:#}\n", table::objects(answer)),
    };
    match stdout().lock().write_all(text.as_bytes()) {
        // Whoever read has seen enough: `quilla flows | head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write"),
    }
}
