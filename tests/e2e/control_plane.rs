//! The control plane crashes, is away, comes back; the agents are replaced one by one.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, ask};
use quilla_tests::cluster::Cluster;
use quilla_tests::{binary, eventually};
use rustix::process::{Pid, Signal, kill_process};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

fn frontend(cluster: &Cluster, endpoints: usize) -> Result<SocketAddr> {
    cluster.apply(SERVICE)?;
    let ips = cluster.wait_service("web", endpoints)?;
    Ok(SocketAddr::new(ips[0].parse()?, 80))
}

/// `kill -9` in the middle of writes: every object whose creation kubectl reported is there afterwards.
pub(crate) fn what_was_acknowledged_survives_a_crash() -> Result<()> {
    let mut cluster = Cluster::builder("crash").nodes(1).control_plane()?;
    for round in 0..3 {
        let manifests: Vec<String> = (0..200)
            .map(|n| format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: note-{round}-{n}}}}}"))
            .collect();
        let acknowledged = std::thread::scope(|scope| -> Result<String> {
            let mut writer = cluster.kubectl_command(&["create", "-f", "-"]);
            let mut writer =
                writer.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
            let mut stdin = writer.stdin.take().context("standard input")?;
            let text = manifests.join("\n---\n");
            // It fails when the apiserver dies under it, as it should.
            scope.spawn(move || drop(std::io::Write::write_all(&mut stdin, text.as_bytes())));
            eventually::succeeds("some are created", || {
                let names = cluster.kubectl(&["get", "configmaps", "-o", "name"])?;
                let created = names.lines().filter(|name| name.contains(&format!("note-{round}-"))).count();
                ensure!(created > 10, "only {created}");
                Ok(())
            })?;
            cluster.crash_controller()?;
            let output = writer.wait_with_output().context("wait for kubectl")?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })?;
        cluster.start_controller()?;
        let names = cluster.kubectl(&["get", "configmaps", "-o", "name"])?;
        for line in acknowledged.lines() {
            let name = line.strip_suffix(" created").with_context(|| format!("unexpected: {line}"))?;
            ensure!(names.lines().any(|known| known == name), "{name} was acknowledged and is lost");
        }
    }
    cluster.stop()
}

/// No apiserver: traffic goes on, and an agent that starts anew takes what it last knew.
pub(crate) fn traffic_needs_no_control_plane() -> Result<()> {
    let mut cluster = Cluster::builder("headless").nodes(2).start()?;
    let web = cluster.pod("node-b", "web").label("app", "web").start()?;
    let client = cluster.pod("node-a", "client").start()?;
    let to = frontend(&cluster, 1)?;
    let answers = || ask(|program| client.command(program), to, By::Http, 20);
    eventually::succeeds("the Service answers", answers)?;

    // Stored within seconds of a change, not with it: an agent that dies sooner knows an older cluster.
    let stored = cluster.node("node-a").files().join("state/snapshot.json");
    eventually::succeeds("the agent has stored the Service's endpoint", || {
        let text = std::fs::read_to_string(&stored).with_context(|| format!("read {}", stored.display()))?;
        ensure!(text.contains(&web.address(false).to_string()), "not in {text}");
        Ok(())
    })?;
    cluster.controller()?.kill()?;
    answers().context("without an apiserver")?;
    let node = cluster.node_mut("node-a");
    node.agent()?.kill()?;
    node.start_agent()?;
    node.wait_ready().context("agent without an apiserver")?;
    answers().context("after the agent's restart without an apiserver")?;

    cluster.start_controller()?;
    let late = cluster.pod("node-a", "late").label("app", "web").start()?;
    cluster.wait_service("web", 2)?;
    eventually::succeeds("the new backend answers", || {
        let answers = answers()?;
        ensure!(answers.iter().any(|answer| answer.server == late.name()), "{answers:?}");
        Ok(())
    })?;
    cluster.stop()
}

/// What an upgrade does: every agent is stopped in order and started anew, under load between the nodes.
pub(crate) fn agents_restart_one_after_the_other() -> Result<()> {
    let mut cluster = Cluster::builder("rolling").nodes(3).start()?;
    for (node, name) in [("node-b", "web-b"), ("node-c", "web-c")] {
        cluster.pod(node, name).label("app", "web").start()?;
    }
    let client = cluster.pod("node-a", "client").start()?;
    let to = frontend(&cluster, 2)?;
    eventually::succeeds("the Service answers", || ask(|program| client.command(program), to, By::Http, 1))?;

    let mut load: Command = client.command(&binary::path("quilla-load")?.to_string_lossy());
    load.args(["--long", "50", "--rate", "100", "--seconds", "120", "--target", &to.to_string()]);
    let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start the load")?;
    for name in ["node-a", "node-b", "node-c"] {
        let node = cluster.node_mut(name);
        node.agent()?.stop(eventually::PATIENCE)?;
        node.start_agent()?;
        node.wait_ready()?;
    }
    kill_process(Pid::from_child(&load), Signal::TERM).context("the load is still running")?;
    let output = load.wait_with_output().context("wait for the load")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    cluster.stop()
}
