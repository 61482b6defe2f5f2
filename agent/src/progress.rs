//! How far the kernel is behind the cluster: which change waits since when, and when the last round succeeded.
//!
//! Told by the watches and the reconciler, read by the health servers (S41) and by the metrics (S53). Invariant: a
//! change that came while a round was under way waits for the next one.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How long a change may wait before the agent is not healthy: twice the longest pause that kube-proxy makes (S41).
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The clock of changes and rounds.
#[derive(Debug, Default)]
pub struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The oldest change that no round has begun to write.
    waiting: Option<Instant>,
    /// The oldest change that the round under way writes.
    under_way: Option<Instant>,
    /// When kube-proxy would have got the changes to endpoints that wait (S53).
    triggers: Vec<SystemTime>,
    triggers_under_way: Vec<SystemTime>,
    succeeded: Option<SystemTime>,
}

/// What a probe may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// When the last round succeeded, if any has.
    pub succeeded: Option<SystemTime>,
    /// How long the oldest change waits.
    pub behind: Duration,
}

impl Standing {
    /// Whether the kernel does what the cluster wants, near enough.
    pub fn healthy(&self) -> bool {
        self.succeeded.is_some() && self.behind <= PATIENCE
    }
}

/// More triggers than these are not kept between two rounds.
const MAX_TRIGGERS: usize = 100_000;

impl Progress {
    /// The cluster changed.
    pub fn queued(&self, now: Instant) {
        self.state().waiting.get_or_insert(now);
    }

    /// An endpoint of a Service changed at `trigger`.
    pub fn triggered(&self, trigger: SystemTime) {
        let mut state = self.state();
        if state.triggers.len() < MAX_TRIGGERS {
            state.triggers.push(trigger);
        }
    }

    /// A round begins: it writes all that has been queued so far.
    pub fn begun(&self) {
        let mut state = self.state();
        let waiting = state.waiting.take();
        state.under_way = earlier(state.under_way, waiting);
        let triggers = std::mem::take(&mut state.triggers);
        state.triggers_under_way.extend(triggers);
    }

    /// The round succeeded; these are the triggers of what it wrote.
    pub fn succeeded(&self, now: SystemTime) -> Vec<SystemTime> {
        let mut state = self.state();
        state.under_way = None;
        state.succeeded = Some(now);
        std::mem::take(&mut state.triggers_under_way)
    }

    /// The round failed: what it was to write waits on, and so does whatever made an audit necessary.
    pub fn failed(&self, now: Instant) {
        self.state().under_way.get_or_insert(now);
    }

    /// How things stand.
    pub fn standing(&self, now: Instant) -> Standing {
        let state = self.state();
        let oldest = earlier(state.under_way, state.waiting);
        let behind = oldest.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        Standing { succeeded: state.succeeded, behind }
    }

    /// Nothing panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant, SystemTime};

    use super::{PATIENCE, Progress};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn s41_health_is_a_success_and_no_change_that_waits_too_long() {
        let (start, wall) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let progress = Progress::default();
        assert!(!progress.standing(start).healthy(), "nothing was ever written");
        progress.begun();
        progress.succeeded(wall);
        assert!(progress.standing(start + 10 * PATIENCE).healthy(), "nothing is to be done");

        progress.queued(start);
        progress.queued(start + SECOND);
        assert!(progress.standing(start + PATIENCE).healthy());
        assert!(!progress.standing(start + PATIENCE + SECOND).healthy(), "the older one counts");
        progress.begun();
        progress.queued(start + SECOND);
        progress.succeeded(wall + SECOND);
        let standing = progress.standing(start + PATIENCE + SECOND);
        assert_eq!((standing.succeeded, standing.behind), (Some(wall + SECOND), PATIENCE), "came meanwhile");
        progress.begun();
        progress.succeeded(wall);
        assert_eq!(progress.standing(start + PATIENCE).behind, Duration::ZERO);
    }

    #[test]
    fn s41_a_round_that_fails_again_and_again_is_not_healthy() {
        let start = Instant::now();
        let progress = Progress::default();
        progress.begun();
        progress.succeeded(SystemTime::UNIX_EPOCH);
        for second in 0..=61 {
            progress.begun();
            progress.failed(start + second * SECOND);
        }
        assert!(!progress.standing(start + PATIENCE + SECOND).healthy());
    }

    #[test]
    fn s53_triggers_belong_to_the_round_that_writes_them() {
        let wall = SystemTime::UNIX_EPOCH;
        let progress = Progress::default();
        progress.triggered(wall);
        progress.begun();
        progress.triggered(wall + SECOND);
        progress.failed(Instant::now());
        progress.begun();
        progress.triggered(wall + 2 * SECOND);
        assert_eq!(progress.succeeded(wall), [wall, wall + SECOND]);
        progress.begun();
        assert_eq!(progress.succeeded(wall), [wall + 2 * SECOND]);
        assert!(progress.succeeded(wall).is_empty());
    }
}
