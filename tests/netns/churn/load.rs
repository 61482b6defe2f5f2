//! The clients: `quilla-load` in three places, and what each tells of its connections.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use quilla_tests::command::Run;
use quilla_tests::{binary, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Frontend;

/// Long flows and new connections a second of each of the three: 500 together.
pub(super) const LONG: u64 = 167;
const RATE: u64 = 167;
/// Between two messages of a long flow.
const PAUSE_MILLISECONDS: u64 = 200;

/// A new connection as a client met it.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    /// The client's name; it has one address of each family.
    pub(super) client: &'static str,
    pub(super) begun: u64,
    /// When the answer was there.
    pub(super) done: u64,
    pub(super) target: SocketAddr,
    pub(super) server: String,
}

/// What a client told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) connections: Vec<Connection>,
    /// Messages on its long flows.
    pub(super) messages: u64,
}

/// A running `quilla-load`.
pub(super) struct Load {
    child: Child,
    first: mpsc::Receiver<String>,
    reader: JoinHandle<Result<Told>>,
    complaints: JoinHandle<String>,
    sockets: Box<dyn Fn() -> Result<String>>,
}

impl Load {
    /// New connections and long flows to the frontends; long flows to `others`, too.
    pub(super) fn start(
        name: &'static str,
        place: impl Fn(&str) -> Command,
        frontends: &[Frontend],
        others: &[SocketAddr],
    ) -> Result<Self> {
        let mut sockets = place("ss");
        sockets.args(["--no-header", "--numeric", "--tcp", "--info", "state", "established"]);
        let mut command = place(&binary::path("quilla-load")?.to_string_lossy());
        command.args(["--tell", "--pause-milliseconds", &PAUSE_MILLISECONDS.to_string()]);
        command.args(["--long", &LONG.to_string(), "--rate", &RATE.to_string(), "--seconds", "7200"]);
        for frontend in frontends {
            command.args(["--target", &frontend.at.to_string()]);
        }
        for other in others {
            command.args(["--long-target", &other.to_string()]);
        }
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start the load")?;
        let (told, said) = (child.stdout.take().context("output")?, child.stderr.take().context("errors")?);
        let (sender, first) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut lines = BufReader::new(told).lines();
            if let Some(line) = lines.next() {
                // Nobody waits for it when the test has failed already.
                drop(sender.send(line.context("read")?));
            }
            let mut told = Told::default();
            lines.map_while(Result::ok).try_for_each(|line| told.note(name, &line))?;
            Ok(told)
        });
        let complaints = thread::spawn(move || std::io::read_to_string(said).unwrap_or_default());
        let sockets = Box::new(move || {
            let mut command = Command::new(sockets.get_program());
            command.args(sockets.get_args()).text()
        });
        Ok(Self { child, first, reader, complaints, sockets })
    }

    pub(super) fn established(&self) -> Result<()> {
        let line = self.first.recv_timeout(eventually::PATIENCE).context("the long flows do not stand")?;
        ensure!(line == "established", "{line}");
        Ok(())
    }

    /// Segments that the kernel sent again on connections that stand now: nearly all of them are the long flows.
    pub(super) fn sent_again(&self) -> Result<u64> {
        let text = (self.sockets)()?;
        // `retrans:NOW/TOTAL` is there only where something was sent again.
        let totals =
            text.split_whitespace().filter_map(|word| word.strip_prefix("retrans:")?.split_once('/'));
        totals.map(|(_, total)| total.parse::<u64>().with_context(|| format!("retrans {total}"))).sum()
    }

    /// Ends it; an error if it lost anything, or had ended before.
    pub(super) fn stop(mut self) -> Result<Told> {
        let stopped = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let status = self.child.wait().context("wait for the load")?;
        let told = self.reader.join().expect("reading does not panic");
        let said = self.complaints.join().expect("reading does not panic");
        stopped.context("the load is still running")?;
        ensure!(status.success(), "the load ended with {status}: {said}");
        told
    }
}

impl Told {
    fn note(&mut self, client: &'static str, line: &str) -> Result<()> {
        if line.starts_with('{') {
            let sums: Value = serde_json::from_str(line).context("sums")?;
            self.messages = sums["longMessages"].as_u64().context("messages on long flows")?;
            return Ok(());
        }
        let mut words = line.split(' ');
        let mut word = || words.next().with_context(|| format!("not a connection: {line}"));
        let (begun, done) = (word()?.parse()?, word()?.parse()?);
        let (target, server) = (word()?.parse()?, word()?.to_owned());
        self.connections.push(Connection { client, begun, done, target, server });
        Ok(())
    }
}

/// Fails if the load was another than the test is about: connections at nine tenths of the rate, and on long flows at
/// least half as many messages as on a network without delay.
pub(super) fn ensure_generated(connections: usize, messages: u64, seconds: u64) -> Result<()> {
    let asked = usize::try_from(3 * RATE * seconds)?;
    ensure!(10 * connections >= 9 * asked, "only {connections} connections were made of {asked} asked for");
    let most = 3 * LONG * seconds * 1000 / PAUSE_MILLISECONDS;
    ensure!(2 * messages >= most, "only {messages} messages on long flows, of {most} at best");
    Ok(())
}
