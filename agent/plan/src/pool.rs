//! Numbers that things in the kernel are known by: ids and ranges of slots. Used by the layout.
//!
//! Invariant: what is given back rests for [`QUARANTINE`] ages before it is given out again, because a kernel reader may
//! still hold the number of something that was just removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// How many layouts a freed number rests.
pub const QUARANTINE: u64 = 4;

/// Freed things in the order of their release.
#[derive(Clone, Debug)]
struct Resting<T>(VecDeque<(u64, T)>);

impl<T> Resting<T> {
    fn new() -> Self {
        Self(VecDeque::new())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn rested(&mut self, age: u64) -> Option<T> {
        let (released, _) = self.0.front()?;
        if released + QUARANTINE <= age { self.0.pop_front().map(|(_, thing)| thing) } else { None }
    }
}

/// Single numbers of a fixed range.
#[derive(Clone, Debug)]
pub struct IdPool {
    /// Never given out. Ranges: a number that was found in a map may be far from all others.
    fresh: VecDeque<Range<u32>>,
    free: VecDeque<u32>,
    resting: Resting<u32>,
}

impl IdPool {
    /// All numbers from `start` up to but not including `end`, save those in use.
    pub fn new(mut start: u32, end: u32, used: &BTreeSet<u32>) -> Self {
        let mut fresh = VecDeque::new();
        for &id in used.range(start..end) {
            if start < id {
                fresh.push_back(start..id);
            }
            start = id + 1;
        }
        fresh.push_front(start..end);
        Self { fresh, free: VecDeque::new(), resting: Resting::new() }
    }

    /// A number that nobody has; `None` when all are in use or resting.
    pub fn take(&mut self) -> Option<u32> {
        while let Some(range) = self.fresh.front_mut() {
            if let Some(id) = range.next() {
                return Some(id);
            }
            self.fresh.pop_front();
        }
        self.free.pop_front()
    }

    /// Gives a number back, to rest.
    pub fn give_back(&mut self, id: u32, age: u64) {
        self.resting.0.push_back((age, id));
    }

    /// Whether something was given back that nobody may have yet.
    pub fn is_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Frees what has rested long enough.
    pub fn mature(&mut self, age: u64) {
        while let Some(id) = self.resting.rested(age) {
            self.free.push_back(id);
        }
    }
}

/// Ranges of consecutive numbers from 0.
#[derive(Clone, Debug)]
pub struct RangePool {
    /// Length by start; neighbours are always merged.
    free: BTreeMap<u32, u32>,
    /// (length, start) of the same ranges: the smallest that fits is taken.
    by_length: BTreeSet<(u32, u32)>,
    resting: Resting<(u32, u32)>,
}

impl RangePool {
    /// Numbers up to but not including `end`, all free.
    pub fn new(end: u32) -> Self {
        let mut pool = Self { free: BTreeMap::new(), by_length: BTreeSet::new(), resting: Resting::new() };
        pool.insert(0, end);
        pool
    }

    /// Takes a particular range; false if any of it is taken.
    pub fn reserve(&mut self, start: u32, length: u32) -> bool {
        let Some(end) = start.checked_add(length) else { return false };
        let Some((&free_start, &free_length)) = self.free.range(..=start).next_back() else { return false };
        let free_end = free_start + free_length;
        if end > free_end {
            return false;
        }
        self.remove(free_start, free_length);
        self.insert(free_start, start - free_start);
        self.insert(end, free_end - end);
        true
    }

    /// The start of a free range of this length, which must not be 0.
    pub fn take(&mut self, length: u32) -> Option<u32> {
        let &(found, start) = self.by_length.range((length, 0)..).next()?;
        self.remove(start, found);
        self.insert(start + length, found - length);
        Some(start)
    }

    /// Gives a range back, to rest.
    pub fn give_back(&mut self, start: u32, length: u32, age: u64) {
        self.resting.0.push_back((age, (start, length)));
    }

    /// Whether something was given back that nobody may have yet.
    pub fn is_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// Frees what has rested long enough.
    pub fn mature(&mut self, age: u64) {
        while let Some((start, length)) = self.resting.rested(age) {
            self.release(start, length);
        }
    }

    fn release(&mut self, mut start: u32, mut length: u32) {
        if let Some((&left, &left_length)) = self.free.range(..start).next_back()
            && left + left_length == start
        {
            self.remove(left, left_length);
            start = left;
            length += left_length;
        }
        if let Some(&right_length) = self.free.get(&(start + length)) {
            self.remove(start + length, right_length);
            length += right_length;
        }
        self.insert(start, length);
    }

    fn insert(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.free.insert(start, length);
            self.by_length.insert((length, start));
        }
    }

    fn remove(&mut self, start: u32, length: u32) {
        self.free.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{IdPool, QUARANTINE, RangePool};

    #[test]
    fn an_id_rests_before_it_is_given_out_again() {
        let mut pool = IdPool::new(1, 4, &BTreeSet::from([2]));
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(3), Some(1), None], "2 is in use");
        pool.give_back(3, 10);
        pool.mature(10 + QUARANTINE - 1);
        assert_eq!(pool.take(), None);
        pool.mature(10 + QUARANTINE);
        assert_eq!(pool.take(), Some(3));
    }

    #[test]
    fn ranges_split_and_merge() {
        let mut pool = RangePool::new(10);
        assert!(pool.reserve(4, 2));
        assert!(!pool.reserve(5, 1), "taken");
        assert!(!pool.reserve(3, 2), "half taken");
        assert!(!pool.reserve(8, 3), "past the end");
        assert!(!pool.reserve(u32::MAX, 2), "past the end of numbers");
        assert_eq!(pool.take(5), None, "in pieces of 4");
        assert_eq!(pool.take(4), Some(0));
        pool.give_back(4, 2, 0);
        pool.give_back(0, 4, 0);
        pool.mature(QUARANTINE - 1);
        assert_eq!(pool.take(5), None);
        pool.mature(QUARANTINE);
        assert_eq!(pool.take(10), Some(0), "one piece again");
    }
}
