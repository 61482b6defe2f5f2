//! Debian's kubectl against the embedded apiserver, with effects in the kernel.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, ask, tally};
use quilla_tests::cluster::Cluster;
use quilla_tests::eventually;

/// Run, expose, describe, label, patch, delete: each changes what the client's packets do.
pub(crate) fn a_session_with_kubectl() -> Result<()> {
    let cluster = Cluster::builder("kubectl").nodes(2).start()?;
    for name in ["one", "two"] {
        cluster.kubectl(&["run", name, "--image=quilla/pod", "--port=8080", "--labels=app=web"])?;
    }
    let client = cluster.pod("node-a", "client").start()?;
    for name in ["one", "two"] {
        // Without a node in their manifests: the controller has chosen one.
        cluster.wait_pod(name)?;
    }
    cluster.kubectl(&[
        "expose",
        "pod",
        "one",
        "--name=web",
        "--port=80",
        "--target-port=8080",
        "--selector=app=web",
    ])?;
    let ips = cluster.wait_service("web", 2)?;
    let to = SocketAddr::new(ips[0].parse()?, 80);
    let only = |servers: &[&str]| {
        eventually::succeeds(&format!("{servers:?} answer"), || {
            let answers = ask(|program| client.command(program), to, By::Http, 20)?;
            let hits = tally(&answers);
            ensure!(hits.keys().eq(servers), "{hits:?}");
            Ok(())
        })
    };
    only(&["one", "two"])?;

    let described = cluster.kubectl(&["describe", "service", "web"])?;
    ensure!(described.contains(&ips[0]), "no {} in {described}", ips[0]);
    cluster.kubectl(&["label", "pod", "one", "app=other", "--overwrite"])?;
    cluster.wait_service("web", 1)?;
    only(&["two"])?;
    cluster.kubectl(&["patch", "service", "web", "-p", r#"{"spec":{"selector":{"app":"other"}}}"#])?;
    only(&["one"])?;
    cluster.kubectl(&["delete", "service", "web"])?;
    eventually::succeeds("nobody answers", || {
        let answers = ask(|program| client.command(program), to, By::Http, 1);
        ensure!(answers.is_err(), "{answers:?}");
        Ok(())
    })?;
    cluster.stop()
}

/// A Service without a selector, its endpoints written by hand: what the apiserver refuses changes nothing, and what
/// it cannot refuse is skipped by the agents while the rest works.
pub(crate) fn bad_objects_harm_nobody_else() -> Result<()> {
    let cluster = Cluster::builder("bad-objects").nodes(1).start()?;
    let server = cluster.pod("node-a", "server").start()?;
    let client = cluster.pod("node-a", "client").start()?;
    cluster
        .apply("{apiVersion: v1, kind: Service, metadata: {name: manual}, spec: {ports: [{port: 80}]}}")?;

    let duplicate = "{apiVersion: v1, kind: Service, metadata: {name: twice},
                      spec: {ports: [{name: a, port: 80}, {name: b, port: 80}]}}";
    ensure!(cluster.apply(duplicate).is_err(), "two ports of one number were accepted");
    for address in ["300.1.1.1", "127.0.0.1", "224.0.0.1", "::1"] {
        let outcome = cluster.apply(&slice("refused", &[address]));
        ensure!(outcome.is_err(), "endpoint {address} was accepted: {outcome:?}");
    }
    cluster.apply(&slice("good", &[&server.address(false).to_string()]))?;
    let ips = cluster.wait_service("manual", 1)?;
    let to = SocketAddr::new(ips[0].parse()?, 80);
    eventually::succeeds("the good endpoint answers", || {
        ask(|program| client.command(program), to, By::Http, 5).context("ask")
    })?;

    cluster.apply(NONSENSE)?;
    eventually::succeeds("the agent names the object that it skips", || {
        let problems = cluster.node("node-a").quilla(&["problems"])?;
        ensure!(problems.contains("nonsense"), "{problems}");
        Ok(())
    })?;
    ask(|program| client.command(program), to, By::Http, 5).context("ask beside a bad node")?;
    cluster.stop()
}

/// No apiserver checks the addresses of a Node.
const NONSENSE: &str = "
apiVersion: v1
kind: Node
metadata: {name: nonsense}
status: {addresses: [{type: InternalIP, address: 999.1.1.1}]}
";

/// Ports that change their protocol and the kind of their target: the old way ends, the new one works, per packet and
/// at the socket.
pub(crate) fn a_port_changes_its_protocol() -> Result<()> {
    let cluster = Cluster::builder("port-type").nodes(1).start()?;
    cluster.pod("node-a", "server").label("app", "turncoat").start()?;
    let client = cluster.pod("node-a", "client").start()?;
    let service = |protocol: &str, target: &str| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: turncoat}}, spec: {{selector: {{app: turncoat}},
               ports: [{{port: 80, protocol: {protocol}, targetPort: {target}}}]}}}}"
        )
    };
    let mut last = None;
    for (protocol, target, by) in
        [("TCP", "8080", By::Http), ("UDP", "8080", By::Udp), ("TCP", "http", By::Http)]
    {
        cluster.apply(&service(protocol, target))?;
        let ips = cluster.wait_service("turncoat", 1)?;
        ensure!(*last.get_or_insert_with(|| ips.clone()) == ips, "the cluster address changed to {ips:?}");
        let to = SocketAddr::new(ips[0].parse()?, 80);
        for hooked in [true, false] {
            eventually::succeeds("the port answers under its new protocol", || {
                let command = |program: &str| {
                    if hooked { client.command(program) } else { client.command_without_hooks(program) }
                };
                ask(command, to, by, 2).context("ask")
            })?;
        }
        let other = if protocol == "TCP" { By::Udp } else { By::Http };
        eventually::succeeds("the old protocol ends", || {
            let answer = ask(|program| client.command_without_hooks(program), to, other, 1);
            ensure!(answer.is_err(), "still answered: {answer:?}");
            Ok(())
        })?;
    }
    cluster.stop()
}

fn slice(name: &str, addresses: &[&str]) -> String {
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "manual"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": addresses, "conditions": {"ready": true}}],
        "ports": [{"port": 8080, "protocol": "TCP"}],
    })
    .to_string()
}
