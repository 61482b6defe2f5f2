//! `quilla install-cni` against a real agent: what the runtimes of this tier use comes from it too.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use quilla_tests::binary;
use quilla_tests::cluster::Cluster;
use quilla_tests::cni::{Attachment, Network};
use quilla_tests::command::Run;
use quilla_tests::netns::Netns;
use serde_json::{Value, json};

use crate::place::NODE;

/// `quilla install-cni` on the node, into folders below its files.
pub(crate) fn command(cluster: &Cluster, bin: &PathBuf, conf: &PathBuf) -> Result<Command> {
    let node = cluster.node(NODE);
    let mut command = node.command(&binary::path("quilla")?.to_string_lossy());
    command.arg("--socket").arg(node.files().join("run/admin.sock")).arg("install-cni");
    command.arg("--bin-dir").arg(bin).arg("--conf-dir").arg(conf);
    command.arg("--agent-socket").arg(node.files().join("run/cni.sock"));
    command.arg("--data-dir").arg(node.files().join("state/cni"));
    Ok(command)
}

/// CNI-31, CNI-32: nothing before the agent is ready; a Pod of the version before is checked and ended by the one after;
/// the plugin stays as long as a Pod needs it.
pub(crate) fn over_the_life_of_a_pod() -> Result<()> {
    let mut cluster = Cluster::builder("install").nodes(1).start()?;
    let folder = cluster.node(NODE).files().join("install");
    let (bin, conf) = (folder.join("bin"), folder.join("net.d"));
    cluster.node_mut(NODE).agent()?.kill()?;
    let early = command(&cluster, &bin, &conf)?.args(["--wait", "0"]).text().expect_err("no agent");
    ensure!(format!("{early:#}").contains("not ready") && !folder.exists(), "{early:#}");
    cluster.node_mut(NODE).start_agent()?;
    command(&cluster, &bin, &conf)?.text().context("install while the agent starts")?;

    let list = fs::read_to_string(conf.join("05-quilla.conflist")).context("read the network")?;
    let list: Value = serde_json::from_str(&list).context("parse the network")?;
    let network = Network::new(list, vec![bin.clone()]).on_host(cluster.node(NODE).netns().path());
    let netns = Netns::create("install-pod")?;
    let attachment = Attachment {
        container_id: "install-pod".to_owned(),
        netns: netns.path().to_owned(),
        pod: ["default", "pod", "uid"].map(str::to_owned),
        runtime_config: json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] }),
    };
    let result = network.add(&attachment)?;
    command(&cluster, &bin, &conf)?.text().context("install over it")?;
    network.check(&attachment, &result)?;

    let needed = command(&cluster, &bin, &conf)?.arg("--remove").text().expect_err("a Pod needs it");
    ensure!(format!("{needed:#}").contains("1 Pods need it"), "{needed:#}");
    ensure!(!conf.join("05-quilla.conflist").exists(), "new Pods would still come");
    network.del(&attachment, Some(&result))?;
    command(&cluster, &bin, &conf)?.arg("--remove").text()?;
    let left = fs::read_dir(&bin).context("list plugins")?.count();
    ensure!(left == 0, "{left} files are left");
    cluster.stop()
}
