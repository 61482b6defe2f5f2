//! The two processes of a path, as the one that asks them for figures sees them.

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::metric::Metric;
use super::quiet::Core;

/// What a slice came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Answers or bytes in a second.
    pub(super) per_second: f64,
    /// Seconds of processor time, of both ends and of the kernel for them, for each answer or byte.
    pub(super) cost: f64,
    /// Which part of the time somebody else had the processor.
    pub(super) foreign: f64,
}

impl Sample {
    /// Of an amount, and nanoseconds: in all, of both ends, of others.
    #[expect(clippy::cast_precision_loss, reason = "a slice has far fewer nanoseconds and bytes than 2^52")]
    fn of(amount: u64, nanoseconds: [u64; 3]) -> Self {
        let [wall, own, foreign] = nanoseconds.map(|time| time as f64 / 1e9);
        let amount = amount as f64;
        Self { per_second: amount / wall, cost: own / amount, foreign: foreign / wall }
    }
}

/// Client and server of one path.
#[derive(Debug)]
pub(super) struct Pair {
    client: Process,
    server: Process,
    core: Core,
}

impl Pair {
    /// Starts them by commands that run this program where the ends are.
    pub(super) fn start(client: Command, server: Command, address: IpAddr, core: &Core) -> Result<Self> {
        let server = Process::start(server, "serve", address, core.number)?;
        let client = Process::start(client, "ask", address, core.number)?;
        Ok(Self { client, server, core: core.clone() })
    }

    /// Measures one slice, after a time that does not count.
    pub(super) fn slice(&mut self, metric: Metric, warm_up: Duration, length: Duration) -> Result<Sample> {
        self.ask(metric, warm_up)?;
        let (before, soft_before) = (self.done()?, self.core.soft_interrupts()?);
        let [amount, wall, client, idle, stolen] = self.ask(metric, length)?;
        let (after, soft_after) = (self.done()?, self.core.soft_interrupts()?);
        let counted = usize::from(metric.is_stream());
        let served = after[counted] - before[counted];
        ensure!(served == amount, "the server counts {served}, the client {amount}");
        let soft = soft_after - soft_before;
        let own = client + (after[2] - before[2]) + soft;
        let foreign = wall.saturating_sub(own + idle) + stolen;
        ensure!(amount > 0, "nothing happened");
        Ok(Sample::of(amount, [wall, own, foreign]))
    }

    /// What happened within a time, without any measure of it.
    pub(super) fn load(&mut self, metric: Metric, length: Duration) -> Result<u64> {
        Ok(self.ask(metric, length)?[0])
    }

    /// Amount, and nanoseconds: in all, of the client, idle, stolen.
    fn ask(&mut self, metric: Metric, length: Duration) -> Result<[u64; 5]> {
        let name = metric.to_possible_value().context("a metric without a name")?;
        self.client.ask(&format!("{} {}", name.get_name(), length.as_millis()))
    }

    /// Answers, bytes, nanoseconds of processor time, of the server so far.
    fn done(&mut self) -> Result<[u64; 3]> {
        self.server.ask("")
    }
}

/// One of them.
#[derive(Debug)]
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(mut command: Command, role: &str, address: IpAddr, core: usize) -> Result<Self> {
        command.args(["load", role, &address.to_string(), "--core", &core.to_string()]);
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| format!("start {command:?}"))?;
        let input = child.stdin.take().context("input of the load")?;
        let output = BufReader::new(child.stdout.take().context("output of the load")?);
        let mut process = Self { child, input, output };
        let ready = process.line()?;
        ensure!(ready == "ready", "the load did not start: {ready}");
        Ok(process)
    }

    fn ask<const N: usize>(&mut self, request: &str) -> Result<[u64; N]> {
        writeln!(self.input, "{request}").context("ask the load")?;
        let answer = self.line()?;
        let numbers: Vec<u64> = answer.split(' ').map_while(|number| number.parse().ok()).collect();
        numbers.try_into().ok().with_context(|| format!("the load says: {answer}"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self.output.read_line(&mut line).context("listen to the load")?;
        ensure!(length > 0, "the load ended: {:?}", self.child.try_wait());
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already, or is to.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
