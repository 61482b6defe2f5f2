//! The settings of ip-masq-agent, followed while packets flow.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use quilla_tests::ask::{By, ask};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Daemon;
use quilla_tests::pod::Pod;
use quilla_tests::topology::OUTSIDE;
use quilla_tests::{binary, eventually};
use serde_json::Value;

use super::{PORT, load, prepare, teach_the_fabric};
use crate::restart;

/// What is in `nonMasqueradeCIDRs` sees the Pod's own address, from the moment it is there until it is not; a file that is
/// wrong changes nothing and is told; `--masquerade false` is for networks that know every Pod, and breaks no connection.
/// Whoever is outside and knows the way reaches a Pod under its own address, masquerade or not.
pub(crate) fn exceptions_are_followed() -> Result<()> {
    let mut cluster = prepare("masquerade", 1)?;
    let file = cluster.files().join("ip-masq-agent");
    let path = file.to_string_lossy().into_owned();
    cluster.node_mut("node-a").start_agent_with(&["--masquerade-config", &path])?;
    cluster.node_mut("node-a").wait_ready()?;
    let node = cluster.node("node-a").addresses();
    teach_the_fabric(&cluster, &[("node-a", node)])?;
    let pod = cluster.pod("node-a", "pod").start()?;
    let server = serve_outside(&cluster)?;
    let own = [false, true].map(|v6| pod.address(v6));
    seen_as(&pod, node)?;
    fs::write(&file, format!("nonMasqueradeCIDRs: [{}/32, '2001:db8:113::/64']\n", OUTSIDE[0]))?;
    seen_as(&pod, own)?;
    for v6 in [false, true] {
        let target = SocketAddr::new(pod.address(v6), PORT);
        for by in By::ALL {
            let answers = ask(|program| cluster.outside().command(program), target, by, 1)?;
            ensure!(answers[0].server == "pod", "{answers:?}");
        }
    }
    fs::write(&file, "nonMasqueradeCIDRs: [203.0.113.2/24]\n")?;
    eventually::succeeds("the wrong range is told", || {
        let problems = cluster.node("node-a").quilla(&["problems"])?;
        ensure!(problems.contains("203.0.113.0/24?"), "{problems}");
        Ok(())
    })?;
    seen_as(&pod, own)?;
    fs::write(&file, "{}")?;
    seen_as(&pod, node)?;
    for v6 in [false, true] {
        let target = SocketAddr::new(pod.address(v6), PORT);
        for by in By::ALL {
            let answers = ask(|program| cluster.outside().command(program), target, by, 1)?;
            ensure!(answers[0].server == "pod", "begun outside: {answers:?}");
        }
    }
    let targets = OUTSIDE.map(|outside| outside.parse().map(|address| SocketAddr::new(address, PORT)));
    let long = load(pod.command("env"), &targets.into_iter().collect::<Result<Vec<_>, _>>()?)?;
    eventually::becomes("long flows have the node's name", || masqueraded(&cluster), |flows| *flows >= 50)?;
    cluster.node_mut("node-a").start_agent_with(&["--masquerade", "false"])?;
    cluster.node_mut("node-a").wait_ready()?;
    seen_as(&pod, own)?;
    println!("masquerading switched off: {}", restart::finish(long)?);
    drop(server);
    cluster.stop()
}

/// Established flows that left under the node's address.
fn masqueraded(cluster: &Cluster) -> Result<usize> {
    let flows = cluster.node("node-a").quilla(&["-o", "json", "flows", "--state", "established"])?;
    let flows: Vec<Value> = serde_json::from_str(&flows)?;
    Ok(flows.iter().filter(|flow| flow["action"] == "uplink").count())
}

fn serve_outside(cluster: &Cluster) -> Result<Daemon> {
    let program = binary::path("quilla-pod")?;
    let mut server = cluster.outside().command(&program.to_string_lossy());
    let log = cluster.files().join("outside.log");
    Daemon::start("outside", server.args(["--name", "outside", "--port", &PORT.to_string()]), &log)
}

/// Whom a server outside sees, by every protocol and in both families.
fn seen_as(pod: &Pod, expected: [std::net::IpAddr; 2]) -> Result<()> {
    for (outside, caller) in OUTSIDE.iter().zip(expected) {
        let target = SocketAddr::new(outside.parse()?, PORT);
        for by in By::ALL {
            eventually::succeeds("the server sees the right caller", || {
                let answers = ask(|program| pod.command(program), target, by, 1)?;
                ensure!(answers[0].caller == caller, "{by:?}: {answers:?} instead of {caller}");
                Ok(())
            })?;
        }
    }
    Ok(())
}
