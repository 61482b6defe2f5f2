//! Where a runtime runs: in a node's network and cgroup, with private mounts over everything it would write on the
//! machine, and with the node's network configuration and plugins in folders of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::{Daemon, Run};
use quilla_tests::eventually;
use quilla_tests::require::REFERENCE_PLUGINS;

use crate::install;

/// The node of the cluster that has a container runtime.
pub(crate) const NODE: &str = "node-a";

/// Hides what runtimes share with the machine's own: state of containers, locks, cgroups of other hierarchies. Of the
/// cgroups only those below the node's are left to see, and none has a controller that could refuse a limit.
const PRIVATE: &str = "mount -t tmpfs tmpfs /var/lib && mount -t tmpfs tmpfs /dev/shm && \
     mount -t tmpfs tmpfs /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && \
     touch \"$0\" && exec sleep infinity";

/// The files of one runtime on the node.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) files: PathBuf,
    pub(crate) plugins: PathBuf,
    pub(crate) networks: PathBuf,
    /// Keeps the mounts for programs that come and go.
    keeper: Daemon,
}

impl Place {
    /// Folders with what `quilla install-cni` puts there, and the reference plugin that containerd needs besides.
    pub(crate) fn on(cluster: &Cluster) -> Result<Self> {
        let node = cluster.node(NODE);
        let files = node.files().join("runtime");
        fs::create_dir_all(&files).with_context(|| format!("create {}", files.display()))?;
        let furnished = files.join("furnished");
        let mut command = node.command("unshare");
        command.args(["--mount", "--cgroup", "--", "sh", "-c", PRIVATE]).arg(&furnished);
        let mut keeper = Daemon::start("keeper of mounts", &mut command, &files.join("keeper.log"))?;
        let look = || {
            ensure!(furnished.exists(), "nothing is mounted");
            Ok(())
        };
        eventually::succeeds_while("mounts of the runtime", || keeper.check(), look)?;
        let (plugins, networks) = (files.join("plugins"), files.join("networks"));
        let place = Self { files, plugins, networks, keeper };
        for folder in [&place.plugins, &place.networks] {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        install::command(cluster, &place.plugins, &place.networks)?.text()?;
        let loopback = Path::new(REFERENCE_PLUGINS).join("loopback");
        symlink(&loopback, place.plugins.join("loopback")).context("link loopback")?;
        Ok(place)
    }

    /// A program with the runtime's view of the machine.
    pub(crate) fn command(&self, cluster: &Cluster, program: &str) -> Command {
        let mut command = cluster.node(NODE).command("nsenter");
        command.args(["--target", &self.keeper.id().to_string(), "--mount", "--cgroup", "--", program]);
        command.env("TMPDIR", &self.files);
        command
    }
}
