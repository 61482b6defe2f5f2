//! A state directory on a disk of a few pages that is full, or cannot be written: DEL succeeds, ADD waits, nothing is
//! given twice, and nothing is lost once there is room (CNI-3, CNI-18, CNI-28, CNI-30).

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use quilla_tests::eventually;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::node::{Node, addresses};

/// Eight pages.
const SIZE: &core::ffi::CStr = c"size=32k";

/// A node whose agent has a file system of its own, with the address that its first Pod has.
struct Full {
    node: Node,
    state: PathBuf,
}

impl Full {
    fn start(name: &'static str) -> Result<Self> {
        let mut node = Node::without_agent(name)?;
        let state = node.files.path().join("state");
        fs::create_dir(&state).context("make the state directory")?;
        mount("quilla", &state, "tmpfs", MountFlags::empty(), SIZE).context("mount")?;
        node.start_agent()?;
        Ok(Self { node, state })
    }

    /// Refused while a file is open for writing: by a child, too, that another test has forked and not yet executed.
    fn remount(&self, flags: MountFlags) -> Result<()> {
        eventually::succeeds("remount", || mount_remount(&self.state, flags, SIZE).context("remount"))
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        self.node.kill_agent();
        if let Err(error) = unmount(&self.state, UnmountFlags::DETACH) {
            eprintln!("unmount {}: {error}", self.state.display());
        }
    }
}

/// No room for another line.
pub(crate) fn full() -> Result<()> {
    let mut full = Full::start("disk-full")?;
    let (pod, other) = (full.node.pod("pod")?, full.node.pod("other")?);
    let before = full.node.state(&pod)?;
    let first = full.node.add(&pod)?;
    let ballast = full.state.join("ballast");
    // Until there is no room; what was written of it stays.
    ensure!(fs::write(&ballast, vec![1; 1 << 20]).is_err(), "the disk has room");
    // The journal's last page has room for some lines more.
    let refused = || -> Result<()> { full.node.add(&other).and(full.node.del(&other)) };
    eventually::becomes("a refusal", || Ok(refused().is_err()), |refused| *refused)?;
    full.node.call("ADD", &other).run()?.error(11)?;
    full.node.call("STATUS", &other).run()?.error(50)?;
    for pod in [&other, &pod] {
        full.node.del(pod)?;
    }
    ensure!(full.node.state(&pod)? == before, "something remains");
    ensure!(full.node.record_count()? == 0, "a record although the agent was there");

    fs::remove_file(&ballast).context("make room")?;
    eventually::succeeds("status", || full.node.call("STATUS", &other).run()?.silence())?;
    let second = full.node.add(&other)?;
    ensure!(addresses(&second)[0] != addresses(&first)[0], "given twice in a row: {second}");
    full.node.kill_agent();
    full.node.start_agent()?;
    let known = full.node.agent.as_ref().map(|agent| agent.known_at_start.len());
    ensure!(known == Some(1), "{known:?} endpoints");
    full.node.del(&other)
}

/// A disk that turned read-only, before and after the agent's start.
pub(crate) fn read_only() -> Result<()> {
    let mut disk = Full::start("disk-read-only")?;
    let (pod, other) = (disk.node.pod("pod")?, disk.node.pod("other")?);
    let first = disk.node.add(&pod)?;
    for restarted in [false, true] {
        // An open journal keeps its file system writable.
        disk.node.kill_agent();
        let flags = if restarted { MountFlags::RDONLY } else { MountFlags::empty() };
        disk.remount(flags)?;
        disk.node.start_agent()?;
        ensure!(disk.node.add(&pod)? == first, "the journal is not read");
    }
    disk.node.call("ADD", &other).run()?.error(11)?;
    disk.node.call("STATUS", &other).run()?.error(50)?;
    disk.node.del(&pod)?;
    disk.remount(MountFlags::empty())?;
    eventually::succeeds("status", || disk.node.call("STATUS", &other).run()?.silence())?;
    let second = disk.node.add(&other)?;
    ensure!(addresses(&second)[0] != addresses(&first)[0], "given twice in a row: {second}");
    disk.node.del(&other)
}
