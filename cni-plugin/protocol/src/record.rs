//! The note DEL leaves while the agent is away: one small file per attachment. Written by the plugin, consumed by the
//! agent. A record exists completely or not at all: it is written aside, fsynced and renamed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Attachment, failpoint};

const SUFFIX: &str = ".release";

/// A release the agent has not heard of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    /// What was released.
    pub attachment: Attachment,
}

/// A record that cannot be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file does not hold a record.
    #[error("{operation} release record {}", path.display())]
    Json {
        /// What was tried.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
}

impl ReleaseRecord {
    /// The file of an attachment. The host side's name stands for it: short, and free of characters paths dislike.
    pub fn path(dir: &Path, attachment: &Attachment) -> PathBuf {
        dir.join(format!("{}{SUFFIX}", attachment.host_ifname()))
    }

    /// Writes the record so that it survives a crash of the machine.
    pub fn write(&self, dir: &Path) -> Result<(), RecordError> {
        fs::create_dir_all(dir).map_err(io_error("create directory", dir))?;
        let path = Self::path(dir, &self.attachment);
        let aside = Self::aside(dir, &self.attachment);
        let bytes = serde_json::to_vec(self).map_err(json_error("encode", &path))?;
        let mut file = File::create(&aside).map_err(io_error("create", &aside))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io_error("write", &aside))?;
        failpoint!(RecordWritten, io_error("write", &aside));
        match fs::rename(&aside, &path) {
            // Another DEL of the same attachment was faster, and said the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.exists() => {}
            renamed => renamed.map_err(io_error("rename to", &path))?,
        }
        failpoint!(RecordRenamed, io_error("rename to", &path));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync directory", dir))
    }

    /// The file of every record in a directory; a directory that does not exist holds none.
    pub fn list(dir: &Path) -> Result<Vec<PathBuf>, RecordError> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("read directory", dir)(error)),
        };
        let paths: io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut paths = paths.map_err(io_error("read directory", dir))?;
        paths.retain(|path| path.to_string_lossy().ends_with(SUFFIX));
        Ok(paths)
    }

    /// Reads one record.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let bytes = fs::read(path).map_err(io_error("read", path))?;
        serde_json::from_slice(&bytes).map_err(json_error("decode", path))
    }

    /// Removes the record of an attachment, and what a DEL that died while it wrote one left; says whether there was
    /// a record.
    pub fn remove(dir: &Path, attachment: &Attachment) -> Result<bool, RecordError> {
        remove(&Self::aside(dir, attachment))?;
        remove(&Self::path(dir, attachment))
    }

    /// Where a record is written before it has its name.
    fn aside(dir: &Path, attachment: &Attachment) -> PathBuf {
        Self::path(dir, attachment).with_extension("new")
    }
}

fn remove(path: &Path) -> Result<bool, RecordError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("remove", path)(error)),
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RecordError {
    let path = path.to_path_buf();
    move |source| RecordError::Io { operation, path, source }
}

fn json_error(operation: &'static str, path: &Path) -> impl FnOnce(serde_json::Error) -> RecordError {
    let path = path.to_path_buf();
    move |source| RecordError::Json { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::ReleaseRecord;
    use crate::Attachment;

    #[test]
    fn write_list_read_remove() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let records = dir.path().join("made/on/demand");
        assert!(ReleaseRecord::list(&records).expect("no directory is no record").is_empty());
        let record =
            ReleaseRecord { attachment: Attachment { container_id: "c".into(), ifname: "eth0".into() } };
        record.write(&records).expect("writes");
        record.write(&records).expect("writes again");
        let listed = ReleaseRecord::list(&records).expect("lists");
        assert_eq!(listed, [ReleaseRecord::path(&records, &record.attachment)]);
        assert_eq!(ReleaseRecord::read(&listed[0]).expect("reads"), record);
        assert!(ReleaseRecord::remove(&records, &record.attachment).expect("removes"));
        assert!(!ReleaseRecord::remove(&records, &record.attachment).expect("nothing left"));
        std::fs::write(ReleaseRecord::aside(&records, &record.attachment), b"torn").expect("writes");
        assert!(!ReleaseRecord::remove(&records, &record.attachment).expect("half a record is none"));
        assert_eq!(std::fs::read_dir(&records).expect("reads").count(), 0);
    }
}
