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
    #[arg(
        long,
        global = true,
        env = "QUILLA_ADMIN_SOCKET",
        default_value = "/run/quilla/admin.sock",
        hide_env_values = true,
        help_heading = "Options of every command"
    )]
    socket: PathBuf,
    /// How to print: columns for people, JSON or YAML for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table,
        help_heading = "Options of every command")]
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

/// Without a word on each, which `--help` would repeat at every command.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
    Yaml,
}

/// The names are those of the agent's queries.
#[derive(Clone, Debug, Subcommand)]
enum Query {
    /// Whether the node works, how it is set up and how it sends to other nodes, one line each.
    ///
    /// `routing_mode` is what the agent was told (`--routing`), `routing` the paths that came of it. `policies_not_enforced` counts
    /// the network policies of the cluster: none restricts any traffic.
    Status,
    /// Addresses and ports of Services, who may use them, and the backends behind each.
    Services(view::ServiceFilter),
    /// Endpoints behind Services: who lists each, and how many slots select it; none of one that is draining.
    Backends(view::BackendFilter),
    /// Connections in the flow table.
    Flows(view::FlowFilter),
    /// Packets that were not delivered, and why.
    Drops(view::CountFilter),
    /// Pods attached to this node.
    Endpoints,
    /// Other nodes and how they are reached.
    Nodes,
    /// What is wrong with objects of the cluster and with this node.
    ///
    /// What is `malformed`, `unusable_address` or `duplicate` is skipped, and the rest of the object works. Of anything else the
    /// detail says what is so: a Service at the address of a Pod, for instance, is served there.
    Problems,
}

impl Query {
    /// What the agent is asked.
    fn question(&self) -> Value {
        match self {
            Self::Services(filter) => json!({"query": self.name(), "filter": filter}),
            Self::Backends(filter) => json!({"query": self.name(), "filter": filter}),
            Self::Flows(filter) => json!({"query": self.name(), "filter": filter}),
            Self::Drops(filter) => json!({"query": self.name(), "filter": filter.conditions()}),
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
        Ok(admin::ask(&self.0, question)?)
    }
}

impl install::Agent for Agent {
    fn require_ready(&self) -> Result<()> {
        let status = table::objects(self.ask(&Query::Status.question())?);
        let reason = status[0]["reason"].as_str().unwrap_or("it does not say why");
        ensure!(status[0]["ready"] == true, "{reason}");
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
        Query::Drops(view::CountFilter { seconds: Some(seconds), .. }) => {
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
        Output::Table if answer.rows.is_empty() => {
            eprintln!("quilla: {}", view::nothing(query));
            String::new()
        }
        Output::Table => {
            view::for_people(&mut answer);
            if matches!(query, Query::Status) { table::lines(&answer) } else { table::columns(&answer) }
        }
        Output::Json => format!("{:#}\n", table::objects(answer)),
        Output::Yaml => serde_saphyr::to_string(&table::objects(answer)).context("write YAML")?,
    })
}
