//! The BPF file system, where maps and links outlive the agent.
//!
//! Every mount is its own instance: pins made in a private mount namespace go with it. The directory is therefore the
//! caller's choice, and is only refused when it cannot hold pins at all.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{DatapathError, Result};

/// Where a node has it by convention.
pub const DEFAULT: &str = "/sys/fs/bpf";

/// Our directories in a BPF file system.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) maps: PathBuf,
    pub(crate) links: PathBuf,
}

impl Layout {
    /// Makes them in `bpffs`, if need be.
    pub(crate) fn create(bpffs: &Path) -> Result<Self> {
        if !is_mounted(bpffs)? {
            return Err(DatapathError::FileSystem { path: bpffs.to_owned(), filesystem: "bpf" });
        }
        let ours = bpffs.join("quilla");
        let layout = Self { maps: ours.join("maps"), links: ours.join("links") };
        for directory in [&layout.maps, &layout.links] {
            fs::create_dir_all(directory).map_err(|source| {
                DatapathError::kernel("make directory", directory.to_string_lossy(), source)
            })?;
        }
        Ok(layout)
    }
}

/// Whether `path` is on a BPF file system.
pub fn is_mounted(path: &Path) -> Result<bool> {
    file_system(path).map(|kind| kind == libc::BPF_FS_MAGIC as libc::__fsword_t)
}

/// Mounts one at `path`, which is made if need be, unless there is one already.
pub fn mount(path: &Path) -> Result<()> {
    let failed = |source| DatapathError::kernel("mount a bpf file system at", path.to_string_lossy(), source);
    fs::create_dir_all(path).map_err(failed)?;
    if is_mounted(path)? {
        return Ok(());
    }
    let target = CString::new(path.as_os_str().as_bytes()).map_err(|e| failed(e.into()))?;
    // SAFETY: all three are C strings that outlive the call; a bpf file system needs no data.
    let ret = unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) };
    if ret == 0 { Ok(()) } else { Err(failed(io::Error::last_os_error())) }
}

/// The magic number of the file system that `path` is on.
pub(crate) fn file_system(path: &Path) -> Result<libc::__fsword_t> {
    let failed = |source| DatapathError::kernel("inspect the file system of", path.to_string_lossy(), source);
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| failed(e.into()))?;
    // SAFETY: all zero bytes are a value of this struct of integers.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` is a C string and `stat` is valid for writes.
    let ret = unsafe { libc::statfs(name.as_ptr(), &raw mut stat) };
    if ret == 0 { Ok(stat.f_type) } else { Err(failed(io::Error::last_os_error())) }
}
