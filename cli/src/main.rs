//! What a person types: asks the agent of this node, prints rows.
//!
//! Every answer is columns and rows; only `view` knows some of them by name. Only `install` changes anything, and only
//! files of the container runtime.
#![forbid(unsafe_code)]

mod admin;
mod install;
mod table;
mod view;

use std::io::{ErrorKind, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
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
    task: Task,
}

#[derive(Clone, Debug, Subcommand)]
enum Task {
    #[command(flatten)]
    Query(Query),
    /// Give the container runtime the CNI plugin and its network, once the agent is ready.
    InstallCni(install::Options),
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
    Services(view::ServiceFilter),
    /// Endpoints by id: which Services list them, and how many slots select them; none of one that is draining.
    Backends(view::BackendFilter),
    /// Connections in the flow table.
    Flows(view::FlowFilter),
    /// Packets not delivered and why, packets delivered and how.
    Drops(DropOptions),
    /// Pods attached to this node.
    Endpoints,
    /// Other nodes and how they are reached.
    Nodes,
    /// Parts of objects that are skipped because they are wrong.
    Problems,
}

#[derive(clap::Args, Clone, Debug)]
struct DropOptions {
    /// Only what is counted from now on, for so long.
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,
}

impl Query {
    /// What the agent is asked.
    fn question(&self) -> Value {
        match self {
            Self::Services(filter) => json!({"query": self.name(), "filter": filter}),
            Self::Backends(filter) => json!({"query": self.name(), "filter": filter}),
            Self::Flows(filter) => json!({"query": self.name(), "filter": filter}),
            _ => json!({"query": self.name()}),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Services(_) => "services",
            Self::Backends(_) => "backends",
            Self::Flows(_) => "flows",
            Self::Drops(_) => "drops",
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
    let Cli { socket, output, task } = Cli::parse();
    let text = match task {
        Task::Query(query) => show(&Agent(socket), output, &query)?,
        Task::InstallCni(options) => install::run(&options, &Agent(socket))?,
    };
    match stdout().lock().write_all(text.as_bytes()) {
        // Whoever read has seen enough: `quilla flows | head`.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write"),
    }
}

/// The agent behind its admin socket.
struct Agent(PathBuf);

impl Agent {
    fn ask(&self, question: &Value) -> Result<admin::Answer> {
        admin::ask(&self.0, question).with_context(|| format!("ask the agent at {}", self.0.display()))
    }
}

impl install::Agent for Agent {
    fn require_ready(&self) -> Result<()> {
        let status = table::objects(self.ask(&Query::Status.question())?);
        ensure!(status[0]["ready"] == true, "{}", status[0]["reason"]);
        Ok(())
    }

    fn pods(&self) -> Result<usize> {
        Ok(self.ask(&Query::Endpoints.question())?.rows.len())
    }
}

fn show(agent: &Agent, output: Output, query: &Query) -> Result<String> {
    let mut answer = agent.ask(&query.question())?;
    match query {
        Query::Flows(filter) => view::flows(&mut answer, filter),
        Query::Drops(DropOptions { seconds: Some(seconds) }) => {
            sleep(Duration::from_secs(*seconds));
            let before = std::mem::replace(&mut answer, agent.ask(&query.question())?);
            view::counted_since(&mut answer, &before);
        }
        _ => {}
    }
    if answer.omitted > 0 {
        eprintln!("quilla: {} more are not listed; narrow the question", answer.omitted);
    }
    Ok(match output {
        Output::Table => {
            view::for_people(query, &mut answer);
            if matches!(query, Query::Status) { table::lines(&answer) } else { table::columns(&answer) }
        }
        Output::Json => format!("{:#}\n", table::objects(answer)),
        Output::Yaml => serde_saphyr::to_string(&table::objects(answer)).context("write YAML")?,
    })
}
