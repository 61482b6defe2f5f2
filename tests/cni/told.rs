//! What `quilla endpoints` says while Pods come, and of one whose plugin died at the last moment.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use quilla_cni_protocol::failpoint::Point;
use quilla_tests::command::Run;
use quilla_tests::eventually;
use serde_json::json;

use crate::site::{self, Site};

const PODS: usize = 20;

/// CNI-16, CNI-30: of Pods that come together each is told as far as it is, and nothing of them is called a leak.
pub(crate) fn pods_that_come_together() -> Result<()> {
    let site = Site::start("together")?;
    let pods =
        (0..PODS).map(|number| site::pod(&format!("together-{number}"))).collect::<Result<Vec<_>>>()?;
    let config = site.config();
    let plugins = pods.iter().map(|pod| site.spawn("ADD", pod, &config)).collect::<Result<Vec<_>>>()?;
    let states = || -> Result<Vec<String>> {
        let rows = site.endpoints()?;
        rows.iter().map(|row| Ok(row["state"].as_str().context("state")?.to_owned())).collect()
    };
    let mut seen = BTreeSet::new();
    eventually::becomes(
        "pods that are attached",
        || {
            let states = states()?;
            seen.extend(states.iter().cloned());
            Ok(states.iter().filter(|state| *state == "attached").count())
        },
        |attached| *attached == PODS,
    )?;
    for plugin in plugins {
        let output = plugin.wait_with_output().context("wait for the plugin")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    let truths = ["attached", "not programmed", "reserved"].map(str::to_owned);
    ensure!(seen.is_subset(&truths.into()), "told: {seen:?}");
    for pod in &pods {
        site.del(pod)?;
    }
    ensure!(states()?.is_empty(), "left: {:?}", states()?);
    site.cluster.stop()
}

/// CNI-15, CNI-20, CNI-25, CNI-30: a plugin that is killed with the answer in its socket leaves an endpoint, which the
/// runtime's DEL ends, or GC, or the look at devices once the runtime has thrown the namespace away.
pub(crate) fn a_plugin_killed_with_its_answer() -> Result<()> {
    let site = Site::start("answered")?;
    let witness = site::pod("answered-witness")?;
    let before = site.traces(&witness)?;
    for end in ["DEL", "GC", "none"] {
        let pod = site::pod(&format!("answered-{}", end.to_lowercase()))?;
        site.arm("kill", &[(Point::AddAttached, 0)])?;
        let died = site.call("ADD", &pod)?;
        ensure!(!died.success && died.stdout.is_empty(), "it was to die: {}", died.stdout);
        site.disarm()?;
        let rows = site.endpoints()?;
        ensure!(rows.len() == 1 && rows[0]["state"] == "attached", "{end}: {rows:?}");
        match end {
            "DEL" => site.del(&pod)?,
            "GC" => {
                let mut config = site.config();
                config["cni.dev/valid-attachments"] = json!([]);
                site.call_with("GC", &pod, &config)?.silence()?;
            }
            _ => {
                drop(pod.netns);
                let device = rows[0]["device"].as_str().context("device")?.to_owned();
                let show = || site.node().command("ip").args(["-o", "link", "show", "type", "veth"]).text();
                eventually::becomes("devices", show, |links| !links.contains(&device))?;
                let rows = site.endpoints()?;
                ensure!(rows.len() == 1 && rows[0]["state"] == "leak: no device", "{rows:?}");
                let mut config = site.config();
                config["cni.dev/valid-attachments"] = json!([]);
                site.call_with("GC", &witness, &config)?.silence()?;
            }
        }
        eventually::becomes("traces", || site.traces(&witness), |now| *now == before)?;
    }
    site.cluster.stop()
}
