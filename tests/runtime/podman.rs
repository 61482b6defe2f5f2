//! A Pod of podman with its CNI back end, which Debian 12's version still has.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::eventually;
use quilla_tests::require::{Need, skip};

use crate::image;
use crate::place::{NODE, Place};

/// The programs of one podman store.
struct Podman<'c> {
    cluster: &'c Cluster,
    place: Place,
}

impl<'c> Podman<'c> {
    fn set_up(cluster: &'c Cluster) -> Result<Self> {
        let podman = Self { cluster, place: Place::on(cluster)? };
        let Place { files, plugins, networks, .. } = &podman.place;
        let configuration = format!(
            r#"[network]
network_backend = "cni"
cni_plugin_dirs = ["{}"]
network_config_dir = "{}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
[containers]
pids_limit = 0
log_driver = "k8s-file"
"#,
            plugins.display(),
            networks.display(),
        );
        fs::write(files.join("containers.conf"), configuration).context("write the configuration")?;
        let archive = image::archive(files)?;
        podman.run(&["load", "--input", &archive.to_string_lossy()])?;
        Ok(podman)
    }

    /// What `podman` with these arguments prints.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        self.command(arguments).text()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let files = &self.place.files;
        let mut command = self.place.command(self.cluster, "podman");
        command.env("CONTAINERS_CONF", files.join("containers.conf"));
        for (option, folder) in [("--root", "root"), ("--runroot", "state"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(files.join(folder));
        }
        command.args(["--storage-driver", "vfs"]).args(arguments);
        command
    }
}

/// CNI-1, CNI-20: a Pod of two containers has one address and one set of ports; removing it leaves nothing.
pub(crate) fn two_containers_of_a_pod() -> Result<()> {
    let needs = [Need::Podman, Need::ReferencePlugins, Need::Busybox];
    if skip("podman::two_containers_of_a_pod", &needs) {
        return Ok(());
    }
    let cluster = Cluster::builder("podman").nodes(1).start()?;
    let podman = Podman::set_up(&cluster)?;
    let endpoints = || cluster.node(NODE).quilla(&["endpoints", "--output", "json"]);
    let before = endpoints()?;
    let backend = podman.run(&["info", "--format", "{{.Host.NetworkBackend}}"])?;
    ensure!(backend.trim() == "cni", "not the CNI back end: {backend}");

    // Sharing a cgroup would want controllers, which the machine may have given to the old hierarchies.
    let create = ["pod", "create", "--name", "pair", "--network", "quilla", "--share-parent=false"];
    podman.run(&[&create[..], &["--infra-image", image::NAME]].concat())?;
    let start = |name: &str, words: &[&str]| {
        podman.run(&[&["run", "--detach", "--pod", "pair", "--name", name, image::NAME], words].concat())
    };
    let httpd = ["httpd", "-f", "-p", "8080", "-h", "/www"];
    start("server", &httpd)?;
    start("other", &["sleep", "1000000"])?;
    let exec = |name: &str, words: &[&str]| podman.run(&[&["exec", name], words].concat());
    eventually::succeeds("the other container reaches the server by loopback", || {
        exec("other", &["wget", "-qO-", "http://127.0.0.1:8080/name"])
    })?;
    let show = ["ip", "-o", "addr", "show", "eth0"];
    let seen = exec("server", &show)?;
    ensure!(seen == exec("other", &show)?, "two addresses in one Pod");
    let taken = exec("other", &httpd).expect_err("the port is taken");
    ensure!(format!("{taken:#}").contains("in use"), "ports are not shared: {taken:#}");
    let address = seen.split_whitespace().find_map(|word| word.strip_suffix("/32")).context("address")?;
    ensure!(endpoints()?.contains(address), "the agent does not know {address}: {}", endpoints()?);

    // The data path lets the node in, as it lets a kubelet's probe.
    cluster.node(NODE).command("curl").args(["-sf", &format!("http://{address}:8080/name")]).text()?;
    podman.run(&["pod", "rm", "--force", "--time", "0", "pair"])?;
    ensure!(endpoints()? == before, "the agent still knows it: {}", endpoints()?);
    drop(podman);
    cluster.stop()
}
