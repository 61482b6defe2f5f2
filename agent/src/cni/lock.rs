//! One plugin at a time per attachment. A session holds the lock from its first request about an attachment until its
//! connection closes, so that ADD's two requests and a DEL never interleave.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quilla_cni_protocol::Attachment;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::timeout;

/// The locks in use.
#[derive(Debug, Default)]
pub(super) struct AttachmentLocks {
    locks: Mutex<HashMap<Attachment, Arc<AsyncMutex<()>>>>,
}

/// Held until dropped.
#[derive(Debug)]
pub(super) struct AttachmentLock {
    attachment: Attachment,
    _guard: OwnedMutexGuard<()>,
}

impl AttachmentLock {
    /// Whether this is the lock of the attachment.
    pub(super) fn is_for(&self, attachment: &Attachment) -> bool {
        self.attachment == *attachment
    }
}

impl AttachmentLocks {
    /// Waits for the lock; `None` when the holder keeps it too long.
    pub(super) async fn acquire(
        &self,
        attachment: &Attachment,
        patience: Duration,
    ) -> Option<AttachmentLock> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            // Locks nobody holds or waits for are forgotten here, so the table stays as small as the present load.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(attachment.clone()).or_default())
        };
        let guard = timeout(patience, lock.lock_owned()).await.ok()?;
        Some(AttachmentLock { attachment: attachment.clone(), _guard: guard })
    }
}
