//! The harness proves itself: what a topology makes is seen by nobody else and is gone afterwards, however it ended.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_tests::cgroup::Cgroup;
use quilla_tests::cluster::Cluster;
use quilla_tests::command::{Run, in_place};
use quilla_tests::eventually;
use quilla_tests::netns::{self, Netns};
use quilla_tests::sandbox::{self, Sandbox};
use quilla_tests::topology::{OUTSIDE, Topology};

/// Two namespaces listen on the same address and port, and each reaches its own.
pub(crate) fn namespaces_are_isolated() -> Result<()> {
    let (left, right) = (Netns::create("isolated-left")?, Netns::create("isolated-right")?);
    let address = (Ipv4Addr::LOCALHOST, 8080);
    let listener = left.run(|| TcpListener::bind(address))??;
    ensure!(right.run(|| TcpStream::connect(address))?.is_err(), "the other namespace's listener answered");
    left.run(|| TcpStream::connect(address))?.context("the namespace's own listener")?;
    drop(listener);

    left.ip("link add only-left type veth peer name only-peer")?;
    let there = right.command("ip").args(["link", "show"]).text()?;
    ensure!(!there.contains("only-left"), "a link is seen in the other namespace: {there}");
    Ok(())
}

/// Neither the sandbox nor a namespace in it has a link beside loopback, or a route.
pub(crate) fn nothing_reaches_outside() -> Result<()> {
    let netns = Netns::create("no-way-out")?;
    let routes = netns.command("ip").args(["route", "show", "table", "all"]).text()?;
    ensure!(!routes.contains("default"), "a default route: {routes}");
    // Connecting a datagram socket only looks the route up: nothing is sent, whatever the outcome.
    let routed = || UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("192.0.2.1:9"));
    ensure!(netns.run(routed)?.is_err(), "a route out of the namespace");
    ensure!(routed().is_err(), "a route out of the sandbox");
    let links = Command::new("ip").args(["-brief", "link", "show"]).text()?;
    let own = links.lines().all(|link| link.starts_with("lo "));
    ensure!(own, "links beside loopback in the sandbox: {links}");
    Ok(())
}

/// Unwinding takes down namespaces, with the links in them, and cgroups, with the processes in them.
pub(crate) fn a_panic_leaves_nothing() -> Result<()> {
    let cgroup = Sandbox::current()?.cgroup().join("panics");
    let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
        let _cgroup = Cgroup::create(&cgroup)?;
        let netns = Netns::create("panics")?;
        netns.ip("link add name veth-panics type veth peer name veth-peer")?;
        ensure!(Path::new("/run/netns/panics").exists() && cgroup.exists(), "nothing was made");
        panic!("on purpose");
    }));
    ensure!(outcome.is_err(), "did not panic: {outcome:?}");
    ensure!(!Path::new("/run/netns/panics").exists(), "the namespace is still there");
    ensure!(!cgroup.exists(), "the cgroup is still there");
    let namespaces = Command::new("ip").args(["netns", "list"]).text()?;
    ensure!(!namespaces.contains("panics"), "{namespaces}");
    Ok(())
}

/// A whole cluster with a running Pod goes with the test that panics: namespaces, processes, cgroups, pins.
pub(crate) fn a_panic_leaves_nothing_of_a_cluster() -> Result<()> {
    let cgroup = Sandbox::current()?.cgroup().join("doomed-cluster");
    let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
        let cluster = Cluster::builder("doomed-cluster").nodes(1).start()?;
        cluster.pod("node-a", "pod").start()?;
        ensure!(netns::names("doomed-cluster.").len() == 4, "not fabric, outside, node and Pod");
        panic!("on purpose");
    }));
    ensure!(outcome.is_err(), "did not panic: {outcome:?}");
    let left = netns::names("doomed-cluster.");
    ensure!(left.is_empty(), "namespaces are still there: {left:?}");
    ensure!(!cgroup.exists(), "the cgroup, or a process in it, is still there");
    let pins = Path::new(sandbox::BPFFS).join("doomed-cluster/node-a");
    ensure!(!pins.exists(), "pins are still there");
    Ok(())
}

/// `kill -9` of a sandbox takes everything with it: seen from outside, here from another sandbox.
pub(crate) fn a_killed_sandbox_leaves_nothing() -> Result<()> {
    let before = mounts()?;
    let cgroup = Cgroup::create(&Sandbox::current()?.cgroup().join("killed"))?;
    let ready = Path::new(sandbox::FILES).join("killed-is-ready");
    let script = format!(
        "mount -t tmpfs quilla /run/netns && ip netns add insider && ip link add insider type veth && \
         touch {} && exec sleep 120",
        ready.display()
    );
    let mut command = sandbox::wrapped(&cgroup, Path::new("sh"));
    let mut child = command.args(["-c", &script]).stdin(Stdio::null()).spawn().context("start a sandbox")?;
    let made = eventually::succeeds("the sandbox is busy", || {
        ensure!(ready.exists(), "not yet");
        Ok(())
    });
    let seen = Command::new("ip").args(["netns", "list"]).text()?;
    child.kill().context("kill the sandbox")?;
    child.wait().context("wait for the sandbox")?;
    made?;
    ensure!(!seen.contains("insider"), "seen outside while alive: {seen}");

    eventually::succeeds("all processes are gone", || {
        let processes = fs::read_to_string(cgroup.path().join("cgroup.procs")).context("read processes")?;
        ensure!(processes.is_empty(), "alive: {processes}");
        Ok(())
    })?;
    let links = Command::new("ip").args(["link", "show"]).text()?;
    ensure!(!links.contains("insider"), "{links}");
    ensure!(!Path::new("/run/netns/insider").exists(), "the namespace is still there");
    let after = mounts()?;
    ensure!(after == before, "mounts changed from {before:#?} to {after:#?}");
    Ok(())
}

/// All mounts but the named namespaces, which other tests make and remove at the same time.
fn mounts() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mounts").context("read mounts")?;
    Ok(text.lines().filter(|line| !line.contains(" /run/netns/")).map(str::to_owned).collect())
}

/// The underlay carries the nodes' own traffic, and the outside does not know the nodes' Pods.
pub(crate) fn the_underlay_connects_nodes() -> Result<()> {
    let cgroup = Cgroup::create(&Sandbox::current()?.cgroup().join("underlay"))?;
    let topology = Topology::build("underlay", 2, cgroup)?;
    let [left, right] = topology.nodes.as_slice() else { anyhow::bail!("two nodes") };
    for (own, peer, outside) in [
        (left.addresses[0], right.addresses[0], OUTSIDE[0]),
        (left.addresses[1], right.addresses[1], OUTSIDE[1]),
    ] {
        for to in [peer.to_string(), outside.to_owned()] {
            let mut ping = in_place(left.cgroup.path(), Some(left.netns.path()), "ping");
            ping.args(["-c1", "-W2", "-I", &own.to_string(), &to]).text()?;
        }
    }
    let route = topology.outside.command("ip").args(["route", "get", "10.244.0.1"]).text()?;
    ensure!(route.contains("203.0.113.1"), "{route}");
    let unknown = topology.fabric.command("ip").args(["route", "get", "10.244.0.1"]).text();
    ensure!(unknown.is_err(), "the underlay knows a Pod's address: {unknown:?}");
    Ok(())
}
