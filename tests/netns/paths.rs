//! Who reaches whom, by which way, and as whom: TCP, UDP and ICMP in both families.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use quilla_tests::ask::{By, ask, echo};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::{Daemon, Run};
use quilla_tests::pod::Pod;
use quilla_tests::topology::OUTSIDE;
use quilla_tests::{binary, eventually};

const PORT: u16 = 8080;
/// More than any packet: a stream that needs segmentation offload, whole windows and the right MTU.
const STREAM: usize = 4 << 20;

fn at(pod: &Pod, v6: bool) -> SocketAddr {
    SocketAddr::new(pod.address(v6), PORT)
}

/// Pods on one node and on two, with their own addresses.
pub(crate) fn pods_reach_pods() -> Result<()> {
    let cluster = Cluster::builder("pods-reach-pods").nodes(2).start()?;
    let client = cluster.pod("node-a", "client").start()?;
    let near = cluster.pod("node-a", "near").start()?;
    let far = cluster.pod("node-b", "far").start()?;
    for server in [&near, &far] {
        for v6 in [false, true] {
            for by in By::ALL {
                for answer in ask(|program| client.command(program), at(server, v6), by, 3)? {
                    ensure!(
                        answer.server == server.name(),
                        "{by:?}: {answer:?} instead of {}",
                        server.name()
                    );
                    ensure!(answer.caller == client.address(v6), "{by:?}: seen as {}", answer.caller);
                }
            }
            ping(&client, server.address(v6))?;
        }
    }
    cluster.stop()
}

/// E5: streams and the largest datagrams pass, on one node and through the overlay; fragments are for a later issue,
/// so a datagram here fits the Pod's own MTU.
pub(crate) fn large_transfers_fit_the_path() -> Result<()> {
    let cluster = Cluster::builder("large-transfers").nodes(2).start()?;
    let client = cluster.pod("node-a", "client").start()?;
    let near = cluster.pod("node-a", "near").start()?;
    let far = cluster.pod("node-b", "far").start()?;
    let mtu = mtu(&client)?;
    for server in [&near, &far] {
        for v6 in [false, true] {
            echo(|program| client.command(program), at(server, v6), By::Http, STREAM)?;
            let headers = if v6 { 48 } else { 28 };
            echo(|program| client.command(program), at(server, v6), By::Udp, mtu - headers)?;
            echo(|program| client.command(program), at(server, v6), By::UdpConnected, mtu - headers)?;
        }
    }
    cluster.stop()
}

/// The node reaches its own Pods, as a kubelet must, and those of other nodes; Pods reach their node and others.
pub(crate) fn hosts_and_pods_reach_each_other() -> Result<()> {
    let cluster = Cluster::builder("hosts-and-pods").nodes(2).start()?;
    let near = cluster.pod("node-a", "near").probed().start()?;
    let far = cluster.pod("node-b", "far").start()?;
    let node = cluster.node("node-a");
    for v6 in [false, true] {
        for server in [&near, &far] {
            for by in By::ALL {
                let answers = ask(|program| node.command(program), at(server, v6), by, 1)?;
                ensure!(answers[0].server == server.name(), "{by:?}: {answers:?}");
            }
            node.command("ping").args(["-c1", "-W2", &server.address(v6).to_string()]).text()?;
        }
    }
    let on_host = cluster.pod("node-b", "on-host").host_network().start()?;
    for v6 in [false, true] {
        for client in [&near, &far] {
            for by in By::ALL {
                let answers = ask(|program| client.command(program), at(&on_host, v6), by, 1)?;
                ensure!(answers[0].server == "on-host", "{by:?}: {answers:?}");
            }
        }
    }
    cluster.stop()
}

/// What leaves the cluster carries the node's address; the echo identifier is mapped back (E6).
pub(crate) fn the_outside_sees_the_node() -> Result<()> {
    let cluster = Cluster::builder("outside-sees-node").nodes(1).start()?;
    let client = cluster.pod("node-a", "client").start()?;
    let program = binary::path("quilla-pod")?;
    let mut server = cluster.outside().command(&program.to_string_lossy());
    let log = cluster.node("node-a").files().join("log/outside.log");
    let server =
        Daemon::start("outside", server.args(["--name", "outside", "--port", &PORT.to_string()]), &log)?;
    eventually::succeeds("the outside listens", || {
        let to = SocketAddr::new(OUTSIDE[0].parse::<IpAddr>()?, PORT);
        ask(|program| cluster.outside().command(program), to, By::Http, 1)
    })?;
    for (v6, outside) in [false, true].into_iter().zip(OUTSIDE) {
        let to = SocketAddr::new(outside.parse()?, PORT);
        let node = cluster.node("node-a").addresses()[usize::from(v6)];
        for by in By::ALL {
            for answer in ask(|program| client.command(program), to, by, 3)? {
                ensure!(answer.caller == node, "{by:?}: seen as {} instead of {node}", answer.caller);
            }
        }
        echo(|program| client.command(program), to, By::Http, STREAM)?;
        ping(&client, to.ip())?;
    }
    drop(server);
    cluster.stop()
}

/// A Pod's containers are processes that share its addresses and its loopback.
pub(crate) fn containers_share_the_pod() -> Result<()> {
    let cluster = Cluster::builder("containers-share").nodes(1).start()?;
    let pod = cluster.pod("node-a", "pair").sidecar(9090).start()?;
    for (loopback, v6) in [("127.0.0.1", false), ("::1", true)] {
        for port in [PORT, 9090] {
            let to = SocketAddr::new(loopback.parse()?, port);
            let answers = ask(|program| pod.command(program), to, By::Http, 1)?;
            ensure!(answers[0].server == "pair", "{answers:?}");
            let to = SocketAddr::new(pod.address(v6), port);
            ask(|program| cluster.node("node-a").command(program), to, By::Http, 1)?;
        }
    }
    cluster.delete_pod(pod.name())?;
    cluster.stop()
}

fn ping(client: &Pod, to: IpAddr) -> Result<()> {
    client.command("ping").args(["-c3", "-i0.2", "-W2", &to.to_string()]).text().map(drop)
}

fn mtu(pod: &Pod) -> Result<usize> {
    let text = pod.command("ip").args(["-json", "link", "show", "eth0"]).text()?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let mtu = links[0]["mtu"].as_u64().and_then(|mtu| usize::try_from(mtu).ok());
    mtu.ok_or_else(|| anyhow::anyhow!("no mtu in {text}"))
}
