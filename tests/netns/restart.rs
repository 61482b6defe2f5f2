//! The kernel works without the agent: killed under load, restarted, its programs removed.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, ask};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::{binary, eventually};
use rustix::process::{Pid, Signal, kill_process};

use crate::guard;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports:
  - {name: tcp, port: 80, targetPort: 8080, protocol: TCP}
  - {name: udp, port: 80, targetPort: 8080, protocol: UDP}
";

/// How often the agent is killed under load.
const KILLS: usize = 20;
/// How its successors attach to Pods, in turn: what they find is replaced in place, or by the other mechanism.
const MECHANISMS: [&str; 4] = ["clsact", "clsact", "tcx", "tcx"];
/// Long flows and new connections a second, half of them by each way.
const LOAD: [&str; 4] = ["--long", "100", "--rate", "500"];

/// Promise 2: 200 long flows and 1,000 new connections a second, through a ClusterIP of each family to backends on both
/// nodes, half of them translated at the socket and half per packet, while the agent of the client's node is killed
/// twenty times and started anew, every other time with another mechanism for the programs of Pods.
pub(crate) fn a_killed_agent_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::builder("killed-agent").nodes(2).start()?;
    for (node, name) in [("node-a", "web-a"), ("node-b", "web-b")] {
        cluster.pod(node, name).label("app", "web").start()?;
    }
    // Two, because ports that one Pod uses both ways at this rate would collide by the thousand (E9).
    let hooked = cluster.pod("node-a", "hooked").start()?;
    let packets = cluster.pod("node-a", "packets").start()?;
    cluster.apply(SERVICE)?;
    let ips = cluster.wait_service("web", 2)?;
    let targets: Vec<SocketAddr> =
        ips.iter().map(|ip| Ok(SocketAddr::new(ip.parse()?, 80))).collect::<Result<_>>()?;
    for target in &targets {
        eventually::succeeds("the Service answers", || {
            ask(|program| packets.command_without_hooks(program), *target, By::Http, 1)
        })?;
    }
    let places = [hooked.command("env"), packets.command_without_hooks("env")];
    let loads = places.into_iter().map(|place| load(place, &targets)).collect::<Result<Vec<_>>>()?;
    for mechanism in MECHANISMS.into_iter().cycle().take(KILLS) {
        let node = cluster.node_mut("node-a");
        node.agent()?.kill()?;
        node.start_agent_with(&["--pod-programs", mechanism])?;
        node.wait_ready()?;
    }
    for load in loads {
        println!("{KILLS} kills: {}", finish(load)?);
    }
    cluster.stop()
}

/// Ends a load that lost nothing; what it says of itself. Fails when it has ended before: then nothing was proven.
pub(crate) fn finish(load: std::process::Child) -> Result<String> {
    kill_process(Pid::from_child(&load), Signal::TERM).context("the load is still running")?;
    let output = load.wait_with_output().context("wait for the load")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "lost: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said.trim().to_owned())
}

fn load(mut place: Command, targets: &[SocketAddr]) -> Result<std::process::Child> {
    place.arg(binary::path("quilla-load")?).args(LOAD).args(["--seconds", "300"]);
    for target in targets {
        place.args(["--target", &target.to_string()]);
    }
    place.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start the load")
}

/// Everything goes on with no agent at all: established rows, new connections, and Pods that go away (CNI-18).
pub(crate) fn the_kernel_needs_no_agent() -> Result<()> {
    let mut cluster = Cluster::builder("no-agent").nodes(2).start()?;
    cluster.pod("node-b", "web").label("app", "web").start()?;
    let client = cluster.pod("node-a", "client").start()?;
    cluster.apply(SERVICE)?;
    let ips = cluster.wait_service("web", 1)?;
    let to = SocketAddr::new(ips[0].parse()?, 80);
    let here = |program: &str| client.command(program);
    eventually::succeeds("the Service answers", || ask(here, to, By::Http, 1))?;
    for node in ["node-a", "node-b"] {
        cluster.node_mut(node).agent()?.kill()?;
    }
    for by in By::ALL {
        for answers in
            [ask(here, to, by, 20)?, ask(|program| client.command_without_hooks(program), to, by, 20)?]
        {
            ensure!(answers.iter().all(|answer| answer.server == "web"), "{by:?}: {answers:?}");
        }
    }
    cluster.delete_pod(client.name())?;
    for node in ["node-a", "node-b"] {
        cluster.node_mut(node).start_agent()?;
        cluster.node_mut(node).wait_ready()?;
    }
    // The address that was given back without the agent is given out again only through its journal.
    let again = cluster.pod("node-a", "again").start()?;
    ask(|program| again.command(program), to, By::Http, 1)?;
    cluster.stop()
}

/// A detached program is attached again, whichever mechanism it was attached by.
pub(crate) fn drift_is_repaired() -> Result<()> {
    let mut cluster = Cluster::builder("drift").nodes(1).start()?;
    cluster.pod("node-a", "web").label("app", "web").start()?;
    cluster.apply(SERVICE)?;
    let ips = cluster.wait_service("web", 1)?;
    let to = SocketAddr::new(ips[0].parse()?, 80);
    let client = cluster.pod("node-a", "client").start()?;
    let device = guard::device(cluster.node("node-a"), "client")?;
    let answers = || ask(|program| client.command_without_hooks(program), to, By::Http, 1);
    for mechanism in ["clsact", "tcx"] {
        let node = cluster.node_mut("node-a");
        node.agent()?.kill()?;
        node.start_agent_with(&["--pod-programs", mechanism])?;
        node.wait_ready()?;
        eventually::succeeds("the Service answers", answers)?;

        node.agent()?.kill()?;
        if mechanism == "tcx" {
            let remove = ["-path", "*links*", "-type", "f", "-print", "-delete"];
            let pins = Command::new("find").arg(node.bpffs()).args(remove).text()?;
            ensure!(!pins.is_empty(), "no pinned links under {}", node.bpffs().display());
        } else {
            node.command("tc").args(["qdisc", "del", "dev", &device, "clsact"]).text()?;
        }
        eventually::succeeds("the Service is gone with its programs", || {
            let broken = answers();
            ensure!(broken.is_err(), "still answers: {broken:?}");
            Ok(())
        })?;

        node.start_agent()?;
        node.wait_ready()?;
        eventually::succeeds("the Service answers again", answers)?;
    }
    cluster.stop()
}
