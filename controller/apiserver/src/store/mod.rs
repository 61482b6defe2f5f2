//! Where objects live: the storage seam, its vocabulary, and the embedded implementation.
//!
//! `write` and `read` call it; nothing else touches objects. Invariant: one revision counter for all kinds, strictly
//! rising, and whatever was acknowledged survives a crash of the process.

mod disk;
mod embedded;
mod memory;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

pub(crate) use embedded::Embedded;

/// What an object is stored under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// `GROUP/PLURAL` of the kind, the same for all its versions.
    pub(crate) bucket: String,
    /// Empty for cluster-scoped objects.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// A stored object and the revision of its last change.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    pub(crate) revision: u64,
    pub(crate) value: Arc<Value>,
}

/// One change, as watches see it. `new` is None on deletion, `old` on creation.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    pub(crate) key: Key,
    pub(crate) old: Option<Object>,
    pub(crate) new: Option<Object>,
}

/// Objects of one bucket as they were at `revision`, in key order.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) revision: u64,
    pub(crate) objects: Vec<Object>,
}

/// Changes up to and including `revision`.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) revision: u64,
    pub(crate) events: Vec<Arc<Event>>,
}

/// The change is ordered; it is acknowledged only once this future resolves.
pub(crate) type Durable = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// The seam for other storages (etcd): a revisioned map with compare-and-set and a bounded history.
pub(crate) trait Store: Send + Sync {
    /// The newest version, perhaps not durable yet: only for read-modify-write ending in `write`.
    fn head(&self, key: &Key) -> Option<Object>;

    /// The newest durable version.
    fn get(&self, key: &Key) -> Option<Object>;

    /// Whether `head` has any object of this namespace, in any bucket.
    fn namespace_in_use(&self, namespace: &str) -> bool;

    /// Objects of a bucket, of one namespace or of all, now or as of a revision still in the history.
    fn list(&self, bucket: &str, namespace: Option<&str>, at: Option<u64>) -> Result<Listing, StoreError>;

    /// The changes of a bucket after a revision still in the history.
    fn changes(&self, bucket: &str, after: u64) -> Result<Changes, StoreError>;

    /// Follows the newest durable revision.
    fn follow(&self) -> watch::Receiver<u64>;

    /// Why nothing can be written any more, if so.
    fn failure(&self) -> Option<Arc<StoreError>>;

    /// Puts (`Some`) or deletes (`None`) an object whose head revision is `expected` (None: there is none).
    /// The stored value carries the new revision in `metadata.resourceVersion`; it is returned with the promise of
    /// durability.
    fn write(
        &self,
        key: Key,
        expected: Option<u64>,
        value: Option<Value>,
    ) -> Result<(Object, Durable), StoreError>;
}

/// Failures of the storage.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The revision left the history.
    #[error("revision {asked} is older than the history, which begins after {floor}")]
    Compacted {
        /// What was asked for.
        asked: u64,
        /// Oldest revision still known.
        floor: u64,
    },
    /// The revision lies in the future.
    #[error("revision {asked} is newer than the newest, {newest}")]
    Future {
        /// What was asked for.
        asked: u64,
        /// The newest there is.
        newest: u64,
    },
    /// Someone else changed the object.
    #[error("object changed: expected revision {expected:?}, found {found:?}")]
    Conflict {
        /// What the writer had read.
        expected: Option<u64>,
        /// What is there.
        found: Option<u64>,
    },
    /// An earlier write failed: nothing is accepted any more.
    #[error("storage stopped accepting writes after a failure")]
    Stopped,
    /// The database cannot be opened or read.
    #[error("cannot {operation} {}", path.display())]
    Database {
        /// What was attempted.
        operation: &'static str,
        /// The database file.
        path: PathBuf,
        /// The cause.
        source: Box<redb::Error>,
    },
    /// A record makes no sense to this version.
    #[error("cannot read record {revision} of {}", path.display())]
    Record {
        /// Revision of the record.
        revision: u64,
        /// The database file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
}

impl Key {
    pub(crate) fn new(bucket: &str, namespace: &str, name: &str) -> Self {
        Self { bucket: bucket.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

#[cfg(test)]
mod tests;
