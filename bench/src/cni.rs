//! `cni`: how long a container runtime waits for ADD and DEL, beside the reference plugins of Debian's package
//! `containernetworking-plugins`.
//!
//! Ours is asked of a node of a whole cluster, whose agent attaches programs, policy and Services before it answers;
//! `ptp` and `bridge` get their addresses from `host-local`, IPv4 alone, in a namespace of their own each. Every call is
//! a new process, timed from its start to its exit. Invariant: the contenders take turns, call by call.

mod contender;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::netns::Netns;

use crate::table::Table;
use contender::{Contender, Verb};

const NODE: &str = "node-a";

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
    let mut cluster = Cluster::builder("cni").nodes(1).control_plane()?;
    cluster.node_mut(NODE).start_podlet()?;
    // The references give an address again at once: with a cool-down, ours would run out of them.
    cluster.node_mut(NODE).start_agent_with(&["--address-cool-down", "0"])?;
    cluster.node_mut(NODE).wait_ready()?;

    let contenders = Contender::all(cluster.node(NODE))?;
    let mut alone: Vec<Times> = contenders.iter().map(|_| Times::default()).collect();
    for run in 0..runs {
        for (contender, times) in contenders.iter().zip(&mut alone) {
            let pod = Netns::create(&format!("cni-{}-{run}", contender.name))?;
            times.cycle(contender, &pod, &format!("alone-{run}"))?;
        }
    }
    println!("{runs} ADDs and DELs, one after the other\n\n{}", report(&contenders, &alone));

    let mut together = Vec::new();
    let mut took = Vec::new();
    for contender in &contenders {
        let start = Instant::now();
        together.push(crowd(contender, churn, pods)?);
        took.push(format!("{} {:.1} s", contender.name, start.elapsed().as_secs_f64()));
    }
    println!(
        "{churn} ADDs and DELs by {pods} Pods at once (all of it: {})\n\n{}",
        took.join(", "),
        report(&contenders, &together)
    );
    cluster.stop()
}

/// So many ADDs, each with its DEL, by Pods that all come and go at once.
fn crowd(contender: &Contender, churn: usize, pods: usize) -> Result<Times> {
    let namespaces: Vec<Netns> = (0..pods)
        .map(|pod| Netns::create(&format!("cni-{}-{pod}", contender.name)))
        .collect::<Result<_>>()?;
    let (next, all) = (AtomicUsize::new(0), Mutex::new(Times::default()));
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let work = |pod| {
            let mut times = Times::default();
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if turn >= churn {
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
    let times = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(times.adds.len() == churn, "{} of {churn} happened", times.adds.len());
    Ok(times)
}

/// What one contender took.
#[derive(Default)]
struct Times {
    adds: Vec<Duration>,
    dels: Vec<Duration>,
}

impl Times {
    /// An ADD and its DEL.
    fn cycle(&mut self, contender: &Contender, pod: &Netns, id: &str) -> Result<()> {
        let called =
            |verb| contender.call(verb, pod, id).with_context(|| format!("{} of {id}", contender.name));
        self.adds.push(called(Verb::Add)?);
        self.dels.push(called(Verb::Del)?);
        Ok(())
    }

    fn append(&mut self, mut other: Self) {
        self.adds.append(&mut other.adds);
        self.dels.append(&mut other.dels);
    }
}

fn report(contenders: &[Contender], all: &[Times]) -> Table {
    let mut table =
        Table::new(&["plugin", "ADD p50", "ADD p99", "ADD most", "DEL p50", "DEL p99", "DEL most"]);
    for (contender, times) in contenders.iter().zip(all) {
        let mut cells = vec![contender.name.to_owned()];
        cells.extend([&times.adds, &times.dels].into_iter().flat_map(|times| quantiles(times)));
        table.row(cells);
    }
    table
}

/// The middle, the 99th of a hundred, the last, in milliseconds.
fn quantiles(times: &[Duration]) -> [String; 3] {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    [50, 99, 100].map(|percent| {
        let index = (sorted.len() - 1) * percent / 100;
        format!("{:.1} ms", sorted[index].as_secs_f64() * 1e3)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::quantiles;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let times: Vec<_> = (0..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(quantiles(&times), ["50.0 ms", "99.0 ms", "100.0 ms"]);
        assert_eq!(quantiles(&times[..1]), ["100.0 ms"; 3]);
    }
}
