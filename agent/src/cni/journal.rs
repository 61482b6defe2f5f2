//! The memory of the CNI server across crashes: an append-only file of checked lines, rewritten whole now and then.
//!
//! A line that was acknowledged is on disk. A torn or damaged end is cut off, because nothing after it was
//! acknowledged; damage followed by intact lines is refused, because forgetting a line could give an address twice.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cni::AttachedEndpoint;
use crate::cni::ipam::Seconds;
use quilla_cni_protocol::{Attachment, failpoint};

/// Format of the file; another is refused.
const FORMAT: u32 = 1;

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
    Cooling { address: std::net::IpAddr, at: Seconds },
}

/// Whether a line must survive a crash of the machine, or only one of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// The kernel has it.
    Process,
    /// The disk has it.
    Machine,
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
    /// A damaged line has intact ones after it.
    #[error("journal {} is damaged at line {line} and intact after it; refusing to forget addresses", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
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
    /// Written by another version.
    #[error("journal {} does not start as format {FORMAT}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
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
    path: PathBuf,
    file: File,
    length: u64,
    lines: usize,
    poisoned: bool,
}

/// What a file says, and how much of its end had to be cut off.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Recovered {
    pub(super) records: Vec<Record>,
    pub(super) cut_bytes: usize,
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

    /// Replaces the file by one with these records, and opens it.
    pub(super) fn rewrite(dir: &Path, records: &[Record]) -> Result<Self, JournalError> {
        let path = dir.join(FILE);
        let aside = dir.join(format!("{FILE}.new"));
        let mut bytes = line(&Record::Journal { format: FORMAT });
        bytes.extend(records.iter().flat_map(line));
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&aside)
            .map_err(io_error("create", &aside))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(io_error("write", &aside))?;
        failpoint!(JournalRewritten, io_error("write", &aside));
        fs::rename(&aside, &path).map_err(io_error("rename to", &path))?;
        failpoint!(JournalReplaced, io_error("rename to", &path));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))?;
        Ok(Self { path, file, length: bytes.len() as u64, lines: records.len(), poisoned: false })
    }

    /// Adds a record. A failed write is taken back, so that no later line follows half of this one.
    pub(super) fn append(&mut self, record: &Record, durability: Durability) -> Result<(), JournalError> {
        if self.poisoned {
            return Err(JournalError::Poisoned { path: self.path.clone() });
        }
        failpoint!(JournalAppending, io_error("append to", &self.path));
        let bytes = line(record);
        if let Err(error) = self.file.write_all(&bytes) {
            self.poisoned = self.take_back().is_err();
            return Err(io_error("append to", &self.path)(error));
        }
        failpoint!(JournalAppended, |error| {
            self.poisoned = true;
            io_error("sync", &self.path)(error)
        });
        if durability == Durability::Machine
            && let Err(error) = self.file.sync_data()
        {
            // After a failed sync nobody knows what is on disk.
            self.poisoned = true;
            return Err(io_error("sync", &self.path)(error));
        }
        failpoint!(JournalSynced, |error| {
            self.poisoned = true;
            io_error("sync", &self.path)(error)
        });
        self.length += bytes.len() as u64;
        self.lines += 1;
        Ok(())
    }

    /// A write failed and could not be taken back: only a new file helps.
    pub(super) const fn poisoned(&self) -> bool {
        self.poisoned
    }

    /// Records written since the file was made, those it was made with included.
    pub(super) const fn lines(&self) -> usize {
        self.lines
    }

    /// Writes to `target` from now on.
    #[cfg(test)]
    pub(super) fn divert(&mut self, target: &str) {
        self.file = OpenOptions::new().write(true).open(target).expect("opens");
    }

    fn take_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length)).map(drop)
    }
}

/// A checksum, a blank, the record, the end.
fn line(record: &Record) -> Vec<u8> {
    let json =
        serde_json::to_string(record).unwrap_or_else(|error| unreachable!("records are plain data: {error}"));
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).into_bytes()
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Recovered, JournalError> {
    let mut records = Vec::new();
    let mut intact_bytes = 0;
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(json) = intact(line) else { break };
        let record = serde_json::from_slice(json).map_err(|source| JournalError::Unknown {
            path: path.into(),
            line: index + 1,
            source,
        })?;
        records.push(record);
        intact_bytes += line.len();
    }
    let rest = &bytes[intact_bytes..];
    if holds_intact_line(rest) {
        return Err(JournalError::Damaged { path: path.into(), line: records.len() + 1 });
    }
    match records.first() {
        Some(Record::Journal { format: FORMAT }) => {
            records.remove(0);
            Ok(Recovered { records, cut_bytes: rest.len() })
        }
        None if bytes.is_empty() => Ok(Recovered::default()),
        _ => Err(JournalError::Format { path: path.into() }),
    }
}

/// Whether damage is followed by something that was acknowledged: a line may also be intact from its middle on, when it
/// is the end of the line before it that was damaged.
fn holds_intact_line(damaged: &[u8]) -> bool {
    damaged
        .split_inclusive(|byte| *byte == b'\n')
        .any(|line| (0..line.len()).any(|start| intact(&line[start..]).is_some()))
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

    use super::{Durability, FILE, Journal, JournalError, Record, parse};

    fn record(last: u8) -> Record {
        Record::Cooling { address: [10, 0, 0, last].into(), at: u64::from(last) }
    }

    fn written(dir: &std::path::Path) -> Vec<u8> {
        let mut journal = Journal::rewrite(dir, &[record(1)]).expect("writes");
        for last in 2..6 {
            journal.append(&record(last), Durability::Machine).expect("appends");
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
        for end in header..=bytes.len() {
            let recovered = parse(dir.path(), &bytes[..end]).expect("recovers");
            let complete = bytes[header..end].split_inclusive(|byte| *byte == b'\n');
            let complete = complete.filter(|line| line.ends_with(b"\n")).count();
            assert_eq!(recovered.records.len(), complete, "cut at {end}");
        }
        for end in 1..header {
            assert!(
                matches!(parse(dir.path(), &bytes[..end]), Err(JournalError::Format { .. })),
                "cut at {end}"
            );
        }
    }

    /// CNI-30: a flipped byte is either cut off with the end or refused, never believed.
    #[test]
    fn damage_at_every_byte() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let bytes = written(dir.path());
        let last_line =
            bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').expect("has lines") + 1;
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 0x15;
            match parse(dir.path(), &damaged) {
                Ok(recovered) => {
                    assert!(index >= last_line, "damage at {index} went unseen");
                    assert_eq!(recovered.records, (1..5).map(record).collect::<Vec<_>>());
                }
                Err(JournalError::Damaged { .. }) => assert!(index < last_line),
                Err(other) => panic!("damage at {index}: {other}"),
            }
        }
    }

    /// After a failed sync nobody knows what is on disk, so nothing is added to it.
    #[test]
    fn a_poisoned_file_takes_nothing_more() {
        let dir = tempfile::tempdir().expect("temporary directory");
        // One cannot be synced, the other neither written nor cut.
        for target in ["/dev/null", "/dev/full"] {
            let mut journal = Journal::rewrite(dir.path(), &[]).expect("writes");
            journal.divert(target);
            let failed = journal.append(&record(1), Durability::Machine).expect_err("fails");
            assert!(matches!(failed, JournalError::Io { .. }), "{target}: {failed}");
            assert!(journal.poisoned());
            let refused = journal.append(&record(2), Durability::Machine).expect_err("refuses");
            assert!(matches!(refused, JournalError::Poisoned { .. }), "{target}: {refused}");
        }
    }

    #[test]
    fn garbage_is_refused_with_the_file_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join(FILE), b"\0\0\0\0garbage\n").expect("writes");
        let error = Journal::recover(dir.path()).expect_err("refused");
        assert!(error.to_string().contains(FILE), "{error}");
    }
}
