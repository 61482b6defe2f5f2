//! `cni`: how long a container runtime waits for ADD and DEL, beside the reference plugins of Debian's package
//! `containernetworking-plugins`.
//!
//! Ours is asked of nodes of a whole cluster, whose agents attach programs and write the rows that bind the Pod to its
//! addresses before they answer, on one by clsact filters, on the other by tcx links; `ptp` and `bridge` get their
//! addresses from `host-local`, IPv4 alone, in a namespace of their own each. Every call is a new process, timed from its
//! start to its exit, and what must survive a reboot is on a disk. Invariant: the contenders take turns, so that what else
//! the machine does meets all of them.

mod contender;
mod disk;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::netns::Netns;

use crate::environment;
use crate::table::Table;
use contender::{Contender, Verb};
use disk::Disk;

/// What the others are compared with.
const REFERENCE: &str = "bridge";
/// Turns of each contender with its crowd.
const TURNS: usize = 5;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// ADDs and DELs of each contender, one after the other.
    #[arg(long, default_value_t = 200)]
    runs: usize,
    /// ADDs and DELs of each contender, many at once.
    #[arg(long, default_value_t = 500)]
    churn: usize,
    /// How many Pods there are at once, each with an address.
    #[arg(long, default_value_t = 110)]
    pods: usize,
}

pub(crate) fn measure(options: &Options) -> Result<()> {
    let Options { runs, churn, pods } = *options;
    let disk = Disk::create()?;
    let mut cluster = Cluster::builder("cni").nodes(2).control_plane()?;
    for (name, mechanism) in [("node-a", "clsact"), ("node-b", "tcx")] {
        let node = cluster.node_mut(name);
        disk.mount(name, &node.files().join("state"))?;
        node.start_podlet()?;
        // The references give an address again at once: with a cool-down, ours would run out of them.
        node.start_agent_with(&["--address-cool-down", "0", "--pod-programs", mechanism])?;
    }
    for node in ["node-a", "node-b"] {
        cluster.node_mut(node).wait_ready()?;
    }

    let contenders = Contender::all(cluster.node("node-a"), cluster.node("node-b"), &disk)?;
    let mut alone: Vec<Times> = contenders.iter().map(|_| Times::default()).collect();
    for run in 0..runs {
        for (contender, times) in contenders.iter().zip(&mut alone) {
            let pod = Netns::create(&format!("cni-{}-{run}", contender.id))?;
            times.cycle(contender, &pod, &format!("alone-{run}"))?;
        }
    }
    println!("{runs} ADDs and DELs, one after the other; {}\n", environment::load());
    println!("{}", report(&contenders, &alone));

    let together = crowds(&contenders, churn, pods)?;
    println!("{churn} ADDs and DELs by {pods} Pods at once; {}\n", environment::load());
    println!("{}", report(&contenders, &together));
    for (contender, times) in contenders.iter().zip(&together) {
        let (name, seconds) = (contender.name, times.took.as_secs_f64());
        println!("- all of it, {name}: {seconds:.1} s; failed ADDs: {}", times.failed_adds);
    }
    cluster.stop()
}

/// Crowds of all contenders in turn.
fn crowds(contenders: &[Contender], churn: usize, pods: usize) -> Result<Vec<Times>> {
    // A Pod's namespace is as it was once its DEL is done.
    let namespaces: Vec<Netns> =
        (0..pods).map(|pod| Netns::create(&format!("cni-pod-{pod}"))).collect::<Result<_>>()?;
    let mut all: Vec<Times> = contenders.iter().map(|_| Times::default()).collect();
    for turn in 0..TURNS {
        let calls = churn * turn / TURNS..churn * (turn + 1) / TURNS;
        for (contender, times) in contenders.iter().zip(&mut all) {
            times.append(crowd(contender, &calls, &namespaces)?);
        }
    }
    Ok(all)
}

/// So many ADDs, each with its DEL, by Pods that all come and go at once.
fn crowd(contender: &Contender, calls: &std::ops::Range<usize>, namespaces: &[Netns]) -> Result<Times> {
    let start = Instant::now();
    let (next, all) = (AtomicUsize::new(calls.start), Mutex::new(Times::default()));
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let work = |pod| {
            let mut times = Times::default();
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if turn >= calls.end {
                    break;
                }
                times.cycle(contender, pod, &format!("crowd-{turn}"))?;
            }
            all.lock().unwrap_or_else(PoisonError::into_inner).append(times);
            Ok(())
        };
        let workers: Vec<_> = namespaces.iter().map(|pod| scope.spawn(move || work(pod))).collect();
        let joined =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(anyhow!("panicked"))));
        joined.collect()
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    let mut times = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    let happened = times.adds.len() + times.failed_adds;
    ensure!(happened == calls.len(), "{happened} of {} happened", calls.len());
    times.took = start.elapsed();
    Ok(times)
}

/// What one contender took.
#[derive(Default)]
struct Times {
    /// Of those that succeeded.
    adds: Vec<Duration>,
    /// A runtime would have tried them again.
    failed_adds: usize,
    dels: Vec<Duration>,
    /// All of a crowd.
    took: Duration,
}

impl Times {
    /// An ADD and its DEL, which follows a failed one, too.
    fn cycle(&mut self, contender: &Contender, pod: &Netns, id: &str) -> Result<()> {
        let called =
            |verb| contender.call(verb, pod, id).with_context(|| format!("{} of {id}", contender.name));
        match called(Verb::Add)? {
            Some(took) => self.adds.push(took),
            None => self.failed_adds += 1,
        }
        self.dels.extend(called(Verb::Del)?);
        Ok(())
    }

    /// Quantiles of ADD, then of DEL.
    fn summary(&self) -> [f64; 6] {
        let mut figures = [0.0; 6];
        figures[..3].copy_from_slice(&quantiles(&self.adds));
        figures[3..].copy_from_slice(&quantiles(&self.dels));
        figures
    }

    fn append(&mut self, mut other: Self) {
        self.adds.append(&mut other.adds);
        self.failed_adds += other.failed_adds;
        self.dels.append(&mut other.dels);
        self.took += other.took;
    }
}

fn report(contenders: &[Contender], all: &[Times]) -> Table {
    let mut table =
        Table::new(&["plugin", "ADD p50", "ADD p99", "ADD most", "DEL p50", "DEL p99", "DEL most"]);
    let rows: Vec<_> =
        contenders.iter().zip(all).map(|(contender, times)| (contender, times.summary())).collect();
    for (contender, figures) in &rows {
        let cells = figures.iter().map(|milliseconds| format!("{milliseconds:.1} ms"));
        table.row(std::iter::once(contender.name.to_owned()).chain(cells).collect());
    }
    let reference =
        rows.iter().find(|(contender, _)| contender.name == REFERENCE).map(|(_, figures)| figures);
    for (contender, figures) in rows.iter().filter(|(contender, _)| contender.is_ours) {
        let ratios = figures.iter().zip(reference.into_iter().flatten());
        let cells = ratios.map(|(ours, theirs)| format!("{:.2}", ours / theirs));
        let name = format!("{} / {REFERENCE}", contender.name);
        table.row(std::iter::once(name).chain(cells).collect());
    }
    table
}

/// The middle, the 99th of a hundred, the last, in milliseconds; no numbers of nothing.
fn quantiles(times: &[Duration]) -> [f64; 3] {
    if times.is_empty() {
        return [f64::NAN; 3];
    }
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    [50, 99, 100].map(|percent| sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::quantiles;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let times: Vec<_> = (0..=100).rev().map(Duration::from_secs).collect();
        let rounded = |times| quantiles(times).map(|milliseconds| format!("{milliseconds:.0}"));
        assert_eq!(rounded(&times), ["50000", "99000", "100000"]);
        assert_eq!(rounded(&times[..1]), ["100000"; 3]);
        assert_eq!(rounded(&[]), ["NaN"; 3]);
    }
}
