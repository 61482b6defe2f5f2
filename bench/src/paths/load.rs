//! The load: two processes, of which one asks and one answers, with blocking sockets.
//!
//! Each is this program again, started by [`super::process`] in the place that it loads. Both stay on one processor, so
//! that the kernel's work for them is done there too. They do nothing until a line comes in: for the client a metric and
//! milliseconds, for the server anything, upon which it says what it has done so far. Invariant: the client's figure
//! counts nothing that the server has not answered or received.

mod client;
mod server;

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// An answer that takes longer than this is lost.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    role: Role,
    /// The processor to stay on.
    #[arg(long, global = true, default_value_t = 0)]
    core: usize,
}

#[derive(Subcommand)]
enum Role {
    /// Answer at this address
    Serve { address: IpAddr },
    /// Ask the server at this address
    Ask { server: IpAddr },
}

pub(crate) fn run(options: &Options) -> Result<()> {
    stay_on(options.core)?;
    // As little as possible of another's work in between.
    setpriority_process(None, -20).context("raise the priority")?;
    match options.role {
        Role::Serve { address } => server::run(address),
        Role::Ask { server } => client::run(server, options.core),
    }
}

fn stay_on(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    ensure!(core < CpuSet::MAX_CPU, "no processor {core}");
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("stay on processor {core}"))
}

/// Answers the other end of the pipe at once.
fn say(line: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).context("answer")
}

/// Time on processors that this process has used, the kernel's work in its name included.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// A stretch of time on one processor.
struct Window {
    core: usize,
    ticks: [u64; 2],
    used: Duration,
    length: Duration,
    start: Instant,
}

impl Window {
    fn open(core: usize, length: Duration) -> Result<Self> {
        let ticks = ticks(core)?;
        Ok(Self { core, ticks, used: processor_time(), length, start: Instant::now() })
    }

    fn is_open(&self) -> bool {
        self.start.elapsed() < self.length
    }

    /// What [`super::process`] reads: amount, nanoseconds, of these by this process, idle, and taken by a hypervisor.
    fn close(&self, amount: u64) -> Result<String> {
        let (wall, used) = (self.start.elapsed(), processor_time().saturating_sub(self.used));
        let now = ticks(self.core)?;
        let [idle, stolen] = [0, 1].map(|kind| (now[kind] - self.ticks[kind]) * NANOSECONDS_PER_TICK);
        Ok(format!("{amount} {} {} {idle} {stolen}", wall.as_nanos(), used.as_nanos()))
    }
}

/// `USER_HZ` is 100 on every architecture that we know.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;

/// Idle and stolen time of a processor.
fn ticks(core: usize) -> Result<[u64; 2]> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    parse_ticks(&text, core).with_context(|| format!("no processor {core} in /proc/stat"))
}

fn parse_ticks(text: &str, core: usize) -> Option<[u64; 2]> {
    let name = format!("cpu{core} ");
    let fields: Vec<u64> = text
        .lines()
        .find_map(|line| line.strip_prefix(&name))?
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    Some([fields.get(3)? + fields.get(4)?, *fields.get(7)?])
}

#[cfg(test)]
mod tests {
    use super::parse_ticks;

    #[test]
    fn idle_includes_waiting_for_disks() {
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 0 0 0 40 0 0 0 2 0 0\n";
        assert_eq!(parse_ticks(text, 0), Some([9, 8]));
        assert_eq!(parse_ticks(text, 1), Some([40, 2]));
        assert_eq!(parse_ticks(text, 2), None);
    }
}
