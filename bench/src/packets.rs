//! `packets`: what an established packet costs on each path, by `BPF_PROG_TEST_RUN`.
//!
//! A run of the kernel repeats the program on one packet, each time on what the time before left. All packets here are
//! chosen so that this is again an established packet of the same path with the same work: [`world`] and
//! [`rig::alternate`] say how. That it is so is checked by the counted helper calls, which must be a whole number for each
//! packet, and by the counters of forwarded packets, which must have moved by every single one. What cannot be repeated,
//! outer headers and connections from their first packet to their last, is in [`connection`]; many flows instead of one are in
//! [`flows`].

mod candidate;
mod connection;
mod empty;
mod flows;
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
use candidate::Candidate;
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
    /// New connections of each kind and round.
    #[arg(long, default_value_t = 300)]
    connections: u16,
    /// How often the programs are loaded anew to measure connections.
    #[arg(long, default_value_t = 3)]
    loads: usize,
    /// Entries of each flow table.
    #[arg(long, default_value_t = 65_536)]
    flows: u32,
    /// A kernel object instead of the one of this build; several are measured in turn.
    #[arg(long = "object", value_name = "NAME=FILE")]
    objects: Vec<Candidate>,
    /// Only established packets of one flow, only connections, or only established packets of many flows.
    #[arg(long)]
    only: Option<Part>,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Established,
    Connections,
    Flows,
}

/// Kinds of helpers worth a column.
const COLUMNS: [(u32, &str); 9] = [
    (helper::LOOKUP_FLOW, "flow"),
    (helper::LOOKUP_HASH, "hash"),
    (helper::LOOKUP_LPM, "trie"),
    (helper::UPDATE, "update"),
    (helper::LOOKUP_ARRAY, "array"),
    (helper::CHECKSUM, "sum"),
    (helper::PACKET, "packet"),
    (helper::TUNNEL, "tunnel"),
    (helper::REDIRECT, "redirect"),
];

pub(crate) fn measure(options: &Options) -> Result<()> {
    let netns = world::namespace()?;
    netns.run(|| measure_inside(options))?
}

fn measure_inside(options: &Options) -> Result<()> {
    let mut candidates = options.objects.clone();
    if candidates.is_empty() {
        candidates.push(Candidate::built());
    }
    let mut empty = empty::load()?;
    let is_wanted = |part| options.only.is_none_or(|only| only == part);
    if is_wanted(Part::Established) {
        println!("{}", established(options, &candidates, &mut empty)?);
    }
    if is_wanted(Part::Connections) {
        println!("{}", connection::measure(options, &candidates, &mut empty)?);
    }
    if is_wanted(Part::Flows) {
        println!("{}", flows::measure(options)?);
    }
    Ok(())
}

/// Established packets, one repeated again and again.
fn established(options: &Options, candidates: &[Candidate], empty: &mut TestRunner) -> Result<String> {
    let mut counted = Rig::load("counted", &candidates[0].object(), options.flows, true, true)?;
    let mut paths = Vec::new();
    for addresses in &world::FAMILIES {
        paths.extend(establish(&mut counted, addresses)?);
    }
    for path in &paths {
        check(&mut counted, path).with_context(|| format!("{}, IPv{}", path.name, path.family()))?;
    }
    let calls = paths.iter().map(|path| count(&mut counted, path)).collect::<Result<Vec<_>>>()?;
    let mut rigs = Vec::new();
    for (number, candidate) in candidates.iter().enumerate() {
        let load = |name: &str, trace| {
            let rig =
                Rig::load(&format!("{name}-{number}"), &candidate.object(), options.flows, trace, false)?;
            rig.adopt(&counted)?;
            anyhow::Ok(rig)
        };
        rigs.push(Pair { plain: load("plain", false)?, traced: load("traced", true)? });
    }
    let times = Bench { empty, rigs }.run(options, &paths)?;
    Ok(report(options, candidates, &paths, &calls, &times))
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

/// Nanoseconds of one run: the empty program, the program that reads the clock, then each path of each candidate.
struct Times {
    empty: Summary,
    clock: Summary,
    paths: Vec<Vec<Summary>>,
}

struct Bench<'a> {
    empty: &'a mut TestRunner,
    rigs: Vec<Pair>,
}

/// A candidate's programs, as they are in production and as tests have them.
struct Pair {
    plain: Rig,
    traced: Rig,
}

impl Bench<'_> {
    /// Interleaved: whatever disturbs the machine disturbs all of them.
    fn run(&mut self, options: &Options, paths: &[Path]) -> Result<Times> {
        pin()?;
        let frame = paths.first().context("a path")?.step.frame();
        let (mut empty, mut clock) = (Vec::new(), Vec::new());
        let mut each = vec![vec![Vec::new(); paths.len()]; self.rigs.len()];
        for _ in 0..options.rounds.max(1) {
            let nowhere = TestContext::default();
            empty.push(sample(self.empty, &frame, &nowhere, options.calls)?);
            clock.push(sample(self.rigs[0].plain.runner(CLOCK)?, &frame, &nowhere, options.calls)?);
            for (number, path) in paths.iter().enumerate() {
                for (rigs, times) in self.rigs.iter_mut().zip(&mut each) {
                    times[number].push(rigs.sample(path, options.calls)?);
                }
            }
        }
        let paths = each.iter().map(|paths| paths.iter().map(|times| Summary::of(times)).collect()).collect();
        Ok(Times { empty: Summary::of(&empty), clock: Summary::of(&clock), paths })
    }
}

impl Pair {
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

fn report(
    options: &Options,
    candidates: &[Candidate],
    paths: &[Path],
    calls: &[Calls],
    times: &Times,
) -> String {
    let names = COLUMNS.map(|(_, name)| name);
    let others: Vec<String> = candidates[1..].iter().map(|other| format!("ns {}", other.name)).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let mut table =
        Table::new(&[&["path", "IP", "program", "ns", "range", "over empty"][..], &others, &names].concat());
    let base = times.empty.median;
    let cells = |name: &str, family: &str, program: &str, time: &Summary| {
        let range = format!("{:.0}-{:.0}", time.least, time.most);
        // Adding zero makes a negative zero positive.
        let over = (time.median - base).round() + 0.0;
        let (ns, over) = (format!("{:.0}", time.median), format!("{over:.0}"));
        vec![name.to_owned(), family.to_owned(), program.to_owned(), ns, range, over]
    };
    let none = vec![String::new(); others.len() + names.len()];
    table.row([cells("empty program", "", "", &times.empty), none.clone()].concat());
    table.row([cells("reading the clock", "", CLOCK, &times.clock), none].concat());
    for (number, (path, calls)) in paths.iter().zip(calls).enumerate() {
        let (own, others) = times.paths.split_first().expect("a candidate");
        let others: Vec<String> = others.iter().map(|times| format!("{:.0}", times[number].median)).collect();
        let counts = COLUMNS.map(|(kind, _)| calls[kind as usize].to_string());
        let first = cells(path.name, path.family(), path.step.program, &own[number]);
        table.row([first, others, counts.to_vec()].concat());
    }
    format!(
        "Median of {} rounds, least and most; each round the median of {} calls of {REPEATS} runs.\n\n{table}",
        options.rounds, options.calls
    )
}
