//! The embedded storage: state in memory, records on disk, one writer thread that commits in groups.
//!
//! Built by `Server::start`. Invariant: writes are ordered when submitted (`head`), and become visible to readers and
//! watches only after the commit that holds them, in that same order.
//!
//! Commits are groups: while one is being synced, later writes queue up, and share the next one's sync.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, mpsc};
use std::thread::JoinHandle;

use serde_json::Value;
use tokio::sync::{oneshot, watch};

use super::disk::{Batch, Disk, Record};
use super::memory::Memory;
use super::{Changes, Durable, Event, Key, Listing, Object, Store, StoreError};

/// Most writes that share one commit: bounds the time the first of them waits.
const GROUP: usize = 512;

/// A write on its way to the disk.
struct Submission {
    event: Arc<Event>,
    bytes: Vec<u8>,
    done: oneshot::Sender<()>,
}

/// The newest version of everything, durable or not.
struct Head {
    objects: BTreeMap<Key, Object>,
    newest: u64,
    /// None once stopped.
    writer: Option<mpsc::Sender<Submission>>,
}

pub(crate) struct Embedded {
    head: Mutex<Head>,
    memory: Arc<RwLock<Memory>>,
    newest: watch::Receiver<u64>,
    /// What ended the writer before its time; its end closes the channel.
    failure: watch::Receiver<Option<Arc<StoreError>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Embedded {
    /// Opens or creates the database; keeps the last `window` changes for watches.
    pub(crate) fn open(path: &Path, window: usize) -> Result<Self, StoreError> {
        let disk = Disk::open(path)?;
        let memory = load(&disk)?;
        let (publish, newest) = watch::channel(memory.newest);
        let (sender, receiver) = mpsc::channel();
        let head = Head { objects: memory.objects.clone(), newest: memory.newest, writer: Some(sender) };
        let memory = Arc::new(RwLock::new(memory));
        let writer = Writer { disk, memory: Arc::clone(&memory), publish, window };
        let (fail, failure) = watch::channel(None);
        let thread = std::thread::spawn(move || {
            fail.send_replace(writer.run(&receiver).err().map(Arc::new));
        });
        Ok(Self { head: Mutex::new(head), memory, newest, failure, thread: Mutex::new(Some(thread)) })
    }

    /// Waits until writes are no longer accepted.
    pub(crate) async fn failed(&self) -> Arc<StoreError> {
        let mut failure = self.failure.clone();
        // The channel closes at the writer's end, whether it could say why or not.
        if let Err(closed) = failure.wait_for(Option::is_some).await {
            tracing::debug!(%closed, "the storage's writer ended without a failure");
        }
        self.failure().unwrap_or_else(|| Arc::new(StoreError::Stopped))
    }

    /// Waits for the writes under way, then closes the database.
    pub(crate) fn close(&self) {
        self.head().writer = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the storage's writer thread panicked");
        }
    }

    // A panic while a lock is held leaves plain maps behind, whole at every step: the data stays usable.
    fn head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for Embedded {
    fn head(&self, key: &Key) -> Option<Object> {
        self.head().objects.get(key).cloned()
    }

    fn get(&self, key: &Key) -> Option<Object> {
        self.memory().objects.get(key).cloned()
    }

    fn namespace_in_use(&self, namespace: &str) -> bool {
        self.head().objects.keys().any(|key| key.namespace == namespace)
    }

    fn list(&self, bucket: &str, namespace: Option<&str>, at: Option<u64>) -> Result<Listing, StoreError> {
        self.memory().list(bucket, namespace, at)
    }

    fn changes(&self, bucket: &str, after: u64) -> Result<Changes, StoreError> {
        self.memory().changes(bucket, after)
    }

    fn follow(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }

    fn failure(&self) -> Option<Arc<StoreError>> {
        let told = self.failure.borrow().clone();
        told.or_else(|| self.failure.has_changed().is_err().then(|| Arc::new(StoreError::Stopped)))
    }

    fn write(
        &self,
        key: Key,
        expected: Option<u64>,
        value: Option<Value>,
    ) -> Result<(Object, Durable), StoreError> {
        let (done, durable) = oneshot::channel();
        let mut head = self.head();
        let old = head.objects.get(&key).cloned();
        let found = old.as_ref().map(|object| object.revision);
        if found != expected {
            return Err(StoreError::Conflict { expected, found });
        }
        let revision = head.newest + 1;
        let new = value.map(|value| Object { revision, value: Arc::new(stamped(value, revision)) });
        let event = Arc::new(Event { revision, key, old, new });
        let bytes = encode(&event);
        let writer = head.writer.as_ref().ok_or(StoreError::Stopped)?;
        writer
            .send(Submission { event: Arc::clone(&event), bytes, done })
            .map_err(|_| StoreError::Stopped)?;
        head.newest = revision;
        match &event.new {
            Some(object) => head.objects.insert(event.key.clone(), object.clone()),
            None => head.objects.remove(&event.key),
        };
        drop(head);
        let durable: Durable = Box::pin(async move { durable.await.map_err(|_| StoreError::Stopped) });
        Ok((result_of(&event), durable))
    }
}

/// What the writer of a change gets back: on deletion the last version, at the deletion's revision.
pub(crate) fn result_of(event: &Event) -> Object {
    let last = event.new.as_ref().or(event.old.as_ref());
    let value = last.map_or_else(Arc::default, |object| {
        if object.revision == event.revision {
            Arc::clone(&object.value)
        } else {
            Arc::new(stamped(Value::clone(&object.value), event.revision))
        }
    });
    Object { revision: event.revision, value }
}

fn stamped(mut value: Value, revision: u64) -> Value {
    value["metadata"]["resourceVersion"] = Value::String(revision.to_string());
    value
}

fn encode(event: &Event) -> Vec<u8> {
    let record = Record {
        bucket: event.key.bucket.clone(),
        namespace: event.key.namespace.clone(),
        name: event.key.name.clone(),
        old: event.old.as_ref().map(|object| object.revision),
        value: event.new.as_ref().map(|object| Value::clone(&object.value)),
    };
    serde_json::to_vec(&record).expect("a record of strings and JSON values is serialisable")
}

/// Replays the records: those up to the floor give the state, those after it the history too.
fn load(disk: &Disk) -> Result<Memory, StoreError> {
    let contents = disk.read()?;
    let mut memory = Memory::new(contents.floor, contents.floor);
    for (revision, record) in contents.records {
        let key = record.key();
        let new = record.value.map(|value| Object { revision, value: Arc::new(value) });
        if revision > contents.floor {
            let old = memory.objects.get(&key).cloned();
            memory.apply(Arc::new(Event { revision, key, old, new }));
        } else {
            memory.set(key, new);
        }
    }
    memory.newest = contents.newest;
    Ok(memory)
}

// === the writer thread ===

struct Writer {
    disk: Disk,
    memory: Arc<RwLock<Memory>>,
    publish: watch::Sender<u64>,
    window: usize,
}

impl Writer {
    /// Ends when the storage is closed, or at the first failure: later writes then find the channel closed.
    fn run(self, submissions: &mpsc::Receiver<Submission>) -> Result<(), StoreError> {
        while let Ok(first) = submissions.recv() {
            let mut group = vec![first];
            group.extend(submissions.try_iter().take(GROUP - 1));
            self.commit(&mut group).inspect_err(|error| {
                let error = error as &(dyn std::error::Error + 'static);
                tracing::error!(error, "storage failed; no write is accepted any more");
            })?;
            for submission in group {
                if submission.done.send(()).is_err() {
                    tracing::trace!("a client went away before its write was acknowledged; it stands");
                }
            }
        }
        Ok(())
    }

    fn commit(&self, group: &mut [Submission]) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for submission in group.iter_mut() {
            batch.added.push((submission.event.revision, std::mem::take(&mut submission.bytes)));
            batch.newest = submission.event.revision;
        }
        // Only this thread changes the memory, so compacting before the commit is safe: what readers miss for the
        // time of a sync is history older than the window.
        {
            let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
            for event in memory.compact(self.window) {
                batch.removed.extend(event.old.as_ref().map(|old| old.revision));
                if event.new.is_none() {
                    batch.removed.push(event.revision);
                }
            }
            batch.floor = memory.floor;
        }
        self.disk.commit(&batch)?;
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        for submission in group {
            memory.apply(Arc::clone(&submission.event));
        }
        drop(memory);
        self.publish.send_replace(batch.newest);
        Ok(())
    }
}
