//! Where a runtime runs: in a node's network and cgroup, with private mounts over everything it would write on the
//! machine, and with the node's network configuration and plugins in folders of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use quilla_tests::binary;
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Daemon;
use quilla_tests::eventually;
use quilla_tests::require::REFERENCE_PLUGINS;
use serde_json::{Value, json};

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
    /// Folders with our plugin, the reference ones, and the node's network.
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
        let ours = binary::path("quilla-cni")?;
        let loopback = Path::new(REFERENCE_PLUGINS).join("loopback");
        for (name, target) in [("quilla-cni", ours), ("loopback", loopback)] {
            symlink(&target, place.plugins.join(name)).with_context(|| format!("link {name}"))?;
        }
        let list = fs::read_to_string(node.files().join("quilla.conflist")).context("read the network")?;
        let mut list: Value = serde_json::from_str(&list).context("parse the network")?;
        // Runtimes before CNI 1.1 read the first and not the second.
        list["cniVersion"] = json!("0.4.0");
        list["cniVersions"] = json!(["0.4.0", "1.0.0", "1.1.0"]);
        fs::write(place.networks.join("10-quilla.conflist"), list.to_string())
            .context("write the network")?;
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
