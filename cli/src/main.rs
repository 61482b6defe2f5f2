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
use serde_json::{Value, json};

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
    /// The same as YAML.
    Yaml,
}

/// The names are those of the agent's queries.
#[derive(Clone, Debug, Subcommand)]
enum Query {
    /// Whether the node works, in one line.
    Status,
    /// Addresses and ports of Services, who may use them, and the backends behind each.
    Services,
    /// Endpoints of Services by id, with the Services and the slots that select them.
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
    /// What the agent is asked.
    fn question(&self) -> Value {
        match self {
            Self::Flows(filter) => json!({"query": self.name(), "filter": filter}),
            _ => json!({"query": self.name()}),
        }
    }

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
    let question = query.question();
    let asked = admin::ask(&socket, &question);
    let mut answer = asked.with_context(|| format!("ask the agent at {}", socket.display()))?;
    if let Query::Flows(filter) = &query {
        view::flows(&mut answer, filter);
    }
    if answer.omitted > 0 {
        eprintln!("quilla: {} more are not listed; narrow the question", answer.omitted);
    }
    let text = match output {
        Output::Table => {
            view::for_people(&query, &mut answer);
            table::columns(&answer)
        }
        Output::Json => format!("{:#}\n", table::objects(answer)),
        Output::Yaml => serde_saphyr::to_string(&table::objects(answer)).context("write YAML")?,
    };
    match stdout().lock().write_all(text.as_bytes()) {
        // Whoever read has seen enough: `quilla flows | head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write"),
    }
}
