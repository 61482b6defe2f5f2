//! What is to be reconciled, and when. A key is queued once however often it is asked for; one that failed waits
//! longer each time, up to a minute. Owned by the loop of one reconciler. Time is passed in.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_mins(1);

/// See the module.
#[derive(Debug)]
pub struct Queue<T> {
    due: BTreeMap<T, Instant>,
    failures: BTreeMap<T, u32>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { due: BTreeMap::new(), failures: BTreeMap::new() }
    }
}

impl<T: Ord + Clone> Queue<T> {
    /// News about `key`: it is due at once, even if it was to wait.
    pub fn push(&mut self, key: T, now: Instant) {
        self.due.insert(key, now);
    }

    /// Due keys, `most` at most.
    pub fn take(&mut self, now: Instant, most: usize) -> Vec<T> {
        let due = self.due.iter().filter(|&(_, &due)| due <= now);
        let keys: Vec<_> = due.map(|(key, _)| key.clone()).take(most).collect();
        for key in &keys {
            self.due.remove(key);
        }
        keys
    }

    /// When the next key is due.
    pub fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    pub fn succeeded(&mut self, key: &T) {
        self.failures.remove(key);
    }

    /// Puts the key back to be due after its backoff.
    pub fn failed(&mut self, key: T, now: Instant) {
        let failures = self.failures.entry(key.clone()).or_default();
        let delay = FIRST_DELAY.saturating_mul(1 << (*failures).min(16)).min(LONGEST_DELAY);
        *failures += 1;
        self.due.entry(key).or_insert(now + delay);
    }

    pub fn len(&self) -> usize {
        self.due.len()
    }

    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::{FIRST_DELAY, LONGEST_DELAY, Queue};

    #[test]
    fn a_key_is_queued_once_and_waits_longer_after_each_failure() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.push("a", now);
        queue.push("a", now);
        assert_eq!(queue.take(now, 2), ["a"]);
        assert!(queue.take(now, 2).is_empty());
        queue.failed("a", now);
        assert_eq!(queue.next(), Some(now + FIRST_DELAY));
        assert!(queue.take(now, 2).is_empty());
        for _ in 0..20 {
            assert_eq!(queue.take(now + LONGEST_DELAY, 1), ["a"]);
            queue.failed("a", now);
        }
        assert_eq!(queue.next(), Some(now + LONGEST_DELAY));
        queue.push("a", now);
        assert_eq!(queue.take(now, 1), ["a"], "news end the wait");
        queue.succeeded(&"a");
        queue.failed("a", now);
        assert_eq!(queue.next(), Some(now + Duration::from_millis(50)));
        for key in ["b", "c", "d"] {
            queue.push(key, now);
        }
        assert_eq!(queue.take(now, 2), ["b", "c"]);
        assert_eq!(queue.take(now, 2), ["d"]);
    }
}
