//! DEL succeeds, whatever is missing (CNI-18), and nothing it should undo is forgotten (CNI-20).

use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};
use quilla_tests::eventually;

use crate::agent::Call;
use crate::node::{Node, addresses};

/// CNI-18, CNI-21: before any ADD, after one, and again.
pub(crate) fn any_number_of_times() -> Result<()> {
    let node = Node::start("del-twice")?;
    let pod = node.pod("pod")?;
    node.del(&pod)?;
    node.add(&pod)?;
    for _ in 0..3 {
        node.del(&pod)?;
    }
    let detaches = node.recorder.calls().iter().filter(|call| matches!(call, Call::Detach(_))).count();
    ensure!(detaches == 1, "{detaches} detaches");
    Ok(())
}

/// CNI-18: the namespace file is gone, or was never named.
pub(crate) fn with_the_namespace_gone() -> Result<()> {
    let node = Node::start("del-gone")?;
    for netns in [Some("/run/netns/no-such-namespace"), Some(""), None] {
        let pod = node.pod("pod")?;
        node.add(&pod)?;
        let del = node.call("DEL", &pod).with_env("CNI_NETNS", netns);
        drop(pod);
        del.run()?.silence()?;
        let links = crate::node::network_state(&node.host)?;
        ensure!(!links.contains("quil"), "{links}");
    }
    Ok(())
}

/// CNI-18, CNI-20: the release is recorded, and carried out once the agent is back.
pub(crate) fn with_the_agent_dead() -> Result<()> {
    let mut node = Node::start("del-dead")?;
    let (pod, other) = (node.pod("pod")?, node.pod("other")?);
    let before = node.state(&pod)?;
    node.add(&pod)?;
    node.kill_agent();
    for _ in 0..2 {
        node.del(&pod)?;
        ensure!(node.record_count()? == 1, "want one record");
    }
    ensure!(node.state(&pod)? == before, "something remains");

    node.start_agent()?;
    let known = node.agent.as_ref().map_or(0, |agent| agent.known_at_start.len());
    ensure!(known == 1, "the journal forgot the endpoint");
    eventually::becomes("records", || node.record_count(), |count| *count == 0)?;
    ensure!(matches!(node.recorder.calls().last(), Some(Call::Detach(_))), "{:?}", node.recorder.calls());
    // Released, so it is reused last.
    ensure!(addresses(&node.add(&other)?)[0] == "10.1.7.3", "the released address came first");
    Ok(())
}

/// CNI-18: an agent that accepts and never answers costs bounded time.
pub(crate) fn with_the_agent_stuck() -> Result<()> {
    let node = Node::without_agent("del-stuck")?;
    let pod = node.pod("pod")?;
    let _deaf = UnixListener::bind(node.files.path().join("cni.sock")).context("bind")?;
    node.call("DEL", &pod).with("agentTimeoutSeconds", 1).run()?.silence()?;
    ensure!(node.record_count()? == 1, "want one record");
    Ok(())
}

/// CNI-19, CNI-31: DEL does not look at the result, nor at settings that changed since ADD.
pub(crate) fn with_a_corrupt_result() -> Result<()> {
    let node = Node::start("del-corrupt")?;
    for previous in [serde_json::json!(7), serde_json::json!({ "ips": "x" }), serde_json::json!(null)] {
        let pod = node.pod("pod")?;
        node.add(&pod)?;
        let del =
            node.call("DEL", &pod).with("prevResult", previous).with("mtu", 9000).with("name", "renamed");
        del.with_env("CNI_ARGS", Some("not key value")).run()?.silence()?;
    }
    Ok(())
}

/// A record is carried out before the same attachment is made anew, so it cannot undo the new one.
pub(crate) fn recorded_release_before_the_next_add() -> Result<()> {
    let mut node = Node::start("del-add")?;
    let pod = node.pod("pod")?;
    let first = node.add(&pod)?;
    node.kill_agent();
    node.del(&pod)?;
    node.start_agent()?;
    let second = node.add(&pod)?;
    ensure!(addresses(&first) != addresses(&second), "the released address was used at once");
    ensure!(node.record_count()? == 0, "the record is still there");
    let calls = node.recorder.calls();
    ensure!(
        matches!(calls.as_slice(), [Call::Attach(_), Call::Detach(_), Call::Attach(_)]),
        "order of calls: {calls:?}"
    );
    Ok(())
}
