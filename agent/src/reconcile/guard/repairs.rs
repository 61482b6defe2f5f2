//! How often programs of a device were put back: two that undo each other must not keep the reconciler from its work.
//!
//! Asked before each repair. Invariant: a device is repaired at most [`LIMIT`] times in a [`WINDOW`], and once more in
//! another way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const LIMIT: u32 = 5;
const WINDOW: Duration = Duration::from_mins(1);

/// How to go about a device without its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Repair,
    /// Somebody takes them away as often as they are put back.
    Contested,
}

#[derive(Debug)]
struct Count {
    since: Instant,
    turns: u32,
}

/// Of each device that was repaired, by number.
#[derive(Debug, Default)]
pub(super) struct Repairs(BTreeMap<u32, Count>);

impl Repairs {
    /// Whether the device had its last turn, and its window is not over.
    pub(super) fn is_contested(&self, device: u32, now: Instant) -> bool {
        self.0.get(&device).is_some_and(|count| count.turns > LIMIT && !count.is_over(now))
    }

    /// Counts one more.
    pub(super) fn turn(&mut self, device: u32, now: Instant) -> Turn {
        let count = self.0.entry(device).or_insert(Count { since: now, turns: 0 });
        if count.is_over(now) {
            *count = Count { since: now, turns: 0 };
        }
        count.turns += 1;
        if count.turns > LIMIT { Turn::Contested } else { Turn::Repair }
    }

    /// Those whose window is over.
    pub(super) fn forget(&mut self, now: Instant) {
        self.0.retain(|_, count| !count.is_over(now));
    }
}

impl Count {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{LIMIT, Repairs, Turn, WINDOW};

    /// E19: a device is contested after a number of repairs, until its window is over, and no other one with it.
    #[test]
    fn e19_repairs_of_a_device_are_bounded() {
        let (mut repairs, start) = (Repairs::default(), Instant::now());
        for _ in 0..LIMIT {
            assert!(!repairs.is_contested(7, start));
            assert_eq!(repairs.turn(7, start), Turn::Repair);
        }
        assert!(!repairs.is_contested(7, start), "one more in another way");
        assert_eq!(repairs.turn(7, start), Turn::Contested);
        let last = start + WINDOW.mul_f32(0.99);
        assert!(repairs.is_contested(7, last) && !repairs.is_contested(8, last));
        repairs.forget(last);
        assert!(repairs.is_contested(7, last));
        assert!(!repairs.is_contested(7, start + WINDOW));
        assert_eq!(repairs.turn(7, start + WINDOW), Turn::Repair);
        repairs.forget(start + WINDOW * 2);
        assert!(repairs.0.is_empty());
    }
}
