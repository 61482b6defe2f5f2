//! Where the contenders keep what must survive a reboot: on the disk that the build is on. All else of a sandbox is in
//! memory, where a sync costs nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quilla_tests::binary;
use rustix::mount::mount_bind;

/// A folder on the disk; removed when dropped.
#[derive(Debug)]
pub(super) struct Disk(PathBuf);

impl Disk {
    pub(super) fn create() -> Result<Self> {
        let target = binary::folder()?;
        let folder = target.parent().unwrap_or(&target).join("tmp/bench-cni");
        if folder.exists() {
            // Of one that was killed.
            fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(Self(folder))
    }

    /// A folder of its own for somebody.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.0.join(name);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        Ok(folder)
    }

    /// The same, seen at a path of the sandbox.
    pub(super) fn mount(&self, name: &str, at: &Path) -> Result<()> {
        let folder = self.folder(name)?;
        mount_bind(&folder, at).with_context(|| format!("mount {} at {}", folder.display(), at.display()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}
