//! `packets`: what an established packet costs on each path, by `BPF_PROG_TEST_RUN`.
//!
//! A run of the kernel repeats the program on one packet, each time on what the time before left. All packets here are
//! chosen so that this is again an established packet of the same path with the same work: [`world`] and
//! [`rig::alternate`] say how. That it is so is checked by the counted helper calls, which must be a whole number for each
//! packet, and by the counters of forwarded packets, which must have moved by every single one.

mod empty;
pub(crate) mod growth;
mod path;
mod rig;
mod world;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use quilla_abi::counter::helper;
use quilla_abi::program::CLOCK;
use quilla_datapath::{TestContext, TestRunner};
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};

use crate::statistics::Summary;
use crate::table::Table;
use path::{Path, check, establish};
use rig::{Calls, Rig};

/// How often the kernel repeats a packet: fewer than it has hops, and enough to hide the system call.
const REPEATS: u32 = 200;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often every path is measured, in turn.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// System calls of each path and round, of which the middle one counts.
    #[arg(long, default_value_t = 300)]
    calls: u32,
}

/// Kinds of helpers worth a column.
const COLUMNS: [(u32, &str); 8] = [
    (helper::LOOKUP_FLOW, "flow"),
    (helper::LOOKUP_HASH, "hash"),
    (helper::LOOKUP_LPM, "trie"),
    (helper::UPDATE, "update"),
    (helper::LOOKUP_ARRAY, "array"),
    (helper::CHECKSUM, "sum"),
    (helper::TUNNEL, "tunnel"),
    (helper::REDIRECT, "redirect"),
];

pub(crate) fn measure(options: &Options) -> Result<()> {
    let netns = world::namespace()?;
    netns.run(|| measure_inside(options))?
}

fn measure_inside(options: &Options) -> Result<()> {
    let mut counted = Rig::load("counted", true, true)?;
    let mut paths = Vec::new();
    for addresses in &world::FAMILIES {
        paths.extend(establish(&mut counted, addresses)?);
    }
    for path in &paths {
        check(&mut counted, path).with_context(|| format!("{}, IPv{}", path.name, path.family()))?;
    }
    let calls = paths.iter().map(|path| count(&mut counted, path)).collect::<Result<Vec<_>>>()?;
    let plain = Rig::load("plain", false, false)?;
    let traced = Rig::load("traced", true, false)?;
    plain.adopt(&counted)?;
    traced.adopt(&counted)?;
    let times = Bench { empty: empty::load()?, plain, traced }.run(options, &paths)?;
    print!("{}", report(options, &paths, &calls, &times));
    Ok(())
}

/// Helper calls of one packet. Anything but a whole number means that the packets were not alike.
fn count(rig: &mut Rig, path: &Path) -> Result<Calls> {
    let before = rig.calls()?;
    rig.run(&path.step, &path.step.frame(), REPEATS)?;
    let after = rig.calls()?;
    let mut calls = Calls::default();
    for (kind, count) in calls.iter_mut().enumerate() {
        let total = after[kind] - before[kind];
        ensure!(total.is_multiple_of(REPEATS.into()), "{}: {total} helper calls of kind {kind}", path.name);
        *count = total / u64::from(REPEATS);
    }
    Ok(calls)
}

/// Nanoseconds of one run: the empty program, the program that reads the clock, then each path.
struct Times {
    empty: Summary,
    clock: Summary,
    paths: Vec<Summary>,
}

struct Bench {
    empty: TestRunner,
    plain: Rig,
    traced: Rig,
}

impl Bench {
    /// Interleaved: whatever disturbs the machine disturbs all of them.
    fn run(&mut self, options: &Options, paths: &[Path]) -> Result<Times> {
        pin()?;
        let frame = paths.first().context("a path")?.step.frame();
        let (mut empty, mut clock) = (Vec::new(), Vec::new());
        let mut each = vec![Vec::new(); paths.len()];
        for _ in 0..options.rounds.max(1) {
            let nowhere = TestContext::default();
            empty.push(sample(&mut self.empty, &frame, &nowhere, options.calls)?);
            clock.push(sample(self.plain.runner(CLOCK)?, &frame, &nowhere, options.calls)?);
            for (path, times) in paths.iter().zip(&mut each) {
                times.push(self.sample(path, options.calls)?);
            }
        }
        let paths = each.iter().map(|times| Summary::of(times)).collect();
        Ok(Times { empty: Summary::of(&empty), clock: Summary::of(&clock), paths })
    }

    fn sample(&mut self, path: &Path, calls: u32) -> Result<f64> {
        let rig = if path.needs_trace() { &mut self.traced } else { &mut self.plain };
        let before = rig.forwarded(path.exit)?;
        let time = sample(rig.runner(path.step.program)?, &path.step.frame(), &path.step.context(), calls)?;
        let forwarded = rig.forwarded(path.exit)? - before;
        let sent = u64::from(calls) * u64::from(REPEATS);
        ensure!(forwarded == sent, "{}: {forwarded} of {sent} packets were forwarded", path.name);
        Ok(time)
    }
}

/// The middle of many calls, each by the clock on the wall over its repeats: what the kernel reports is whole
/// nanoseconds only.
fn sample(runner: &mut TestRunner, frame: &[u8], context: &TestContext, calls: u32) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..calls.max(1) {
        let start = Instant::now();
        runner.repeat(frame, context, REPEATS)?;
        times.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(REPEATS));
    }
    Ok(Summary::of(&times).median)
}

/// Stays on this processor, where the program and the maps are in the caches.
fn pin() -> Result<()> {
    let mut set = CpuSet::new();
    set.set(sched_getcpu());
    sched_setaffinity(None, &set).context("stay on one processor")
}

fn report(options: &Options, paths: &[Path], calls: &[Calls], times: &Times) -> String {
    let names = COLUMNS.map(|(_, name)| name);
    let mut table =
        Table::new(&[&["path", "IP", "program", "ns", "range", "over empty"][..], &names].concat());
    let base = times.empty.median;
    let cells = |name: &str, family: &str, program: &str, time: &Summary| {
        let range = format!("{:.0}-{:.0}", time.least, time.most);
        // Adding zero makes a negative zero positive.
        let over = (time.median - base).round() + 0.0;
        let (ns, over) = (format!("{:.0}", time.median), format!("{over:.0}"));
        vec![name.to_owned(), family.to_owned(), program.to_owned(), ns, range, over]
    };
    let none = COLUMNS.map(|_| String::new());
    table.row([cells("empty program", "", "", &times.empty), none.to_vec()].concat());
    table.row([cells("reading the clock", "", CLOCK, &times.clock), none.to_vec()].concat());
    for ((path, calls), time) in paths.iter().zip(calls).zip(&times.paths) {
        let counts = COLUMNS.map(|(kind, _)| calls[kind as usize].to_string());
        table.row([cells(path.name, path.family(), path.step.program, time), counts.to_vec()].concat());
    }
    format!(
        "Median of {} rounds, least and most; each round the median of {} calls of {REPEATS} runs.\n\n{table}",
        options.rounds, options.calls
    )
}
