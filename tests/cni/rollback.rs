//! CNI-15: an ADD that fails at any step leaves both namespaces, the address store and the data path as they were.

use std::io::Write;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result, ensure};
use quilla_agent::cni::Pools;
use quilla_tests::eventually;

use crate::agent::{Agent, Behaviour, Call, pools};
use crate::node::{Node, Pod, addresses};

/// Runs an ADD that must fail with `code`, and looks for traces.
fn fails_without_trace(node: &Node, pod: &Pod, code: u64) -> Result<()> {
    let before = node.state(pod)?;
    node.call("ADD", pod).run()?.error(code)?;
    let after = node.state(pod)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    let (attaches, detaches) =
        node.recorder.calls().iter().fold((0, 0), |(attaches, detaches), call| match call {
            Call::Attach(_) => (attaches + 1, detaches),
            Call::Detach(_) => (attaches, detaches + 1),
            Call::Check(_) => (attaches, detaches),
        });
    ensure!(attaches == detaches, "{attaches} attached, {detaches} detached");
    Ok(())
}

/// After the failure an ADD succeeds, and only one address has been used up.
fn recovers(node: &Node, pod: &Pod) -> Result<()> {
    let result = node.add(pod)?;
    ensure!(addresses(&result)[0] == "10.1.7.3", "{result}");
    node.del(pod)
}

/// CNI-11: somebody else's interface is left alone.
pub(crate) fn interface_exists() -> Result<()> {
    let node = Node::start("exists")?;
    let pod = node.pod("pod")?;
    pod.netns.ip("link add eth0 type veth peer name other")?;
    fails_without_trace(&node, &pod, 100)?;
    pod.netns.ip("link del eth0")?;
    recovers(&node, &pod)
}

/// The kernel refuses inside the Pod, after the pair was made: an MTU below IPv6's minimum.
pub(crate) fn address_refused_in_the_pod() -> Result<()> {
    let node = Node::start("refused")?;
    let pod = node.pod("pod")?;
    let before = node.state(&pod)?;
    node.call("ADD", &pod).with("mtu", 1000).run()?.error(100)?;
    ensure!(node.state(&pod)? == before, "something remains");
    recovers(&node, &pod)
}

/// The kernel refuses on the host, after the Pod's side was done: another link has the address.
pub(crate) fn route_exists_on_the_host() -> Result<()> {
    for route in ["10.1.7.2/32", "fd00:1:7::2/128"] {
        let node = Node::start("route")?;
        let pod = node.pod("pod")?;
        node.host
            .ip(&format!("link add other type veth peer name peer\nlink set peer up\nlink set other up\nroute add {route} dev other\n"))?;
        eventually::becomes("link-local", || node.state(&pod), |state| !state.contains("tentative"))?;
        fails_without_trace(&node, &pod, 100)?;
        recovers(&node, &pod)?;
    }
    Ok(())
}

/// The data path refuses, or is not ready yet.
pub(crate) fn agent_refuses() -> Result<()> {
    for (behaviour, code) in [(Behaviour::Refuse, 101), (Behaviour::NotReady, 11)] {
        let node = Node::start("attach-fails")?;
        let pod = node.pod("pod")?;
        node.recorder.behave(behaviour);
        fails_without_trace(&node, &pod, code)?;
        node.recorder.behave(Behaviour::Obey);
        recovers(&node, &pod)?;
    }
    Ok(())
}

/// The data path never answers: bounded time, code 11, and the release is on record.
pub(crate) fn agent_hangs() -> Result<()> {
    let mut node = Node::start("attach-hangs")?;
    let pod = node.pod("pod")?;
    let before = node.state(&pod)?;
    node.recorder.behave(Behaviour::Hang);
    node.call("ADD", &pod).with("agentTimeoutSeconds", 1).run()?.error(11)?;
    ensure!(node.state(&pod)? == before, "something remains");
    ensure!(node.record_count()? == 1, "want one record");
    node.kill_agent();
    node.recorder.behave(Behaviour::Obey);
    node.start_agent()?;
    eventually::becomes("records", || node.record_count(), |count| *count == 0)?;
    recovers(&node, &pod)
}

/// The data path obeys after the plugin gave up: what it attached late is detached again.
pub(crate) fn agent_answers_late() -> Result<()> {
    let node = Node::start("attach-late")?;
    let pod = node.pod("pod")?;
    let before = node.state(&pod)?;
    node.recorder.behave(Behaviour::Late);
    node.call("ADD", &pod).with("agentTimeoutSeconds", 1).run()?.error(11)?;
    ensure!(node.state(&pod)? == before, "something remains");
    node.recorder.behave(Behaviour::Obey);
    eventually::becomes("records", || node.record_count(), |count| *count == 0)?;
    let calls = node.recorder.calls();
    ensure!(matches!(calls.as_slice(), [Call::Attach(_), Call::Detach(_)]), "{calls:?}");
    recovers(&node, &pod)
}

/// CNI-16: no agent, or one that accepts and says nothing, is code 11 in bounded time.
pub(crate) fn agent_absent() -> Result<()> {
    let node = Node::without_agent("absent")?;
    let pod = node.pod("pod")?;
    fails_without_trace(&node, &pod, 11)?;
    let _deaf = UnixListener::bind(node.files.path().join("cni.sock")).context("bind")?;
    let before = node.state(&pod)?;
    node.call("ADD", &pod).with("agentTimeoutSeconds", 1).run()?.error(11)?;
    ensure!(node.state(&pod)? == before, "something remains");
    Ok(())
}

/// CNI-21: the plugin dies in the middle. Its address is free at once, and DEL removes the rest.
pub(crate) fn plugin_killed() -> Result<()> {
    let node = Node::start("killed")?;
    let pod = node.pod("pod")?;
    let before = node.state(&pod)?;
    node.recorder.behave(Behaviour::Hang);
    let call = node.call("ADD", &pod).with("agentTimeoutSeconds", 30);
    let mut child = call.command()?.spawn().context("start the plugin")?;
    child.stdin.take().context("standard input")?.write_all(call.config.to_string().as_bytes())?;
    let attaching = || Ok(node.recorder.calls().len());
    let waited = eventually::becomes("attach", attaching, |calls| *calls == 1);
    child.kill().context("kill the plugin")?;
    child.wait().context("wait for the plugin")?;
    waited?;
    node.recorder.behave(Behaviour::Obey);
    let mut node = node;
    node.kill_agent();
    node.start_agent()?;
    node.del(&pod)?;
    ensure!(node.state(&pod)? == before, "something remains");
    recovers(&node, &pod)
}

/// No free address is a passing condition (CNI-3), and passes.
pub(crate) fn pool_exhausted() -> Result<()> {
    let mut node = Node::without_agent("exhausted")?;
    let tiny = Pools { ipv4: vec!["10.1.7.0/30".parse()?], ..pools() };
    node.agent = Some(Agent::start(node.files.path(), Some(tiny), node.recorder.clone())?);
    let (only, late) = (node.pod("only")?, node.pod("late")?);
    let first = node.add(&only)?;
    node.call("ADD", &late).run()?.error(11)?;
    node.call("STATUS", &late).run()?.error(50)?;
    node.del(&only)?;
    let second = node.add(&late)?;
    ensure!(addresses(&first)[0] == addresses(&second)[0], "{first} {second}");
    Ok(())
}

/// The agent restarts: it knows its endpoints, and what it gave it does not give again.
pub(crate) fn agent_restarts_with_its_endpoints() -> Result<()> {
    let mut node = Node::start("restart")?;
    let (pod, other) = (node.pod("pod")?, node.pod("other")?);
    let first = node.add(&pod)?;
    let attached = node.recorder.calls();
    node.kill_agent();
    node.start_agent()?;
    let known = node.agent.as_ref().map(|agent| agent.known_at_start.clone()).unwrap_or_default();
    ensure!(attached == known.into_iter().map(Call::Attach).collect::<Vec<_>>(), "{attached:?}");
    ensure!(node.add(&pod)? == first, "another answer after the restart");
    // While the Pod CIDRs are not known again, the agent cannot say all of it, and must not say half.
    node.kill_agent();
    let agent = Agent::start(node.files.path(), None, node.recorder.clone())?;
    node.call("ADD", &pod).run()?.error(11)?;
    agent.set_pools(pools());
    let again = || node.call("ADD", &pod).run()?.result();
    ensure!(eventually::succeeds("add again", again)? == first, "another answer without pod cidrs");
    node.agent = Some(agent);
    ensure!(addresses(&node.add(&other)?)[0] == "10.1.7.3", "want the next address");
    Ok(())
}
