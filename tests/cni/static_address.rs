//! Addresses that a Pod asks for by its annotation, with the whole agent on a node of a cluster.

use anyhow::{Context, Result, ensure};
use quilla_tests::eventually;
use serde_json::{Value, json};

use crate::node::addresses;
use crate::site::{self, NODE, Site};

/// Where the agent's watch does not see a Pod, like one that the runtime heard of first.
const UNSEEN: &str = "another-node";

/// Creates a Pod with the annotation.
fn create(site: &Site, node: &str, name: &str, annotation: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "default", "annotations": { "quilla.dev/addresses": annotation },
        },
        "spec": {
            "nodeName": node,
            "containers": [{ "name": "server", "image": "quilla/pod", "ports": [{ "containerPort": 8080 }] }],
        },
    });
    site.cluster.apply(&object.to_string()).map(drop)
}

/// The address with this end in the node's Pod CIDR of a family.
fn address(site: &Site, ipv4: bool, end: &str) -> Result<String> {
    let node = site.cluster.get(&["node", NODE])?;
    let cidrs = node["spec"]["podCIDRs"].as_array().cloned().unwrap_or_default();
    let cidr = cidrs.iter().filter_map(Value::as_str).find(|cidr| cidr.contains('.') == ipv4);
    let (base, _) = cidr.and_then(|cidr| cidr.split_once('/')).with_context(|| format!("{cidrs:?}"))?;
    let base = if ipv4 { base.strip_suffix('0').context("it ends with 0")? } else { base };
    Ok(format!("{base}{end}"))
}

/// What the cluster is told of a Pod.
fn events(site: &Site, pod: &str) -> Result<Vec<String>> {
    let selector = format!("involvedObject.name={pod}");
    let list = site.cluster.get(&["events", "--field-selector", &selector])?;
    let items = list["items"].as_array().context("a list")?;
    let text = |event: &Value| format!("{}: {}", event["reason"], event["message"]);
    Ok(items.iter().map(text).collect())
}

/// CNI-33: a Pod gets the addresses that its annotation names, whether the watch or the runtime was first; where that
/// cannot be, an error and an Event, and never others.
pub(crate) fn by_annotation() -> Result<()> {
    let mut site = Site::start("static-address")?;
    let (ipv4, ipv6) = (address(&site, true, "77")?, address(&site, false, "77")?);
    create(&site, NODE, "static", &format!("{ipv6}, {ipv4}"))?;
    let told =
        site.cluster.wait_pod("static")?.addresses().iter().map(ToString::to_string).collect::<Vec<_>>();
    ensure!(told == [ipv4.clone(), ipv6], "{told:?}");

    let late = address(&site, true, "78")?;
    create(&site, UNSEEN, "late", &late)?;
    let (late_pod, plain) = (site::pod("late")?, site::pod("plain")?);
    let result = site.add(&late_pod)?;
    ensure!(addresses(&result)[0] == late && addresses(&result).len() == 2, "{result}");
    ensure!(site.add(&late_pod)? == result, "CNI-12: the second answer differs");
    site.add(&plain).context("a pod that the cluster does not know")?;

    let known = site.endpoints()?.len();
    for (name, wish, complaint) in [
        ("thief", ipv4.as_str(), "default/static"),
        ("stranger", "192.0.2.1", "192.0.2.1 is no usable address"),
        ("gateway", &address(&site, true, "1")?, "no usable address"),
        ("nonsense", "10.1.0", "quilla.dev/addresses of pod default/nonsense"),
        ("twice", &format!("{late},{ipv4}"), "one of each"),
    ] {
        create(&site, UNSEEN, name, wish)?;
        let pod = site::pod(name)?;
        let error = site.call("ADD", &pod)?.error(101)?;
        ensure!(error["details"].to_string().contains(complaint), "{name}: {error}");
        site.del(&pod)?;
    }
    ensure!(site.endpoints()?.len() == known, "{:?}", site.endpoints()?);
    eventually::succeeds("the thief's owner is told", || {
        let events = events(&site, "thief")?;
        ensure!(
            events.iter().any(|event| event.contains("AddressRefused") && event.contains(&ipv4)),
            "{events:?}"
        );
        Ok(())
    })?;

    // What nobody can say now is waited for.
    site.cluster.controller()?.kill()?;
    site.call("ADD", &site::pod("unknown")?)?.error(11)?;
    site.del(&late_pod)?;
    site.del(&plain)?;
    site.cluster.start_controller()?;
    site.cluster.stop()
}
