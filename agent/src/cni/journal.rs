//! The memory of the CNI server across crashes: an append-only file of checked lines, rewritten whole now and then.
//!
//! A line that was acknowledged is on disk; one sync serves all who wait for one (see `durable`). A torn end is cut off,
//! because nothing after it was acknowledged. Of a file that is damaged elsewhere every intact line is kept, and the file
//! itself under another name: what a lost line said, the kernel's routes know (see `store`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cni::AttachedEndpoint;
use crate::cni::disk::Disk;
use crate::cni::ipam::Seconds;
use quilla_cni_protocol::{Attachment, failpoint};

/// Format of the file; a later one is refused. Format 1 had times of the wall clock.
const FORMAT: u32 = 2;

const FILE: &str = "endpoints.journal";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub(super) enum Record {
    /// First line of every file.
    Journal { format: u32 },
    /// Addresses were given; nothing is effective yet (index and cookie are 0).
    Reserved { endpoint: AttachedEndpoint },
    /// The endpoint is effective.
    Attached { endpoint: AttachedEndpoint },
    /// The attachment is gone, its addresses cool down.
    Released { attachment: Attachment, at: Seconds },
    /// A released address, in a rewritten file.
    Cooling {
        address: std::net::IpAddr,
        at: Seconds,
        /// The Pod that had it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pod_uid: Option<String>,
    },
}

/// How far a journal had been written: which of its files, and how much of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) file: u64,
    length: u64,
}

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
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
    /// An intact line says something this version does not know.
    #[error("journal {} has an unknown record at line {line}", path.display())]
    Unknown {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Written by a later version.
    #[error("journal {} has format {format}, known are 1 to {FORMAT}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Its own word.
        format: u32,
    },
    /// An earlier write failed and could not be taken back, and the file was not rewritten.
    #[error("journal {} is unusable since an earlier failed write", path.display())]
    Poisoned {
        /// Which file.
        path: PathBuf,
    },
}

/// The open file.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    path: PathBuf,
    disk: Arc<dyn Disk>,
    /// None until a file could be written.
    file: Option<Arc<File>>,
    mark: Mark,
    lines: usize,
    poisoned: bool,
    /// The last line was not taken, and has left no trace.
    refused: bool,
}

/// A file to sync, and how far it was written.
#[derive(Debug)]
pub(super) struct Unsynced {
    file: Arc<File>,
    pub(super) mark: Mark,
    disk: Arc<dyn Disk>,
}

impl Unsynced {
    /// Waits for the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.disk.sync(&self.file)
    }
}

/// What a file says, and what it says no more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Recovered {
    pub(super) records: Vec<Record>,
    /// Length of the torn end.
    pub(super) cut_bytes: usize,
    /// Lines before it that are not intact.
    pub(super) damaged_lines: usize,
    /// Whether its times are those of this format.
    pub(super) has_times: bool,
}

impl Journal {
    /// Reads what is there; a missing file is an empty one.
    pub(super) fn recover(dir: &Path) -> Result<Recovered, JournalError> {
        let path = dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => parse(&path, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Recovered::default()),
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    /// Keeps a damaged file for the operator.
    pub(super) fn set_aside(dir: &Path) -> Result<(), JournalError> {
        let (path, aside) = (dir.join(FILE), dir.join(format!("{FILE}.damaged")));
        fs::copy(&path, &aside).map(drop).map_err(io_error("copy to", &aside))
    }

    /// One that takes no line until it is rewritten.
    pub(super) fn unwritten(dir: &Path, disk: Arc<dyn Disk>) -> Self {
        Self {
            dir: dir.into(),
            path: dir.join(FILE),
            disk,
            file: None,
            mark: Mark::default(),
            lines: 0,
            poisoned: true,
            refused: true,
        }
    }

    /// Replaces the file by one with these records. When that fails after the new one may have taken the name, the old
    /// one takes no line any more: nobody would find it.
    pub(super) fn rewrite(&mut self, records: &[Record]) -> Result<(), JournalError> {
        let aside = self.dir.join(format!("{FILE}.new"));
        let mut bytes = line(&Record::Journal { format: FORMAT });
        bytes.extend(records.iter().flat_map(line));
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&aside)
            .map_err(io_error("create", &aside))?;
        file.write_all(&bytes).and_then(|()| self.disk.sync(&file)).map_err(io_error("write", &aside))?;
        failpoint!(JournalRewritten, io_error("write", &aside));
        let folder = File::open(&self.dir).map_err(io_error("open", &self.dir))?;
        self.poisoned = true;
        fs::rename(&aside, &self.path).map_err(io_error("rename to", &self.path))?;
        failpoint!(JournalReplaced, io_error("rename to", &self.path));
        self.disk.sync_names(&folder).map_err(io_error("sync", &self.dir))?;
        self.file = Some(Arc::new(file));
        self.mark = Mark { file: self.mark.file + 1, length: bytes.len() as u64 };
        self.lines = records.len();
        (self.poisoned, self.refused) = (false, false);
        Ok(())
    }

    /// Adds a record, which the kernel has then and the disk perhaps not. A failed write is taken back, so that no later
    /// line follows half of this one.
    pub(super) fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let Unsynced { file, .. } = self.unsynced()?;
        failpoint!(JournalAppending, io_error("append to", &self.path));
        let bytes = line(record);
        if let Err(error) = file.as_ref().write_all(&bytes) {
            self.refused = true;
            self.poisoned = take_back(&file, self.mark.length).is_err();
            return Err(io_error("append to", &self.path)(error));
        }
        failpoint!(JournalAppended, |error| {
            self.poisoned = true;
            io_error("sync", &self.path)(error)
        });
        self.refused = false;
        self.mark.length += bytes.len() as u64;
        self.lines += 1;
        Ok(())
    }

    /// What a sync that begins now puts on disk.
    pub(super) fn unsynced(&self) -> Result<Unsynced, JournalError> {
        let file = self.file.as_ref().filter(|_| !self.poisoned);
        let file = file.ok_or_else(|| JournalError::Poisoned { path: self.path.clone() })?;
        Ok(Unsynced { file: Arc::clone(file), mark: self.mark, disk: Arc::clone(&self.disk) })
    }

    /// How far it was written.
    pub(super) const fn mark(&self) -> Mark {
        self.mark
    }

    /// After a failed sync nobody knows what is on disk.
    pub(super) fn sync_failed(&mut self, source: io::Error) -> JournalError {
        self.poisoned = true;
        io_error("sync", &self.path)(source)
    }

    /// A write failed and could not be taken back: only a new file helps.
    pub(super) const fn poisoned(&self) -> bool {
        self.poisoned
    }

    /// The last line was not written.
    pub(super) const fn failing(&self) -> bool {
        self.poisoned || self.refused
    }

    /// Records written since the file was made, those it was made with included.
    pub(super) const fn lines(&self) -> usize {
        self.lines
    }

    /// Writes to `target` from now on.
    #[cfg(test)]
    pub(super) fn divert(&mut self, target: &str) {
        self.file = Some(Arc::new(OpenOptions::new().write(true).open(target).expect("opens")));
    }
}

fn take_back(mut file: &File, length: u64) -> io::Result<()> {
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length)).map(drop)
}

/// A checksum, a blank, the record, the end.
fn line(record: &Record) -> Vec<u8> {
    let json =
        serde_json::to_string(record).unwrap_or_else(|error| unreachable!("records are plain data: {error}"));
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).into_bytes()
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Recovered, JournalError> {
    let mut recovered = Recovered::default();
    let mut format = None;
    // Not known yet whether it is the end.
    let (mut suspect_lines, mut suspect_bytes) = (0, 0);
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(json) = intact_end(line) else {
            (suspect_lines, suspect_bytes) = (suspect_lines + 1, suspect_bytes + line.len());
            continue;
        };
        // A line that is intact only from its middle on has lost the end of the line before it.
        suspect_lines += usize::from(json.len() + 10 < line.len());
        recovered.damaged_lines += suspect_lines;
        (suspect_lines, suspect_bytes) = (0, 0);
        let unknown = |source| JournalError::Unknown { path: path.into(), line: index + 1, source };
        match serde_json::from_slice(json).map_err(unknown)? {
            Record::Journal { format: found } => format = Some(found),
            record => recovered.records.push(record),
        }
    }
    if let Some(format) = format.filter(|format| !(1..=FORMAT).contains(format)) {
        return Err(JournalError::Format { path: path.into(), format });
    }
    recovered.cut_bytes = suspect_bytes;
    recovered.has_times = format == Some(FORMAT);
    if format.is_none() && !bytes.is_empty() {
        // Its first line is lost.
        recovered.damaged_lines = recovered.damaged_lines.max(1);
    }
    Ok(recovered)
}

/// The record at the end of a line, which is all of the line unless the line before it has lost its end.
fn intact_end(line: &[u8]) -> Option<&[u8]> {
    (0..line.len()).find_map(|start| intact(&line[start..]))
}

/// The record's text, when the line is complete and its checksum right.
fn intact(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    let (checksum, json) = (line.get(..8)?, line.get(9..)?);
    let expected = u32::from_str_radix(std::str::from_utf8(checksum).ok()?, 16).ok()?;
    (line[8] == b' ' && crc32fast::hash(json) == expected).then_some(json)
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_path_buf();
    move |source| JournalError::Io { operation, path, source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use std::path::Path;
    use std::sync::Arc;

    use super::{FILE, Journal, JournalError, Record, parse};
    use crate::cni::disk::Kernel;

    fn record(last: u8) -> Record {
        Record::Cooling { address: [10, 0, 0, last].into(), at: u64::from(last), pod_uid: None }
    }

    fn journal(dir: &Path, records: &[Record]) -> Journal {
        let mut journal = Journal::unwritten(dir, Arc::new(Kernel));
        journal.rewrite(records).expect("writes");
        journal
    }

    fn written(dir: &Path) -> Vec<u8> {
        let mut journal = journal(dir, &[record(1)]);
        for last in 2..6 {
            journal.append(&record(last)).expect("appends");
        }
        fs::read(dir.join(FILE)).expect("reads")
    }

    #[test]
    fn what_was_appended_comes_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert!(Journal::recover(dir.path()).expect("empty").records.is_empty());
        written(dir.path());
        let recovered = Journal::recover(dir.path()).expect("recovers");
        assert_eq!(recovered.records, (1..6).map(record).collect::<Vec<_>>());
        assert_eq!(recovered.cut_bytes, 0);
    }

    /// CNI-30: cut anywhere, the intact prefix comes back and nothing else.
    #[test]
    fn truncation_at_every_byte() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let bytes = written(dir.path());
        let header = bytes.iter().position(|byte| *byte == b'\n').expect("has lines") + 1;
        for end in 1..=bytes.len() {
            let recovered = parse(dir.path(), &bytes[..end]).expect("recovers");
            let complete = bytes[header.min(end)..end].split_inclusive(|byte| *byte == b'\n');
            let complete = complete.filter(|line| line.ends_with(b"\n")).count();
            assert_eq!(recovered.records.len(), complete, "cut at {end}");
            assert_eq!(recovered.damaged_lines, usize::from(end < header), "cut at {end}");
        }
    }

    /// CNI-30: a flipped byte costs the line it is in, or the end of the file; it is seen, and never believed.
    #[test]
    fn damage_at_every_byte() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let bytes = written(dir.path());
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0x15;
            let recovered = parse(dir.path(), &damaged).expect("recovers");
            let line = bytes[..index].split(|byte| *byte == b'\n').count() - 1;
            let expected: Vec<_> = (1..6).filter(|last| usize::from(*last) != line).map(record).collect();
            assert_eq!(recovered.records, expected, "damage at {index}");
            assert!(recovered.damaged_lines > 0 || recovered.cut_bytes > 0, "damage at {index} went unseen");
            assert_eq!(recovered.has_times, line != 0, "damage at {index}");
        }
    }

    /// CNI-30: what is no journal at all is recovered as nothing, and seen.
    #[test]
    fn garbage_is_damage() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for garbage in [&b"\0\0\0\0garbage\n"[..], b"\xff", b"\n\n\n", b"{}\n"] {
            let recovered = parse(dir.path(), garbage).expect("recovers");
            assert!(recovered.records.is_empty() && recovered.damaged_lines > 0, "{garbage:?}");
        }
    }

    /// A file of the version before is read; one of a later version is not, because what it says might be lost.
    #[test]
    fn formats() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = |format| [super::line(&Record::Journal { format }), super::line(&record(1))].concat();
        let old = parse(dir.path(), &file(1)).expect("is known");
        assert!(!old.has_times && old.records == [record(1)] && old.damaged_lines == 0);
        assert!(parse(dir.path(), &file(2)).expect("is this one").has_times);
        assert!(matches!(parse(dir.path(), &file(3)), Err(JournalError::Format { format: 3, .. })));
        let unknown = br#"{"record":"married"}"#;
        let unknown = format!("{:08x} {}\n", crc32fast::hash(unknown), String::from_utf8_lossy(unknown));
        let error =
            parse(dir.path(), &[file(2), unknown.into_bytes()].concat()).expect_err("is of a later version");
        assert!(matches!(error, JournalError::Unknown { line: 3, .. }), "{error}");
    }

    /// After a failed sync nobody knows what is on disk, so nothing is added to it; nor to what cannot be cut.
    #[test]
    fn a_poisoned_file_takes_nothing_more() {
        let dir = tempfile::tempdir().expect("temporary directory");
        // One cannot be synced, the other neither written nor cut.
        for target in ["/dev/null", "/dev/full"] {
            let mut journal = journal(dir.path(), &[]);
            journal.divert(target);
            let sync = |journal: &mut Journal| {
                journal.unsynced()?.sync().map_err(|error| journal.sync_failed(error))
            };
            let failed = journal.append(&record(1)).and_then(|()| sync(&mut journal)).expect_err("fails");
            assert!(matches!(failed, JournalError::Io { .. }), "{target}: {failed}");
            assert!(journal.poisoned());
            let refused = journal.append(&record(2)).expect_err("refuses");
            assert!(matches!(refused, JournalError::Poisoned { .. }), "{target}: {refused}");
        }
    }
}
