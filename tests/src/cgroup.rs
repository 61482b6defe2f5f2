//! Child cgroups of the unified hierarchy: the border up to which a node's socket hooks reach.
//!
//! Invariant: nothing is ever attached to or moved into the root cgroup.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

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
        Self::create(&root.join(Supervisor::current()?.name()))
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

/// The process that a sandbox's cgroup belongs to. A number alone may be another program's by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Supervisor {
    process: u32,
    /// When it started, in ticks since the machine's start.
    start: u64,
}

impl Supervisor {
    fn current() -> Result<Self> {
        let process = std::process::id();
        let start = started(process)?.context("this program has no start")?;
        Ok(Self { process, start })
    }

    fn parse(name: &str) -> Option<Self> {
        let (process, start) = name.strip_prefix(PREFIX)?.split_once('.')?;
        Some(Self { process: process.parse().ok()?, start: start.parse().ok()? })
    }

    fn name(self) -> String {
        format!("{PREFIX}{}.{}", self.process, self.start)
    }

    fn lives(self) -> Result<bool> {
        Ok(started(self.process)? == Some(self.start))
    }
}

/// When a process started; none when there is no such process, or only its remains.
fn started(process: u32) -> Result<Option<u64>> {
    let path = format!("/proc/{process}/stat");
    let stat = match fs::read_to_string(&path) {
        Ok(stat) => stat,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // The process ended between opening and reading.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| format!("read {path}")),
    };
    // The second field is a name in parentheses, which may contain anything; the third is the state.
    let (_, fields) = stat.rsplit_once(") ").with_context(|| format!("parse {path}"))?;
    let fields: Vec<&str> = fields.split(' ').collect();
    if matches!(fields.first(), Some(&("Z" | "X"))) {
        return Ok(None);
    }
    let start = fields.get(19).with_context(|| format!("no start in {path}"))?;
    start.parse().map(Some).with_context(|| format!("parse {path}"))
}

/// An orphan has no process, and its supervisor, which its name tells, has ended.
fn remove_orphans(root: &Path) -> Result<()> {
    for entry in fs::read_dir(root).with_context(|| format!("list {}", root.display()))? {
        let entry = entry.context("list cgroups")?;
        let name = entry.file_name();
        let Some(supervisor) = name.to_str().and_then(Supervisor::parse) else { continue };
        // Others may be cleaning up at the same time: what cannot be read has gone.
        let events = fs::read_to_string(entry.path().join("cgroup.events")).unwrap_or_default();
        if events.contains("populated 0") && !supervisor.lives()? {
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::{Supervisor, started};

    #[test]
    fn a_supervisor_is_found_by_its_name_and_lives() {
        let own = Supervisor::current().unwrap();
        assert_eq!(Supervisor::parse(&own.name()), Some(own));
        assert!(own.lives().unwrap());
        for stranger in ["quilla-sandbox-", "quilla-sandbox-12", "quilla-sandbox-12.x", "system.slice"] {
            assert_eq!(Supervisor::parse(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn a_number_used_again_is_not_the_supervisor() {
        let mut later = Supervisor::current().unwrap();
        later.start += 1;
        assert!(!later.lives().unwrap());
    }

    #[test]
    fn the_dead_do_not_live() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = child.id();
        let start = started(process).unwrap().expect("cat waits for input");
        let supervisor = Supervisor { process, start };
        assert!(supervisor.lives().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!supervisor.lives().unwrap());
    }
}
