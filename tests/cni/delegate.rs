//! CNI-17: addresses from another IPAM plugin, the reference one and one that records how it is called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use quilla_tests::require::{Need, REFERENCE_PLUGINS, skip};
use serde_json::{Value, json};

use crate::agent::Behaviour;
use crate::node::{Call, Node, Pod, addresses};

/// Answers like the file `answer` beside it, after recording verb, container and whether the configuration is complete.
const RECORDER: &str = r#"#!/bin/sh
here=$(dirname "$0")
stdin=$(cat)
case "$stdin" in *'"name":"quilla"'*'"key":"kept"'*|*'"key":"kept"'*'"name":"quilla"'*) whole=whole;; *) whole=part;; esac
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $whole" >> "$here/calls"
echo "words of the delegate" >&2
if [ -f "$here/fail.$CNI_COMMAND" ]; then cat "$here/fail.$CNI_COMMAND"; exit 1; fi
if [ "$CNI_COMMAND" = ADD ]; then cat "$here/answer"; fi
"#;

/// Calls with `host-local` as the IPAM plugin.
fn host_local(node: &Node, verb: &str, pod: &Pod) -> Call {
    let call = node.call(verb, pod).with_env("CNI_PATH", Some(REFERENCE_PLUGINS));
    let ipam = json!({
        "type": "host-local", "dataDir": node.files.path().join("addresses"),
        "ranges": [[{ "subnet": "10.77.0.0/24" }], [{ "subnet": "fd00:77::/64" }]],
    });
    call.with("cniVersion", "1.0.0").with("ipam", ipam)
}

/// The addresses that `host-local` has on its books.
fn held(node: &Node) -> Result<Vec<String>> {
    let entries = match fs::read_dir(node.files.path().join("addresses/quilla")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("list addresses")?,
    };
    let names = entries.map(|entry| Ok(entry.context("list addresses")?.file_name().into_string().ok()));
    let names: Vec<Option<String>> = names.collect::<Result<_>>()?;
    Ok(names.into_iter().flatten().filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect())
}

/// Both families from `host-local`; wired, checked and freed like our own.
pub(crate) fn host_local_gives_and_takes() -> Result<()> {
    if skip("delegate::host_local_gives_and_takes", &[Need::ReferencePlugins]) {
        return Ok(());
    }
    let node = Node::start("host-local")?;
    let pod = node.pod("pod")?;
    let before = node.state(&pod)?;
    let result = host_local(&node, "ADD", &pod).run()?.result()?;
    ensure!(addresses(&result) == ["10.77.0.2", "fd00:77::2"], "{result}");
    ensure!(result["ips"][0]["gateway"] == "10.77.0.1" && result["ips"][0]["interface"] == 1, "{result}");
    pod.netns.ip("route get 192.0.2.1")?;

    // CNI-12: once more is the same, and not another address.
    ensure!(host_local(&node, "ADD", &pod).run()?.result()? == result, "the second answer differs");
    ensure!(held(&node)?.len() == 2, "{:?}", held(&node)?);
    let check = host_local(&node, "CHECK", &pod).with("prevResult", result.clone());
    check.run()?.silence()?;
    // CNI-24: the delegate is asked too.
    for address in held(&node)? {
        fs::remove_file(node.files.path().join("addresses/quilla").join(address))
            .context("lose the address")?;
    }
    ensure!(!check.run()?.success, "CHECK did not ask the delegate");

    host_local(&node, "DEL", &pod).run()?.silence()?;
    host_local(&node, "DEL", &pod).run()?.silence()?;
    ensure!(node.state(&pod)? == before && held(&node)?.is_empty(), "something remains: {:?}", held(&node)?);
    Ok(())
}

/// CNI-15, CNI-17: whatever fails after the delegate's ADD, its address goes back.
pub(crate) fn host_local_is_undone() -> Result<()> {
    if skip("delegate::host_local_is_undone", &[Need::ReferencePlugins]) {
        return Ok(());
    }
    let mut node = Node::start("undone")?;
    let pod = node.pod("pod")?;
    let before = node.state(&pod)?;
    let add = host_local(&node, "ADD", &pod);
    node.recorder.behave(Behaviour::Refuse);
    add.run()?.error(101)?;
    ensure!(node.state(&pod)? == before && held(&node)?.is_empty(), "the agent refused: {:?}", held(&node)?);
    node.recorder.behave(Behaviour::Obey);

    pod.netns.ip("link add eth0 type veth peer name other")?;
    add.run()?.error(100)?;
    ensure!(held(&node)?.is_empty(), "the interface exists: {:?}", held(&node)?);
    pod.netns.ip("link del eth0")?;

    node.kill_agent();
    add.run()?.error(11)?;
    ensure!(held(&node)?.is_empty(), "no agent: {:?}", held(&node)?);
    node.start_agent()?;
    ensure!(add.run()?.success, "no recovery");

    // CNI-18: without the agent the delegate still gets its DEL.
    node.kill_agent();
    host_local(&node, "DEL", &pod).run()?.silence()?;
    ensure!(held(&node)?.is_empty() && node.record_count()? == 1, "{:?}", held(&node)?);
    Ok(())
}

/// A folder with the recording plugin.
fn recording(node: &Node, answer: &Value) -> Result<PathBuf> {
    let folder = node.files.path().join("plugins");
    fs::create_dir_all(&folder).context("make folder")?;
    fs::write(folder.join("recorder"), RECORDER).context("write plugin")?;
    fs::set_permissions(folder.join("recorder"), fs::Permissions::from_mode(0o755)).context("chmod")?;
    fs::write(folder.join("answer"), answer.to_string()).context("write answer")?;
    Ok(folder)
}

/// CNI-17, CNI-24, CNI-26, CNI-28: every verb arrives with the complete configuration, and complaints come back with
/// their codes.
pub(crate) fn every_verb_is_passed_on() -> Result<()> {
    let node = Node::start("verbs")?;
    let (pod, stale) = (node.pod("pod")?, node.pod("stale")?);
    let folder =
        recording(&node, &json!({ "ips": [{ "address": "10.76.0.2/24" }], "dns": { "domain": "d" } }))?;
    let call = |verb: &str, pod: &Pod| {
        let call = node.call(verb, pod).with_env("CNI_PATH", folder.to_str());
        call.with("ipam", json!({ "type": "recorder", "key": "kept" }))
    };
    let result = call("ADD", &pod).run()?.result()?;
    ensure!(result["dns"]["domain"] == "d" && result["ips"][0]["gateway"] == "10.76.0.1", "{result}");
    call("CHECK", &pod).with("prevResult", result).run()?.silence()?;
    let status = call("STATUS", &pod).run()?;
    status.silence()?;
    ensure!(status.stderr.contains("words of the delegate"), "its log is lost: {status:?}");
    call("DEL", &pod).run()?.silence()?;
    call("ADD", &stale).run()?.result()?;
    call("GC", &pod).with("cni.dev/valid-attachments", json!([])).run()?.silence()?;
    let of = |verb: &str, pod: &Pod| format!("{verb} {} eth0 whole", pod.id);
    let want = [
        of("ADD", &pod),
        of("CHECK", &pod),
        of("STATUS", &pod),
        of("DEL", &pod),
        of("ADD", &stale),
        of("DEL", &stale),
        of("GC", &pod),
    ];
    let calls = fs::read_to_string(folder.join("calls")).context("read calls")?;
    ensure!(calls.lines().eq(want.iter()), "{calls}");

    let complain = |verb: &str, code: u64| {
        let complaint = json!({ "code": code, "msg": "on purpose", "details": "here" });
        fs::write(folder.join(format!("fail.{verb}")), complaint.to_string()).context("write complaint")
    };
    for (verb, theirs, ours) in [("STATUS", 51, 51), ("STATUS", 7, 50), ("ADD", 11, 11)] {
        complain(verb, theirs)?;
        let error = call(verb, &pod).run()?.error(ours)?;
        ensure!(error["msg"].to_string().contains("on purpose"), "{error}");
    }
    complain("GC", 5)?;
    call("GC", &pod).with("cni.dev/valid-attachments", json!([])).run()?.error(100)?;
    Ok(())
}

/// CNI-17: an answer that is of no use is undone, and a plugin that is not there is named.
pub(crate) fn useless_answers() -> Result<()> {
    let node = Node::start("useless")?;
    let pod = node.pod("pod")?;
    for answer in [
        json!({}),
        json!({ "ips": [] }),
        json!({ "ips": [{ "address": "10.76.0.2/32" }] }),
        json!({ "ips": [{ "address": "10.76.0.2/24" }, { "address": "10.76.0.3/24" }] }),
        json!("nonsense"),
    ] {
        let folder = recording(&node, &answer)?;
        let call = node.call("ADD", &pod).with_env("CNI_PATH", folder.to_str());
        call.with("ipam", json!({ "type": "recorder" })).run()?.error(6)?;
        let calls = fs::read_to_string(folder.join("calls")).context("read calls")?;
        ensure!(calls.lines().last().is_some_and(|line| line.starts_with("DEL")), "{answer}: {calls}");
    }
    let absent = node.call("ADD", &pod).with("ipam", json!({ "type": "absent" })).run()?.error(7)?;
    ensure!(absent["details"].to_string().contains("absent"), "{absent}");
    ensure!(node.recorder.calls().is_empty(), "the data path was asked");
    Ok(())
}
