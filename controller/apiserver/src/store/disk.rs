//! The records on disk: one redb table, revision → what changed, plus the revision the history begins after.
//!
//! `embedded` calls it, from its writer thread alone once opened. Invariant: a record stays as long as it is the newest
//! of its object or some event still in the history has it as its old version.
//!
//! Each version of an object is written once: the current state is what the newest records of each key say.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Key, StoreError};

const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const FLOOR: &str = "floor";
const NEWEST: &str = "newest";

/// One version of an object; `value` is None where the object was deleted.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) bucket: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Revision of the version before, if there was one.
    pub(super) old: Option<u64>,
    pub(super) value: Option<Value>,
}

/// What one commit does to the disk.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) added: Vec<(u64, Vec<u8>)>,
    pub(super) removed: Vec<u64>,
    pub(super) floor: u64,
    pub(super) newest: u64,
}

/// Everything on disk, oldest record first.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) records: Vec<(u64, Record)>,
    pub(super) floor: u64,
    pub(super) newest: u64,
}

/// `Contents` not decoded yet.
struct Raw {
    records: Vec<(u64, Vec<u8>)>,
    floor: u64,
    newest: u64,
}

#[derive(Debug)]
pub(super) struct Disk {
    database: Database,
    path: PathBuf,
}

impl Record {
    pub(super) fn key(&self) -> Key {
        Key::new(&self.bucket, &self.namespace, &self.name)
    }
}

impl Disk {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |source: redb::Error| StoreError::Database {
            operation: "open",
            path: path.to_owned(),
            source: Box::new(source),
        };
        let file = private_file(path).map_err(|source| fail(redb::Error::Io(source)))?;
        let database = Database::builder().create_file(file).map_err(|source| fail(source.into()))?;
        Ok(Self { database, path: path.to_owned() })
    }

    pub(super) fn read(&self) -> Result<Contents, StoreError> {
        let raw = self.read_raw().map_err(|source| self.error("read", source))?;
        let mut records = Vec::with_capacity(raw.records.len());
        for (revision, bytes) in raw.records {
            let record = serde_json::from_slice(&bytes).map_err(|source| StoreError::Record {
                revision,
                path: self.path.clone(),
                source,
            })?;
            records.push((revision, record));
        }
        Ok(Contents { records, floor: raw.floor, newest: raw.newest })
    }

    /// Durable when it returns.
    pub(super) fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        self.commit_raw(batch).map_err(|source| self.error("write", source))
    }

    fn read_raw(&self) -> Result<Raw, redb::Error> {
        // The first start finds no tables: make them, so that reading needs no special case.
        let creation = self.database.begin_write()?;
        creation.open_table(RECORDS)?;
        creation.open_table(NUMBERS)?;
        creation.commit()?;

        let transaction = self.database.begin_read()?;
        let mut records = Vec::new();
        for entry in transaction.open_table(RECORDS)?.iter()? {
            let (revision, bytes) = entry?;
            records.push((revision.value(), bytes.value().to_vec()));
        }
        let numbers = transaction.open_table(NUMBERS)?;
        let number = |name| numbers.get(name).map(|found| found.map_or(0, |guard| guard.value()));
        Ok(Raw { records, floor: number(FLOOR)?, newest: number(NEWEST)? })
    }

    fn commit_raw(&self, batch: &Batch) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for (revision, bytes) in &batch.added {
                records.insert(revision, bytes.as_slice())?;
            }
            for revision in &batch.removed {
                records.remove(revision)?;
            }
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert(FLOOR, batch.floor)?;
            numbers.insert(NEWEST, batch.newest)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn error(&self, operation: &'static str, source: redb::Error) -> StoreError {
        StoreError::Database { operation, path: self.path.clone(), source: Box::new(source) }
    }
}

/// Its owner's alone, for Secrets are in it; one that an older version made for all to read becomes so.
fn private_file(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}
