//! The durable state in memory: every object, and the last changes.
//!
//! `embedded` owns it behind a lock and feeds it each change once it is on disk. Invariant: `history` holds every change
//! after `floor`, in order, so that any state from `floor` on can be told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{Changes, Event, Key, Listing, Object, StoreError};

#[derive(Debug, Default)]
pub(super) struct Memory {
    pub(super) objects: BTreeMap<Key, Object>,
    history: VecDeque<Arc<Event>>,
    pub(super) floor: u64,
    pub(super) newest: u64,
}

impl Memory {
    pub(super) fn new(floor: u64, newest: u64) -> Self {
        Self { floor, newest, ..Self::default() }
    }

    /// Changes the objects without remembering the change.
    pub(super) fn set(&mut self, key: Key, object: Option<Object>) {
        match object {
            Some(object) => self.objects.insert(key, object),
            None => self.objects.remove(&key),
        };
    }

    pub(super) fn apply(&mut self, event: Arc<Event>) {
        self.set(event.key.clone(), event.new.clone());
        self.newest = event.revision;
        self.history.push_back(event);
    }

    /// Forgets the oldest changes beyond `window`.
    pub(super) fn compact(&mut self, window: usize) -> Vec<Arc<Event>> {
        let surplus = self.history.len().saturating_sub(window);
        let forgotten: Vec<_> = self.history.drain(..surplus).collect();
        if let Some(last) = forgotten.last() {
            self.floor = last.revision;
        }
        forgotten
    }

    pub(super) fn list(
        &self,
        bucket: &str,
        namespace: Option<&str>,
        at: Option<u64>,
    ) -> Result<Listing, StoreError> {
        let revision = at.unwrap_or(self.newest);
        let wanted = |key: &Key| key.bucket == bucket && namespace.is_none_or(|only| key.namespace == only);
        let mut found: BTreeMap<&Key, &Object> = range(&self.objects, bucket, namespace).collect();
        // Undo what came later, newest first.
        for event in self.since(revision)?.rev().filter(|event| wanted(&event.key)) {
            match &event.old {
                Some(old) => found.insert(&event.key, old),
                None => found.remove(&event.key),
            };
        }
        Ok(Listing { revision, objects: found.into_values().cloned().collect() })
    }

    pub(super) fn changes(&self, bucket: &str, after: u64) -> Result<Changes, StoreError> {
        let events = self.since(after)?.filter(|event| event.key.bucket == bucket).cloned().collect();
        Ok(Changes { revision: self.newest, events })
    }

    fn since(&self, revision: u64) -> Result<impl DoubleEndedIterator<Item = &Arc<Event>>, StoreError> {
        if revision < self.floor {
            return Err(StoreError::Compacted { asked: revision, floor: self.floor });
        }
        if revision > self.newest {
            return Err(StoreError::Future { asked: revision, newest: self.newest });
        }
        let first = self.history.partition_point(|event| event.revision <= revision);
        Ok(self.history.range(first..))
    }
}

/// The objects of a bucket, of one namespace or of all, in key order.
fn range<'a>(
    objects: &'a BTreeMap<Key, Object>,
    bucket: &'a str,
    namespace: Option<&'a str>,
) -> impl Iterator<Item = (&'a Key, &'a Object)> {
    let first = Key::new(bucket, namespace.unwrap_or_default(), "");
    objects.range(first..).take_while(move |(key, _)| {
        key.bucket == bucket && namespace.is_none_or(|only| key.namespace == only)
    })
}
