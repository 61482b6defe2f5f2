//! GC and STATUS.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Result, ensure};
use quilla_cni_protocol::{Attachment, Request, RequestEnvelope, Response, decode, encode};
use quilla_tests::command::Run;
use serde_json::json;

use crate::agent::{Agent, Behaviour, pools};
use crate::node::Node;

/// CNI-25, CNI-26: stale attachments of this network go, all others stay; an empty list means all.
pub(crate) fn keeps_what_the_runtime_knows() -> Result<()> {
    let node = Node::start("gc")?;
    let (keep, stale, foreign) = (node.pod("keep")?, node.pod("stale")?, node.pod("foreign")?);
    node.add(&keep)?;
    node.add(&stale)?;
    node.call("ADD", &foreign).with("name", "another").run()?.result()?;
    let gc = |valid: serde_json::Value| {
        node.call("GC", &keep).with("cni.dev/valid-attachments", valid).run()?.silence()
    };
    let links = || -> Result<usize> {
        Ok(node.host.command("ip").args(["-o", "link", "show", "type", "veth"]).text()?.lines().count())
    };
    ensure!(links()? == 3, "want three links");
    gc(json!([{ "containerID": keep.id, "ifname": "eth0" }]))?;
    ensure!(links()? == 2, "the stale attachment is still there, or more went");
    gc(json!([]))?;
    ensure!(links()? == 1, "the other network's attachment went, or ours stayed");
    Ok(())
}

/// CNI-27: the namespace of a stale attachment may be gone, and GC does what its DEL would have done.
pub(crate) fn namespaces_may_be_gone() -> Result<()> {
    let node = Node::start("gc-gone")?;
    let (keep, stale) = (node.pod("keep")?, node.pod("stale")?);
    node.add(&keep)?;
    let mapping = json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80 }] });
    node.call("ADD", &stale).with("runtimeConfig", mapping.clone()).run()?.result()?;
    drop(stale);
    let valid = json!([{ "containerID": keep.id, "ifname": "eth0" }]);
    node.call("GC", &keep).with("cni.dev/valid-attachments", valid).run()?.silence()?;
    let links = node.host.command("ip").args(["-o", "link", "show", "type", "veth"]).text()?;
    ensure!(links.lines().count() == 1, "{links}");
    // Its host port is free again.
    let next = node.pod("next")?;
    node.call("ADD", &next).with("runtimeConfig", mapping).run()?.result()?;
    Ok(())
}

/// CNI-26: GC waits for whoever works on an attachment, and leaves it as it is when that takes too long.
pub(crate) fn waits_for_its_turn() -> Result<()> {
    let node = Node::start("gc-turn")?;
    let stale = node.pod("stale")?;
    node.add(&stale)?;
    let mut worker = UnixStream::connect(node.files.path().join("cni.sock"))?;
    let attachment = Attachment { container_id: stale.id.clone(), ifname: "eth0".into() };
    worker.write_all(&encode(&RequestEnvelope::from(Request::Lock { attachment }))?)?;
    let mut line = String::new();
    BufReader::new(&worker).read_line(&mut line)?;
    ensure!(decode::<Response>(line.as_bytes())? == Response::Done, "{line}");
    let gc = node.call("GC", &stale).with("cni.dev/valid-attachments", json!([]));
    let links = || node.host.command("ip").args(["-o", "link", "show", "type", "veth"]).text();
    gc.clone().with("agentTimeoutSeconds", 1).run()?.error(100)?;
    ensure!(links()?.lines().count() == 1 && node.record_count()? == 0, "it did not wait");
    drop(worker);
    quilla_tests::eventually::succeeds("collect", || gc.run()?.silence())?;
    ensure!(links()?.is_empty(), "{}", links()?);
    Ok(())
}

/// CNI-9, CNI-25: no list is not an empty list; GC came with 1.1.0.
pub(crate) fn a_missing_list_is_an_error() -> Result<()> {
    let node = Node::start("gc-input")?;
    let pod = node.pod("pod")?;
    let gc = node.call("GC", &pod);
    gc.run()?.error(7)?;
    gc.clone().with("cni.dev/valid-attachments", json!([])).with("cniVersion", "1.0.0").run()?.error(1)?;
    gc.with_env("CNI_PATH", None).run()?.error(4)?;
    Ok(())
}

/// CNI-28: STATUS fails without an agent, without Pod CIDRs and without a free address; ADD does not depend on it.
pub(crate) fn status_follows_the_agent() -> Result<()> {
    let mut node = Node::without_agent("status")?;
    let pod = node.pod("pod")?;
    let status = node.call("STATUS", &pod);
    status.run()?.error(50)?;
    status.clone().with("cniVersion", "1.0.0").run()?.error(1)?;

    let agent = Agent::start(node.files.path(), None, node.recorder.clone())?;
    status.run()?.error(50)?;
    node.call("ADD", &pod).run()?.error(11)?;
    agent.set_pools(pools());
    quilla_tests::eventually::succeeds("status", || status.run()?.silence())?;
    node.agent = Some(agent);
    // Where the kernel cannot be programmed, the Pods that run may suffer, too.
    node.recorder.behave(Behaviour::Refuse);
    let limited = status.run()?.error(51)?;
    ensure!(limited["details"].to_string().contains("on purpose"), "{limited}");
    node.recorder.behave(Behaviour::NotReady);
    status.run()?.error(50)?;
    node.recorder.behave(Behaviour::Obey);
    node.add(&pod)?;
    Ok(())
}
