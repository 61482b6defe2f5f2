//! By what programs are attached, where another plugin of the chain wants the same place at the host side. The agent is a
//! whole one.

use std::fs;

use anyhow::{Context, Result, ensure};
use quilla_tests::cni::{Attachment, Network};
use quilla_tests::command::Run;
use quilla_tests::require::{Need, REFERENCE_PLUGINS, skip};
use quilla_tests::{binary, eventually};
use serde_json::{Value, json};

use crate::node::Pod;
use crate::site::{self, NODE, Site};

/// A list of these plugins on the node.
fn network(site: &Site, plugins: &Value) -> Result<Network> {
    let list = json!({ "cniVersion": "1.0.0", "name": "quilla", "plugins": plugins });
    let folders = vec![binary::folder()?, REFERENCE_PLUGINS.into()];
    Ok(Network::new(list, folders).on_host(site.node().netns().path()))
}

/// What wants an `ingress` queueing discipline at the host side. It limits nothing there: ours decide before it.
fn bandwidth() -> Value {
    json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } })
}

fn attachment(pod: &Pod) -> Attachment {
    Attachment {
        container_id: pod.id.clone(),
        netns: pod.netns.path().to_owned(),
        pod: ["default".to_owned(), pod.id.clone(), "uid".to_owned()],
        runtime_config: json!({ "bandwidth": { "egressRate": 8_000_000, "egressBurst": 800_000 } }),
    }
}

/// Fails unless the device has our links, the other's discipline, and no filter of ours.
fn require_links(site: &Site, device: &str) -> Result<()> {
    for program in ["from_pod", "to_pod"] {
        let pin = site.node().bpffs().join("quilla/links").join(format!("{program}-{device}"));
        ensure!(pin.exists(), "no {}", pin.display());
    }
    let tc = |words: &[&str]| site.node().command("tc").args(words).args(["dev", device]).text();
    let disciplines = tc(&["qdisc", "show"])?;
    ensure!(disciplines.contains("ingress") && !disciplines.contains("clsact"), "{disciplines}");
    let filters = tc(&["filter", "show", "ingress"])?;
    ensure!(filters.contains("u32") && !filters.contains("from_pod"), "{filters}");
    Ok(())
}

fn nothing_left(site: &Site, pod: &Pod, before: &str) -> Result<()> {
    eventually::becomes("traces", || site.traces(pod), |now| now == before)?;
    let devices = site.node().command("ip").args(["-o", "link", "show", "type", "ifb"]).text()?;
    ensure!(devices.is_empty(), "left: {devices}");
    Ok(())
}

/// CNI-13: `bandwidth` behind ours gets its place if the network's configuration says so, and keeps it from an agent that
/// is started anew; otherwise the ADD fails and leaves nothing. About places only: what the place is good for is not seen.
pub(crate) fn bandwidth_behind_ours() -> Result<()> {
    if skip("mechanism::bandwidth_behind_ours", &[Need::ReferencePlugins]) {
        return Ok(());
    }
    let mut site = Site::start("behind-ours")?;
    let pod = site::pod("behind-ours")?;
    let before = site.traces(&pod)?;
    let mut ours = site.config();
    let refused = network(&site, &json!([ours, bandwidth()]))?.add(&attachment(&pod));
    let refused = format!("{:#}", refused.expect_err("clsact has the place"));
    ensure!(refused.contains("file exists"), "another reason: {refused}");
    nothing_left(&site, &pod, &before)?;

    ours["programs"] = json!("tcx");
    let network = network(&site, &json!([ours, bandwidth()]))?;
    let attachment = attachment(&pod);
    let result = network.add(&attachment)?;
    network.check(&attachment, &result)?;
    let device = result["interfaces"][0]["name"].as_str().context("host interface")?;
    require_links(&site, device)?;

    site.kill_agent()?;
    site.start_agent()?;
    site.cluster.node_mut(NODE).wait_ready()?;
    require_links(&site, device)?;
    network.check(&attachment, &result)?;
    network.del(&attachment, Some(&result))?;
    nothing_left(&site, &pod, &before)?;
    site.cluster.stop()
}

/// CNI-13, CNI-30: what a network says of its programs is remembered with its Pods, by an agent that would do otherwise and
/// that nothing at the device reminds.
pub(crate) fn what_the_network_says_outlives_the_agent() -> Result<()> {
    let mut site = Site::start("programs-kept")?;
    let pod = site::pod("programs-kept")?;
    let before = site.traces(&pod)?;
    let mut ours = site.config();
    ours["programs"] = json!("tcx");
    let network = network(&site, &json!([ours]))?;
    let attachment = Attachment { runtime_config: Value::Null, ..attachment(&pod) };
    let result = network.add(&attachment)?;
    let device = result["interfaces"][0]["name"].as_str().context("host interface")?;
    let by_links = |site: &Site| -> Result<()> {
        let links = site.node().bpffs().join("quilla/links");
        for program in ["from_pod", "to_pod"] {
            let pin = links.join(format!("{program}-{device}"));
            ensure!(pin.exists(), "no {}", pin.display());
        }
        let disciplines = site.node().command("tc").args(["qdisc", "show", "dev", device]).text()?;
        ensure!(!disciplines.contains("clsact"), "{disciplines}");
        Ok(())
    };
    by_links(&site)?;
    site.kill_agent()?;
    site.start_agent()?;
    site.cluster.node_mut(NODE).wait_ready()?;
    by_links(&site)?;
    network.check(&attachment, &result)?;
    network.del(&attachment, Some(&result))?;
    nothing_left(&site, &pod, &before)?;
    site.cluster.stop()
}

/// CNI-11, CNI-13: behind a main plugin and one that shapes, ours finds the place taken and does without it.
pub(crate) fn ours_behind_bandwidth() -> Result<()> {
    if skip("mechanism::ours_behind_bandwidth", &[Need::ReferencePlugins]) {
        return Ok(());
    }
    let site = Site::start("behind-them")?;
    let pod = site::pod("behind-them")?;
    let before = site.traces(&pod)?;
    let folder = site.node().files().join("host-local");
    fs::create_dir(&folder).context("make a folder")?;
    let ipam = json!({
        "type": "host-local", "dataDir": folder, "ranges": [[{ "subnet": "10.80.0.0/24" }]],
        "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let network = network(&site, &json!([{ "type": "ptp", "ipam": ipam }, bandwidth(), site.config()]))?;
    let attachment = attachment(&pod);
    let result = network.add(&attachment)?;
    network.check(&attachment, &result)?;
    let rows = site.endpoints()?;
    let device = rows[0]["device"].as_str().context("its device")?.to_owned();
    ensure!(rows[0]["state"] == "attached", "{rows:?}");
    require_links(&site, &device)?;
    network.del(&attachment, Some(&result))?;
    nothing_left(&site, &pod, &before)?;
    site.cluster.stop()
}
