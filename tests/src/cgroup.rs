//! Child cgroups of the unified hierarchy: the border up to which a node's socket hooks reach.
//!
//! Invariant: nothing is ever attached to or moved into the root cgroup.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

const PREFIX: &str = "quilla-sandbox-";

/// A cgroup of ours; dropping it kills its processes and removes it with all its children.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new one for a sandbox, under the machine's root. Those that killed supervisors left behind are removed first.
    pub fn of_sandbox() -> Result<Self> {
        let root = mount_point()?;
        remove_orphans(&root)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
        Self::create(&root.join(format!("{PREFIX}{}-{}", std::process::id(), now.as_nanos())))
    }

    /// A child.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(&self.path.join(name))
    }

    /// Creates it; its parent exists.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir(path).with_context(|| format!("create cgroup {}", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Reaches the children of dead parents too. An older kernel lacks the file, and the removal then complains.
        drop(fs::write(self.path.join("cgroup.kill"), "1"));
        if let Err(error) = remove(&self.path) {
            eprintln!("{error:#}");
        }
    }
}

/// Where the machine has mounted cgroup2; beside the old hierarchies on some.
fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    let cgroup2 = mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(fields[1]))
    });
    cgroup2.context("no cgroup2 is mounted")
}

/// An orphan has no process, and has had time to get its first one.
fn remove_orphans(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root).with_context(|| format!("list {}", root.display()))? {
        let entry = entry.context("list cgroups")?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Others may be cleaning up at the same time: what cannot be read has gone.
        let events = fs::read_to_string(entry.path().join("cgroup.events")).unwrap_or_default();
        let created = entry.metadata().and_then(|metadata| metadata.modified());
        let age = created.ok().and_then(|created| created.elapsed().ok()).unwrap_or_default();
        if events.contains("populated 0") && age > Duration::from_mins(1) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Children first, and with patience: a killed process leaves its cgroup a moment after it is reaped.
fn remove(path: &Path) -> Result<()> {
    let children = match fs::read_dir(path) {
        Ok(children) => children,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("list {}", path.display())),
    };
    for child in children {
        let child = child.context("list cgroups")?;
        if child.file_type().context("look at cgroup")?.is_dir() {
            remove(&child.path())?;
        }
    }
    let start = Instant::now();
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                let busy = error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error());
                ensure!(
                    busy && start.elapsed() < Duration::from_secs(5),
                    "remove cgroup {}: {error}",
                    path.display()
                );
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}
