//! The store as sessions change it: what is answered is on disk, and one sync serves everybody who waits for one.
//!
//! Called by the server on threads that may block. Lines are added under the store's lock and synced outside of it, so
//! that others add theirs meanwhile. Invariant: an address is free only after the disk says so.

use std::sync::{Mutex, MutexGuard, PoisonError};

use quilla_cni_protocol::{Attachment, failpoint};

use crate::cni::AttachedEndpoint;
use crate::cni::journal::{JournalError, Mark};
use crate::cni::store::{Store, StoreError};

/// The store, and what of its journal is on disk.
#[derive(Debug)]
pub(super) struct DurableStore {
    store: Mutex<Store>,
    /// Held during a sync.
    synced: Mutex<Mark>,
}

impl DurableStore {
    pub(super) fn new(store: Store) -> Self {
        Self { store: Mutex::new(store), synced: Mutex::default() }
    }

    /// A panic leaves an address held for nobody at worst: the journal is written before the maps change.
    pub(super) fn locked(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that an endpoint is effective.
    pub(super) fn commit(&self, endpoint: AttachedEndpoint) -> Result<(), StoreError> {
        let mark = self.locked().commit(endpoint)?;
        Ok(self.sync(mark)?)
    }

    /// Forgets an attachment; its addresses cool down. Nothing to do for an unknown one. Where the journal cannot be
    /// written the addresses stay held until it can, so that DEL succeeds on a full disk and nothing is given twice.
    pub(super) fn release(&self, attachment: &Attachment) {
        let Some((mark, at)) = self.locked().release(attachment) else { return };
        match self.sync(mark) {
            Ok(()) => self.locked().released(attachment, at),
            Err(error) => self.locked().not_released(attachment, &error),
        }
    }

    /// Waits until the journal is on disk up to the mark: for the sync of somebody who came later, if there is one.
    fn sync(&self, mark: Mark) -> Result<(), JournalError> {
        let mut synced = self.synced.lock().unwrap_or_else(PoisonError::into_inner);
        if *synced >= mark {
            return Ok(());
        }
        let unsynced = self.locked().unsynced()?;
        // Another file has what this one said, and was synced before it took its place.
        let same_file = unsynced.mark.file == mark.file;
        if same_file {
            unsynced.sync().map_err(|error| self.locked().sync_failed(error))?;
        }
        failpoint!(JournalSynced, |error| self.locked().sync_failed(error));
        *synced = if same_file { unsynced.mark } else { mark };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
