//! Where the time of our own programs goes: runs of each for one transaction, and how long one takes.
//!
//! The kernel reads the clock twice for each run while it counts, so this is never done while something is measured.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

use super::contender::Contender;
use super::metric::Metric;
use super::series::{Plan, set_offloads};
use crate::table::Table;

/// Bytes of a stream that are told as one.
const MEBIBYTE: f64 = 1_048_576.0;

/// Identifiers of all programs in the kernel.
pub(super) fn loaded() -> Result<BTreeSet<u32>> {
    let all = loaded_programs().map(|program| Ok(program.context("list programs")?.id()));
    all.collect()
}

/// A row for each program that ran, of each contender that has programs.
pub(super) fn measure(contenders: &mut [Contender], metrics: &[Metric], plan: &Plan) -> Result<Table> {
    let heading = ["path", "metric", "program", "runs for one", "ns a run", "ns for one"];
    let mut table = Table::new(&heading);
    let _counting = enable_stats(Stats::RunTime).context("let the kernel count runs")?;
    for metric in metrics {
        set_offloads(*metric, contenders)?;
        for contender in contenders.iter_mut().filter(|contender| contender.is_ours()) {
            let before = runs(&contender.programs)?;
            let amount = contender.pair.load(*metric, plan.slice)?;
            let after = runs(&contender.programs)?;
            let name = format!("{}, {}", contender.name, contender.ends.group.title());
            for (program, [runs, nanoseconds]) in since(&before, &after) {
                let mut cells = vec![name.clone(), one(*metric), program];
                cells.extend(figures(*metric, amount, runs, nanoseconds));
                table.row(cells);
            }
        }
    }
    Ok(table)
}

fn one(metric: Metric) -> String {
    if metric.is_stream() {
        metric.title().replace("Gbit/s", "MiB")
    } else {
        metric.title().replace("/s", "")
    }
}

/// Runs and nanoseconds, of all programs of a name.
type Runs = BTreeMap<String, [u64; 2]>;

fn runs(programs: &BTreeSet<u32>) -> Result<Runs> {
    let mut runs = Runs::new();
    for program in loaded_programs() {
        let program = program.context("list programs")?;
        if programs.contains(&program.id()) {
            let sum = runs.entry(program.name_as_str().unwrap_or_default().to_owned()).or_default();
            sum[0] += program.run_count();
            sum[1] += u64::try_from(program.run_time().as_nanos()).unwrap_or(u64::MAX);
        }
    }
    ensure!(!runs.is_empty(), "the programs have gone");
    Ok(runs)
}

fn since(before: &Runs, after: &Runs) -> Vec<(String, [u64; 2])> {
    let moved = after.iter().map(|(name, now)| {
        let then = before.get(name).copied().unwrap_or_default();
        (name.clone(), [now[0].saturating_sub(then[0]), now[1].saturating_sub(then[1])])
    });
    moved.filter(|(_, [runs, _])| *runs > 0).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a slice has far fewer runs and nanoseconds than 2^52")]
fn figures(metric: Metric, amount: u64, runs: u64, nanoseconds: u64) -> [String; 3] {
    let units = if metric.is_stream() { amount as f64 / MEBIBYTE } else { amount as f64 };
    let (runs, nanoseconds) = (runs as f64, nanoseconds as f64);
    [
        format!("{:.2}", runs / units),
        format!("{:.0}", nanoseconds / runs),
        format!("{:.0}", nanoseconds / units),
    ]
}

#[cfg(test)]
mod tests {
    use super::{Metric, Runs, figures, since};

    #[test]
    fn only_programs_that_ran_are_told() {
        let of = |runs| -> Runs { [("a".to_owned(), [1, 10]), ("b".to_owned(), [runs, runs * 50])].into() };
        assert_eq!(since(&of(2), &of(6)), [("b".to_owned(), [4, 200])]);
    }

    #[test]
    fn figures_are_for_one_transaction() {
        assert_eq!(figures(Metric::TcpRr, 100, 200, 30_000), ["2.00", "150", "300"]);
        assert_eq!(figures(Metric::Stream, 2 << 20, 100, 10_000), ["50.00", "100", "5000"]);
    }
}
