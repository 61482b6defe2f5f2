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
use super::quiet::{Core, DRIFT, FOREIGN, drift};
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
    rounds: Vec<Round>,
    /// Why none of it may be quoted; nothing if it may.
    pub(super) objections: Vec<String>,
    /// Rounds in whose place there were others.
    pub(super) repeated: usize,
}

impl Series {
    pub(super) fn measure(
        metric: Metric,
        contenders: &mut [Contender],
        plan: &Plan,
        core: &Core,
    ) -> Result<Self> {
        let before = (counters(contenders)?, Counters::backlog()?);
        set_offloads(metric, contenders)?;
        let (mut quiet, mut noisy) = (Vec::new(), Vec::new());
        for turn in 0..plan.rounds + plan.repeats {
            if quiet.len() == plan.rounds {
                break;
            }
            let round = Round::measure(metric, contenders, plan, core, turn)?;
            if round.noise > FOREIGN { &mut noisy } else { &mut quiet }.push(round);
        }
        let mut losses = lost(contenders, &before.0)?;
        losses.extend(before.1.moved(&Counters::backlog()?));
        let objections = losses.iter().map(|loss| format!("void: {loss}")).collect();
        let mut series = Self { metric, repeated: noisy.len(), rounds: quiet, objections };
        series.judge(plan, noisy, contenders);
        Ok(series)
    }

    /// Fills up with noisy rounds what has too few quiet ones, and says so.
    fn judge(&mut self, plan: &Plan, noisy: Vec<Round>, contenders: &[Contender]) {
        let lacking = plan.rounds - self.rounds.len();
        if lacking > 0 {
            let worst = noisy.iter().map(|round| round.noise).fold(0.0, f64::max) * 100.0;
            self.objections.push(format!(
                "{lacking} of {} rounds are noisy, others used up to {worst:.0} % of a processor",
                plan.rounds
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

    /// How many rounds count.
    pub(super) fn rounds(&self) -> usize {
        self.rounds.len()
    }

    /// Of one contender, round by round.
    pub(super) fn figures(&self, contender: usize) -> Vec<f64> {
        self.rounds.iter().map(|round| round.samples[contender].per_second).collect()
    }

    /// Seconds of processor time for each answer or byte of a contender, round by round.
    pub(super) fn costs(&self, contender: usize) -> Vec<f64> {
        self.rounds.iter().map(|round| round.samples[contender].cost).collect()
    }

    /// Of one contender to another, round by round.
    pub(super) fn ratios(&self, contender: usize, peer: usize) -> Vec<f64> {
        self.rounds
            .iter()
            .map(|round| round.samples[contender].per_second / round.samples[peer].per_second)
            .collect()
    }
}

/// One turn of all contenders.
#[derive(Debug)]
struct Round {
    samples: Vec<Sample>,
    /// What others used of a processor at most: of this one in a slice, or of the others in the whole round.
    noise: f64,
}

impl Round {
    fn measure(
        metric: Metric,
        contenders: &mut [Contender],
        plan: &Plan,
        core: &Core,
        turn: usize,
    ) -> Result<Self> {
        let before = core.elsewhere()?;
        let count = contenders.len();
        let mut samples = vec![None; count];
        for place in 0..count {
            let index = (place + turn) % count;
            let contender = &mut contenders[index];
            let sample = contender.pair.slice(metric, plan.warm_up, plan.slice);
            samples[index] = Some(sample.with_context(|| format!("{metric:?} of {}", contender.name))?);
        }
        let samples: Option<Vec<Sample>> = samples.into_iter().collect();
        let samples = samples.context("a contender without its turn")?;
        let elsewhere = before.busy_until(core.elsewhere()?);
        let noise = samples.iter().map(|sample| sample.foreign).fold(elsewhere, f64::max);
        Ok(Self { samples, noise })
    }
}

/// What each contender lost since.
fn lost(contenders: &[Contender], before: &[Counters]) -> Result<Vec<String>> {
    let after = counters(contenders)?;
    let losses =
        contenders.iter().zip(before.iter().zip(after)).filter_map(|(contender, (before, after))| {
            let moved = before.moved(&after).join(", ");
            (!moved.is_empty()).then(|| format!("{} lost packets: {moved}", contender.name))
        });
    Ok(losses.collect())
}

fn counters(contenders: &[Contender]) -> Result<Vec<Counters>> {
    contenders.iter().map(|contender| Counters::read(contender.crossed.iter().map(AsRef::as_ref))).collect()
}

/// Makes the ends' devices what the metric wants them to be.
pub(super) fn set_offloads(metric: Metric, contenders: &[Contender]) -> Result<()> {
    let on = metric != Metric::StreamGsoOff;
    let ends = contenders.iter().flat_map(|contender| [&contender.ends.client, &contender.ends.server]);
    ends.map(AsRef::<Path>::as_ref).try_for_each(|end| device::segment(end, "eth0", on))
}
