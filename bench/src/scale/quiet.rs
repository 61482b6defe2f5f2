//! Who else used the processors while something was measured. Figures of a busy machine are not to be quoted.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

/// With more of the processors than this, others change what is measured.
const MOST: f64 = 0.05;

/// The processors at one moment, in ticks of the kernel's clock since the machine was started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processors {
    /// Busy with anything, or taken away by whoever runs this machine.
    busy: u64,
    all: u64,
    /// Busy with this process and those that it started.
    own: u64,
}

impl Processors {
    pub(super) fn now() -> Result<Self> {
        let path = "/proc/stat";
        let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        let (busy, all) = ticks(&text).with_context(|| format!("the processors in {path}"))?;
        Ok(Self { busy, all, own: own()? })
    }

    /// What others did since.
    pub(super) fn others(self) -> Result<Others> {
        let now = Self::now()?;
        let [busy, all, own] = [now.busy - self.busy, now.all - self.all, now.own.saturating_sub(self.own)];
        #[expect(clippy::cast_precision_loss, reason = "ticks of minutes")]
        let share = busy.saturating_sub(own) as f64 / all.max(1) as f64;
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Ok(Others { share, load: load.split_whitespace().next().unwrap_or("unknown").to_owned() })
    }
}

/// How much of the processors others used.
#[derive(Debug)]
pub(super) struct Others {
    share: f64,
    load: String,
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fit = if self.share <= MOST { "fit" } else { "NOT FIT" };
        let percent = 100.0 * self.share;
        write!(f, "Others used {percent:.1} % of the processors meanwhile (load average {}): ", self.load)?;
        write!(f, "{fit} to be quoted.")
    }
}

/// Busy and all ticks of the line of all processors: user, nice, system, idle, iowait, irq, softirq, steal.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let all: u64 = fields.iter().sum();
    Some((all - fields.get(3)? - fields.get(4)?, all))
}

/// Ticks of this process and of all below it, those that have ended included.
fn own() -> Result<u64> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let name = entry.context("list /proc")?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // One that ended meanwhile is counted by its parent.
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        parents.extend(process(&stat).map(|(parent, ticks)| (id, parent, ticks)));
    }
    let mut family = vec![std::process::id()];
    let mut sum = 0;
    while let Some(member) = family.pop() {
        family.extend(parents.iter().filter(|(_, parent, _)| *parent == member).map(|(id, ..)| *id));
        sum += parents.iter().filter(|(id, ..)| *id == member).map(|(.., ticks)| ticks).sum::<u64>();
    }
    Ok(sum)
}

/// The parent of a process, and its ticks with those of its children that have ended; see proc(5).
fn process(stat: &str) -> Option<(u32, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some((fields.get(1)?.parse().ok()?, ticks))
}

#[cfg(test)]
mod tests {
    use super::{Others, process, ticks};

    #[test]
    fn the_fields_of_proc_are_where_they_should_be() {
        assert_eq!(ticks("cpu  10 1 5 80 4 1 2 3 0 0\ncpu0 1"), Some((22, 106)));
        let stat = "7 (a (b) c) S 3 7 7 0 -1 0 0 0 0 0 11 12 13 14 20 0";
        assert_eq!(process(stat), Some((3, 50)));
        assert_eq!(process("garbage"), None);
    }

    #[test]
    fn a_busy_machine_is_called_so() {
        let verdict = |share| Others { share, load: "0.10".into() }.to_string();
        assert!(verdict(0.04).ends_with(": fit to be quoted."));
        assert!(verdict(0.06).ends_with(": NOT FIT to be quoted."));
    }
}
