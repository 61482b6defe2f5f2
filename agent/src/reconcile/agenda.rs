//! When the reconciler does something unasked: audits, rounds that are tried again or end backends, looks at devices.
//!
//! Asked after every command, not only when none waits. Invariant: a queue that is never empty delays nothing here by
//! more than one command.

use std::time::{Duration, Instant};

/// How long to wait after a round that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long to wait for room in the maps: what was freed rests for a few rounds.
const ROOM_INTERVAL: Duration = Duration::from_millis(100);
/// How long changes of devices are collected: each Pod that comes or goes makes several.
const COALESCE: Duration = Duration::from_millis(50);

/// Between two counts of the connections of backends.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(30);

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Compare the maps with the plan, then a round.
    Audit,
    /// A round.
    Round,
    /// See whether a device is another one.
    LookAtDevices,
    /// Correct what the kernel counts of connections.
    Recount,
}

/// What is to be done at which time.
#[derive(Debug)]
pub(super) struct Agenda {
    audit_interval: Duration,
    audit_at: Instant,
    recount_at: Instant,
    retry_at: Option<Instant>,
    end_at: Option<Instant>,
    look_at: Option<Instant>,
}

impl Agenda {
    pub(super) fn new(audit_interval: Duration, now: Instant) -> Self {
        Self {
            audit_interval,
            audit_at: now + audit_interval,
            recount_at: now + RECOUNT_INTERVAL,
            retry_at: None,
            end_at: None,
            look_at: None,
        }
    }

    /// The last round failed: another one, soon.
    pub(super) fn retry(&mut self, now: Instant) {
        self.retry_at = Some(now + RETRY_INTERVAL);
    }

    /// The last round had no room for something and may have some soon.
    pub(super) fn crowded(&mut self, now: Instant) {
        self.retry_at = Some(now + ROOM_INTERVAL);
    }

    /// The last round did all that can be done now.
    pub(super) fn settled(&mut self) {
        self.retry_at = None;
    }

    /// When the first of the backends that just went is to end, as the last round has it.
    pub(super) fn backends_end(&mut self, at: Option<Instant>) {
        self.end_at = at;
    }

    /// A device has changed. More changes do not put the look off.
    pub(super) fn devices_changed(&mut self, now: Instant) {
        self.look_at.get_or_insert(now + COALESCE);
    }

    /// The earliest of all.
    pub(super) fn next(&self) -> Instant {
        [self.retry_at, self.end_at, self.look_at]
            .into_iter()
            .flatten()
            .fold(self.audit_at.min(self.recount_at), Instant::min)
    }

    /// What is due now, and not any more afterwards. The next audit counts from here, however long this one takes.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Task> {
        if self.audit_at <= now {
            self.audit_at = now + self.audit_interval;
            return Some(Task::Audit);
        }
        let due = |at: &mut Option<Instant>| at.take_if(|at| *at <= now).is_some();
        // One round does both.
        let ends = due(&mut self.end_at);
        if due(&mut self.retry_at) || ends {
            Some(Task::Round)
        } else if due(&mut self.look_at) {
            Some(Task::LookAtDevices)
        } else if self.recount_at <= now {
            self.recount_at = now + RECOUNT_INTERVAL;
            Some(Task::Recount)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Agenda, COALESCE, RETRY_INTERVAL, ROOM_INTERVAL, Task};

    const AUDIT: Duration = Duration::from_secs(30);

    /// Asked after each of many commands, as under a queue that is never empty, each task has its turn.
    #[test]
    fn a_busy_queue_starves_nothing() {
        let start = Instant::now();
        let mut agenda = Agenda::new(AUDIT, start);
        agenda.retry(start);
        let mut done = Vec::new();
        for millis in 0..=31_000 {
            let now = start + Duration::from_millis(millis);
            agenda.devices_changed(now);
            assert!(agenda.next() <= now + COALESCE);
            done.extend(agenda.take_due(now));
        }
        let count = |task| done.iter().filter(|done| **done == task).count();
        assert_eq!((count(Task::Audit), count(Task::Round), count(Task::Recount)), (1, 1, 1));
        assert_eq!(done[..2], [Task::LookAtDevices; 2]);
        let looks = count(Task::LookAtDevices);
        assert!((500..=620).contains(&looks), "a burst is one look: {looks}");
    }

    #[test]
    fn a_round_ends_backends_at_their_time_whatever_else_is_settled() {
        let start = Instant::now();
        let mut agenda = Agenda::new(AUDIT, start);
        let end = start + RETRY_INTERVAL / 2;
        agenda.backends_end(Some(end));
        agenda.settled();
        assert_eq!((agenda.next(), agenda.take_due(start)), (end, None));
        assert_eq!(agenda.take_due(end), Some(Task::Round));
        assert_eq!((agenda.next(), agenda.take_due(end)), (start + AUDIT, None));
        agenda.backends_end(Some(end));
        agenda.retry(start);
        assert_eq!(agenda.take_due(start + RETRY_INTERVAL), Some(Task::Round));
        assert_eq!(agenda.take_due(start + RETRY_INTERVAL), None, "one round for both");
        agenda.backends_end(Some(end));
        agenda.backends_end(None);
        assert_eq!(agenda.next(), start + AUDIT, "it was back before");
    }

    #[test]
    fn a_round_that_failed_is_tried_again_once_and_not_after_one_that_succeeded() {
        let start = Instant::now();
        let mut agenda = Agenda::new(AUDIT, start);
        agenda.retry(start);
        assert_eq!(agenda.next(), start + RETRY_INTERVAL);
        assert_eq!(agenda.take_due(start), None);
        assert_eq!(agenda.take_due(start + RETRY_INTERVAL), Some(Task::Round));
        assert_eq!(agenda.take_due(start + RETRY_INTERVAL), None);
        agenda.retry(start);
        agenda.settled();
        assert_eq!(agenda.next(), start + AUDIT);
        agenda.crowded(start);
        assert_eq!(agenda.take_due(start + ROOM_INTERVAL), Some(Task::Round));
    }
}
