//! `paths`: what two processes get out of a path between Pods, beside everything that a path could be made of.
//!
//! Every contender has network namespaces of its own and two processes of its own, one that asks and one that answers.
//! Both, and so the kernel's work for them, are on one processor: what is measured is the whole cost of a path, without
//! the luck of wake-ups between processors. Contenders take turns slice by slice. Invariant: figures that may not be
//! quoted, because others used the processor, the baseline moved or packets were lost, are printed as such, and the exit
//! code says so.

mod contender;
mod delivery;
mod device;
pub(crate) mod load;
mod metric;
mod process;
mod product;
mod profile;
mod quiet;
mod report;
mod series;
mod site;
mod target;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;

use contender::{Contender, Group};
use metric::Metric;
use product::Variant;
use quiet::Core;
use series::{Plan, Series};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Rounds of each metric; every contender has one slice in each.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// How many noisy rounds of a metric may be repeated.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Milliseconds of a slice.
    #[arg(long, default_value_t = 400)]
    slice: u64,
    /// Milliseconds before each slice which do not count.
    #[arg(long, default_value_t = 100)]
    warm_up: u64,
    /// The processor for both ends; the last one if not given.
    #[arg(long)]
    core: Option<usize>,
    /// What to measure; may be given again. Everything if not given.
    #[arg(long = "metric", value_enum)]
    metrics: Vec<Metric>,
    /// Which paths to measure. All if not given.
    #[arg(long = "group", value_enum)]
    groups: Vec<Group>,
    /// An agent to measure, as NAME or NAME=ARGUMENTS of its command line; may be given again.
    #[arg(long = "agent", default_value = "Quilla")]
    agents: Vec<Variant>,
    /// In the end, also tell how often and how long each program of the product runs.
    #[arg(long)]
    profile: bool,
}

/// To be called on the machine itself, before there is a sandbox.
pub(crate) fn prepare(options: &Options) -> Result<()> {
    quiet::prepare(options.core)
}

pub(crate) fn measure(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0 && options.slice > 0, "at least one round of a millisecond");
    let core = Core::choose(options.core)?;
    let groups = chosen(&options.groups, &Group::ALL);
    let metrics = chosen(&options.metrics, &Metric::ALL);
    let plan = Plan {
        rounds: options.rounds,
        repeats: options.repeats,
        warm_up: Duration::from_millis(options.warm_up),
        slice: Duration::from_millis(options.slice),
    };
    environment(&core, &plan)?;

    let start = Instant::now();
    let (mut contenders, _kept) = site::peers(&groups, &core)?;
    let mut clusters = Vec::new();
    for (number, variant) in options.agents.iter().enumerate() {
        let (ours, cluster) = product::start(number, variant, &groups, &core)?;
        contenders.extend(ours);
        clusters.push(cluster);
    }
    let crossed: BTreeSet<&Path> =
        contenders.iter().flat_map(|contender| contender.crossed.iter().map(AsRef::as_ref)).collect();
    println!("{}\n", device::list(crossed)?);
    let built = start.elapsed();

    let measured = metrics.iter().map(|metric| Series::measure(*metric, &mut contenders, &plan, &core));
    let all: Vec<Series> = measured.collect::<Result<_>>()?;
    print(&groups, &contenders, &all);
    if options.profile {
        println!("### Programs\n\n{}", profile::measure(&mut contenders, &metrics, &plan)?);
    }
    let load = fs::read_to_string("/proc/loadavg").context("read /proc/loadavg")?;
    let [took, built] = [start.elapsed(), built].map(|time| time.as_secs());
    println!("{took} s, {built} s of them to build the paths; load average at the end: {load}");
    drop(contenders);
    clusters.into_iter().try_for_each(Cluster::stop)?;
    let quotable = all.iter().all(|series| series.objections.is_empty());
    ensure!(quotable, "some figures may not be quoted, see above");
    Ok(())
}

fn print(groups: &[Group], contenders: &[Contender], all: &[Series]) {
    for group in groups {
        println!("### {}\n\n{}", group.title(), report::figures(*group, contenders, all));
        println!("{}", report::ratios(*group, contenders, all));
        println!("{}", report::costs(*group, contenders, all));
    }
    println!("{}\n", report::objections(all));
}

fn chosen<T: Copy + PartialEq>(wanted: &[T], all: &[T]) -> Vec<T> {
    all.iter().filter(|one| wanted.is_empty() || wanted.contains(one)).copied().collect()
}

/// What the figures depend on, beside what is printed for every measurement.
fn environment(core: &Core, plan: &Plan) -> Result<()> {
    println!("- mitigations: {}", mitigations()?);
    println!("- {}", Command::new("iptables").arg("--version").text()?.trim());
    println!("- both ends on processor {}, priority -20; {plan}\n", core.number);
    Ok(())
}

fn mitigations() -> Result<String> {
    let mut found = BTreeSet::new();
    for entry in
        fs::read_dir("/sys/devices/system/cpu/vulnerabilities").context("list vulnerabilities")?.flatten()
    {
        let state = fs::read_to_string(entry.path()).context("read a vulnerability")?;
        if state.trim() != "Not affected" {
            found.insert(format!("{}: {}", entry.file_name().to_string_lossy(), state.trim()));
        }
    }
    Ok(found.into_iter().collect::<Vec<_>>().join("; "))
}
