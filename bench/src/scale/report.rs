//! The figures of `scale` as Markdown.

use std::fmt;
use std::time::Duration;

use quilla_plan::{Step, Tables};

use crate::memory::mebibytes;
use crate::memory::process::Map;
use crate::table::Table;

/// Rows that one batch call takes at most.
const BATCH: usize = 4096;
/// Beside key and value, what an element of a hash costs the kernel.
const OVERHEAD: usize = 64;

/// Calls into the kernel that a list of steps makes.
fn calls(steps: &[Step]) -> usize {
    let of_step = |step: &Step| match step {
        Step::Bump(counters) => counters.len() + counters.len().div_ceil(BATCH),
        _ => step.rows().div_ceil(BATCH),
    };
    steps.iter().map(of_step).sum()
}

fn rows(steps: &[Step]) -> usize {
    steps.iter().map(Step::rows).sum()
}

/// Everything from nothing.
pub(super) struct Load {
    whole: Duration,
    bare: Duration,
    rows: usize,
    calls: usize,
}

impl Load {
    pub(super) fn new(whole: Duration, bare: Duration, steps: &[Step]) -> Self {
        Self { whole, bare, rows: rows(steps), calls: calls(steps) }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        writeln!(
            f,
            "Full load: {:.0} ms for {} rows in {} calls; the calls alone {:.0} ms, so {:.1} times as long.",
            ms(self.whole),
            self.rows,
            self.calls,
            ms(self.bare),
            self.whole.as_secs_f64() / self.bare.as_secs_f64()
        )
    }
}

/// Changes of one kind.
pub(super) struct Series {
    what: &'static str,
    times: Vec<Duration>,
    rows: Vec<usize>,
    calls: Vec<usize>,
}

impl Series {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, times: Vec::new(), rows: Vec::new(), calls: Vec::new() }
    }

    pub(super) fn add(&mut self, took: Duration, steps: &[Step]) {
        self.times.push(took);
        self.rows.push(rows(steps));
        self.calls.push(calls(steps));
    }
}

/// The value that so many of a hundred do not exceed.
fn percentile<T: Ord + Copy>(values: &[T], percent: usize) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

pub(super) fn changes(series: &[Series]) -> Table {
    let mut table = Table::new(&[
        "change",
        "changes",
        "p50 ms",
        "p99 ms",
        "most ms",
        "rows p50",
        "calls p50",
        "calls most",
    ]);
    for Series { what, times, rows, calls } in series {
        let ms = |percent| format!("{:.2}", percentile(times, percent).as_secs_f64() * 1e3);
        table.row(vec![
            (*what).to_owned(),
            times.len().to_string(),
            ms(50),
            ms(99),
            ms(100),
            percentile(rows, 50).to_string(),
            percentile(calls, 50).to_string(),
            percentile(calls, 100).to_string(),
        ]);
    }
    table
}

/// Rows of the hashes that grow with the cluster, and the bytes of key and value of each.
fn rows_that_grow(tables: &Tables) -> [(&'static str, usize, usize); 4] {
    [
        ("services_v4", tables.v4.services.len(), 8 + 24),
        ("services_v6", tables.v6.services.len(), 20 + 24),
        ("backend_ids_v4", tables.v4.backend_ids.len(), 8 + 4),
        ("backend_ids_v6", tables.v6.backend_ids.len(), 20 + 4),
    ]
}

/// What rows of the maps that grow with the cluster come to, at key, value and 64 bytes for each.
pub(super) fn maps(tables: &Tables) -> Table {
    let slots: usize = tables.slots.values().map(|slots| slots.len()).sum();
    let mut table = Table::new(&["map", "rows", "bytes a row", "sum"]);
    let mut add = |name: &str, rows: usize, bytes: usize| {
        let sum = mebibytes((rows * bytes) as u64);
        table.row(vec![name.to_owned(), rows.to_string(), bytes.to_string(), sum]);
    };
    for (name, rows, bytes) in rows_that_grow(tables) {
        add(name, rows, bytes + OVERHEAD);
    }
    add("backends_v4 (array)", tables.v4.backends.len(), 8);
    add("backends_v6 (array)", tables.v6.backends.len(), 20);
    add("slots (array)", slots, 4);
    table
}

/// `BPF_F_NO_PREALLOC`
const GROWS: u64 = 1;

/// What a map is, as far as its memory goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Allocated,
    Growing,
    Other,
}

fn kind(map: &Map) -> Kind {
    const HASH: u64 = 1;
    const LRU_HASH: u64 = 9;
    match map.kind {
        HASH | LRU_HASH if map.flags & GROWS == 0 => Kind::Allocated,
        HASH => Kind::Growing,
        _ => Kind::Other,
    }
}

/// Kernel memory by kind of map, beside what their entries come to: of those that are allocated at once all there may be,
/// of those that grow the rows that came since they were `idle`.
pub(super) fn kernel(idle: &[Map], full: &[Map], tables: &Tables) -> Table {
    let bytes = |maps: &[Map], of: Kind| -> u64 {
        maps.iter().filter(|map| kind(map) == of).map(|map| map.bytes).sum()
    };
    let allocated = full.iter().filter(|map| kind(map) == Kind::Allocated);
    let allocated = allocated.map(|map| map.capacity * (map.key + map.value + OVERHEAD as u64)).sum();
    let came = rows_that_grow(tables).iter().map(|(_, rows, bytes)| rows * (bytes + OVERHEAD)).sum::<usize>();
    let mut table = Table::new(&["maps", "idle", "full", "grown", "entries come to", "ratio"]);
    let mut add = |name: &str, of, entries: Option<u64>| {
        let (idle, full) = (bytes(idle, of), bytes(full, of));
        let grown = full.saturating_sub(idle);
        let measured = if of == Kind::Growing { grown } else { full };
        #[expect(clippy::cast_precision_loss, reason = "a ratio of megabytes")]
        let ratio =
            entries.map_or_else(String::new, |entries| format!("{:.2}", measured as f64 / entries as f64));
        let entries = entries.map_or_else(String::new, mebibytes);
        table.row(vec![name.to_owned(), mebibytes(idle), mebibytes(full), mebibytes(grown), entries, ratio]);
    };
    add("hashes allocated at once", Kind::Allocated, Some(allocated));
    add("hashes that grow", Kind::Growing, Some(came as u64));
    add("arrays and tries", Kind::Other, None);
    table
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<u32> = (1..=200).rev().collect();
        assert_eq!([1, 50, 99, 100].map(|percent| percentile(&values, percent)), [2, 100, 198, 200]);
        assert_eq!(percentile(&[7], 50), 7);
    }
}
