//! How the journal gets on disk: by the kernel, or as a test wants it. Asked by `journal` when it makes a file and by
//! `durable` for every change. Invariant: what returned without an error survives a crash of the machine.

use std::fmt::Debug;
use std::fs::File;
use std::io;

/// The two waits of a durable change.
pub(super) trait Disk: Debug + Send + Sync {
    /// Until the file's content is on disk.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Until the names in a folder are.
    fn sync_names(&self, folder: &File) -> io::Result<()> {
        folder.sync_all()
    }
}

/// As it is.
#[derive(Debug)]
pub(super) struct Kernel;

impl Disk for Kernel {}
