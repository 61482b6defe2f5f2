//! Whether the processor was ours: without that, a figure says more about the neighbours.
//!
//! Invariant: a round is judged by what others used of the processor, never by its own figures.

use std::fs::{self, File};
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use anyhow::{Context, Result, ensure};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::setsid;
use rustix::thread::{CpuSet, sched_setaffinity};

/// With more of a slice in others' hands than this, or more of the other processors busy, a round does not count.
pub(super) const FOREIGN: f64 = 0.05;

/// With the baseline's middle in the first half of the rounds and in the second further apart than this, nothing counts.
pub(super) const DRIFT: f64 = 0.03;

/// The processor that is measured on.
#[derive(Clone, Debug)]
pub(super) struct Core {
    pub(super) number: usize,
    /// What the scheduler says of the kernel's thread for soft interrupts there.
    schedstat: Option<PathBuf>,
}

/// The last processor: the first has the machine's own work.
fn last() -> Result<usize> {
    Ok(available_parallelism().context("count the processors")?.get() - 1)
}

/// Opens, for [`Core::choose`], what cannot be seen from inside a sandbox; the descriptor stays open there.
pub(super) fn prepare(core: Option<usize>) -> Result<()> {
    let thread = format!("ksoftirqd/{}", core.map_or_else(last, Ok)?);
    for process in fs::read_dir("/proc").context("list processes")?.flatten() {
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        if name.trim() == thread {
            let file = File::open(process.path().join("schedstat")).context("open a schedstat")?;
            fcntl_setfd(&file, FdFlags::empty()).context("keep a schedstat open")?;
            // Meant to be open until the end.
            let _descriptor = file.into_raw_fd();
        }
    }
    Ok(())
}

impl Core {
    /// Chooses it, and moves this process with all that it will start to the others.
    pub(super) fn choose(core: Option<usize>) -> Result<Self> {
        let last = last()?;
        let number = core.unwrap_or(last);
        ensure!(number <= last && last > 0, "processor {number} of {}: one more is needed", last + 1);
        let mut others = CpuSet::new();
        (0..=last).filter(|core| *core != number).for_each(|core| others.set(core));
        sched_setaffinity(None, &others).context("leave the processor alone")?;
        // The scheduler shares time between sessions first, where it groups by them, and only then by priority.
        if setsid().is_ok() && Path::new(AUTOGROUP).exists() {
            fs::write(AUTOGROUP, "-20").context("raise the session's priority")?;
        }
        Ok(Self { number, schedstat: inherited() })
    }

    /// How busy the other processors have been so far. They share caches, memory and power with this one.
    pub(super) fn elsewhere(&self) -> Result<Elsewhere> {
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        Ok(Elsewhere::parse(&text, self.number))
    }

    /// Nanoseconds for which the kernel's thread for soft interrupts has run; 0 if that cannot be seen.
    pub(super) fn soft_interrupts(&self) -> Result<u64> {
        let Some(path) = &self.schedstat else { return Ok(0) };
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let first = text.split(' ').next().and_then(|number| number.parse().ok());
        first.with_context(|| format!("not a schedstat: {text}"))
    }
}

/// Ticks of all processors but one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Elsewhere {
    busy: u64,
    all: u64,
}

impl Elsewhere {
    fn parse(text: &str, except: usize) -> Self {
        let except = format!("cpu{except}");
        let mut sum = Self { busy: 0, all: 0 };
        for line in text.lines() {
            let mut fields = line.split_whitespace();
            let name = fields.next().unwrap_or_default();
            if name == "cpu" || name == except || !name.starts_with("cpu") {
                continue;
            }
            // user nice system idle iowait irq softirq steal; guests are part of the first two.
            let ticks: Vec<u64> = fields.take(8).map_while(|field| field.parse().ok()).collect();
            let (all, idle): (u64, u64) = (ticks.iter().sum(), ticks.iter().skip(3).take(2).sum());
            sum.busy += all - idle;
            sum.all += all;
        }
        sum
    }

    /// Which part of the time since then they were busy.
    #[expect(clippy::cast_precision_loss, reason = "ticks since the machine started")]
    pub(super) fn busy_until(self, now: Self) -> f64 {
        (now.busy - self.busy) as f64 / (now.all - self.all).max(1) as f64
    }
}

const AUTOGROUP: &str = "/proc/self/autogroup";

/// What [`prepare`] left open.
fn inherited() -> Option<PathBuf> {
    let open = fs::read_dir("/proc/self/fd").ok()?.flatten().map(|entry| entry.path());
    open.into_iter().find(|path| fs::read_link(path).is_ok_and(|target| target.ends_with("schedstat")))
}

/// How far apart the middles of the two halves are, as a part of the first.
pub(super) fn drift(baseline: &[f64]) -> f64 {
    use crate::statistics::Summary;
    let (first, second) = baseline.split_at(baseline.len() / 2);
    if first.is_empty() {
        return 0.0;
    }
    (Summary::of(second).median / Summary::of(first).median - 1.0).abs()
}

#[cfg(test)]
mod tests {
    use super::{Elsewhere, drift};

    #[test]
    fn elsewhere_is_every_other_processor() {
        let text = "cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 1 0 1 90 5 0 2 1 7 7\ncpu1 50 0 0 50 0 0 0 0 0 0\nintr 5\n";
        let now = Elsewhere::parse(text, 1);
        assert_eq!(now, Elsewhere { busy: 5, all: 100 });
        assert!((Elsewhere { busy: 0, all: 0 }.busy_until(now) - 0.05).abs() < 1e-9);
    }

    #[test]
    fn drift_is_between_the_halves() {
        assert!(drift(&[100.0, 90.0, 101.0, 100.0, 120.0, 100.0]) < 0.001);
        assert!((drift(&[100.0, 100.0, 104.0, 104.0]) - 0.04).abs() < 1e-9);
        assert!(drift(&[100.0]) < 0.001);
    }
}
