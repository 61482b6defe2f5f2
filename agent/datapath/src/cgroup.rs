//! Finding the cgroup2 hierarchy, and telling one group from another.
//!
//! Where the socket programs are attached is the operator's decision: this module offers the root's path and attaches
//! nothing.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::bpffs;
use crate::error::{DatapathError, Result};

/// The root of the cgroup2 hierarchy: its own mount on most nodes, a subdirectory where v1 controllers are mounted too.
pub fn root() -> Result<PathBuf> {
    const MOUNTS: &str = "/proc/self/mounts";
    let mounts =
        fs::read_to_string(MOUNTS).map_err(|source| DatapathError::kernel("read", MOUNTS, source))?;
    mount_point(&mounts)
        .ok_or_else(|| DatapathError::kernel("find", "a cgroup2 mount", io::ErrorKind::NotFound.into()))
}

fn mount_point(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// A group, open, and the id that links to it report.
#[derive(Debug)]
pub(crate) struct Cgroup {
    pub(crate) directory: File,
    pub(crate) id: u64,
}

impl Cgroup {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if bpffs::file_system(path)? != libc::CGROUP2_SUPER_MAGIC as libc::__fsword_t {
            return Err(DatapathError::FileSystem { path: path.to_owned(), filesystem: "cgroup2" });
        }
        let failed = |source| DatapathError::kernel("open", path.to_string_lossy(), source);
        let directory = File::open(path).map_err(failed)?;
        // The id of a group is the inode number of its directory.
        let id = directory.metadata().map_err(failed)?.ino();
        Ok(Self { directory, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_hierarchy_is_found_beside_the_first() {
        let hybrid = "cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(mount_point(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_point("tmpfs /tmp tmpfs rw 0 0\n"), None);
    }
}
