//! The rounds of one metric: a slice of every contender in each, in an order that rotates.
//!
//! Invariant: a round counts whole or not at all, so that every ratio is between slices a few seconds apart.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::contender::Contender;
use super::delivery::Counters;
use super::device;
use super::metric::Metric;
use super::process::Sample;
use super::quiet::{DRIFT, FOREIGN, drift};
use super::target;

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) rounds: usize,
    /// How many more rounds there may be in the place of noisy ones.
    pub(super) repeats: usize,
    pub(super) warm_up: Duration,
    pub(super) slice: Duration,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, warm_up, slice, .. } = self;
        write!(f, "{rounds} rounds of slices of {slice:?}, each after {warm_up:?} that do not count")
    }
}

/// A metric of all contenders.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) metric: Metric,
    /// A sample of each contender in each round that counts.
    pub(super) rounds: Vec<Vec<Sample>>,
    /// Why none of it may be quoted; nothing if it may.
    pub(super) objections: Vec<String>,
    /// Rounds in whose place there were others.
    pub(super) repeated: usize,
}

impl Series {
    pub(super) fn measure(metric: Metric, contenders: &mut [Contender], plan: &Plan) -> Result<Self> {
        let before = counters(contenders)?;
        let backlog = Counters::backlog()?;
        if metric == Metric::StreamGsoOff {
            segment(contenders, false)?;
        }
        let (mut quiet, mut noisy) = (Vec::new(), Vec::new());
        for turn in 0..plan.rounds + plan.repeats {
            if quiet.len() == plan.rounds {
                break;
            }
            let round = round(metric, contenders, plan, turn)?;
            if round.iter().any(|sample| sample.foreign > FOREIGN) {
                noisy.push(round);
            } else {
                quiet.push(round);
            }
        }
        if metric == Metric::StreamGsoOff {
            segment(contenders, true)?;
        }
        let mut objections = Vec::new();
        for (contender, (before, after)) in contenders.iter().zip(before.iter().zip(counters(contenders)?)) {
            let moved = before.moved(&after);
            if !moved.is_empty() {
                objections.push(format!("void: {} lost packets: {}", contender.name, moved.join(", ")));
            }
        }
        let moved = backlog.moved(&Counters::backlog()?);
        objections.extend(moved.into_iter().map(|counter| format!("void: {counter}")));
        let mut series = Self { metric, repeated: noisy.len(), rounds: quiet, objections };
        series.judge(plan, noisy, contenders);
        Ok(series)
    }

    /// Fills up with noisy rounds what has too few quiet ones, and says so.
    fn judge(&mut self, plan: &Plan, noisy: Vec<Vec<Sample>>, contenders: &[Contender]) {
        let lacking = plan.rounds - self.rounds.len();
        if lacking > 0 {
            let worst = noisy.iter().flatten().map(|sample| sample.foreign).fold(0.0, f64::max);
            self.objections.push(format!(
                "{lacking} of {} rounds are noisy: others used up to {:.0} % of the processor",
                plan.rounds,
                worst * 100.0
            ));
            self.repeated -= lacking;
            self.rounds.extend(noisy.into_iter().take(lacking));
        }
        for (index, contender) in contenders.iter().enumerate() {
            let moved = drift(&self.figures(index));
            if contender.name == target::baseline(contender.ends.group) && moved > DRIFT {
                self.objections.push(format!("{} moved by {:.1} % meanwhile", contender.name, moved * 100.0));
            }
        }
    }

    /// Of one contender, round by round.
    pub(super) fn figures(&self, contender: usize) -> Vec<f64> {
        self.rounds.iter().map(|round| round[contender].per_second).collect()
    }

    /// Seconds of processor time for each answer or byte of a contender, round by round.
    pub(super) fn costs(&self, contender: usize) -> Vec<f64> {
        self.rounds.iter().map(|round| round[contender].cost).collect()
    }

    /// Of one contender to another, round by round.
    pub(super) fn ratios(&self, contender: usize, peer: usize) -> Vec<f64> {
        self.rounds.iter().map(|round| round[contender].per_second / round[peer].per_second).collect()
    }
}

fn round(metric: Metric, contenders: &mut [Contender], plan: &Plan, turn: usize) -> Result<Vec<Sample>> {
    let count = contenders.len();
    let mut samples = vec![None; count];
    for place in 0..count {
        let index = (place + turn) % count;
        let contender = &mut contenders[index];
        let sample = contender.pair.slice(metric, plan.warm_up, plan.slice);
        samples[index] = Some(sample.with_context(|| format!("{metric:?} of {}", contender.name))?);
    }
    samples.into_iter().collect::<Option<_>>().context("a contender without its turn")
}

fn counters(contenders: &[Contender]) -> Result<Vec<Counters>> {
    contenders.iter().map(|contender| Counters::read(contender.crossed.iter().map(AsRef::as_ref))).collect()
}

fn segment(contenders: &[Contender], on: bool) -> Result<()> {
    let ends = contenders.iter().flat_map(|contender| [&contender.ends.client, &contender.ends.server]);
    ends.map(AsRef::<Path>::as_ref).try_for_each(|end| device::segment(end, "eth0", on))
}
