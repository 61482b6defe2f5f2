//! Programs of a Pod that another tool removes: what they forbid stays forbidden, but for the moment until they are back.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::counters::Counters;
use quilla_tests::eventually;
use quilla_tests::netns::run_inside;
use quilla_tests::node::Node;
use quilla_tests::pod::Pod;
use serde_json::Value;

/// How another tool may do it; `DEVICE` is the Pod's.
const WAYS: [&str; 3] =
    ["qdisc del dev DEVICE clsact", "filter del dev DEVICE ingress", "filter del dev DEVICE egress prio 1"];

/// An address that is not the Pod's.
const STOLEN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// The host side of a Pod's interface.
pub(crate) fn device(node: &Node, pod: &str) -> Result<String> {
    let rows: Vec<Value> = serde_json::from_str(&node.quilla(&["-o", "json", "endpoints"])?)?;
    let row = rows.iter().find(|row| row["pod"] == pod).with_context(|| format!("no endpoint {pod}"))?;
    Ok(row["device"].as_str().context("its device")?.to_owned())
}

/// A Pod that says it is somebody else, and where that would be heard.
struct Liar<'c> {
    node: &'c Node,
    sender: UdpSocket,
    receiver: UdpSocket,
}

impl<'c> Liar<'c> {
    fn new(node: &'c Node, pod: &Pod) -> Result<Self> {
        let home = node.addresses().into_iter().find(IpAddr::is_ipv4).context("an address of the node")?;
        let receiver = node.netns().run(|| UdpSocket::bind((home, 0)))?.context("listen")?;
        receiver.set_read_timeout(Some(Duration::from_millis(500))).context("limit the wait")?;
        pod.command("ip").args(["address", "add", &format!("{STOLEN}/32"), "dev", "lo"]).text()?;
        let sender = run_inside(pod.netns(), || UdpSocket::bind((STOLEN, 0)))?.context("bind")?;
        Ok(Self { node, sender, receiver })
    }

    /// Whether what it says arrives.
    fn is_heard(&self) -> Result<bool> {
        let to = self.receiver.local_addr().context("the receiver's address")?;
        self.sender.send_to(b"lie", to).context("send")?;
        match self.receiver.recv(&mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error).context("receive"),
        }
    }

    /// How many lies were dropped as such.
    fn caught(&self) -> Result<Counters> {
        let reason = "quilla_agent_drops_total{reason=\"spoofed_address\"";
        Ok(Counters::of_metrics(&self.node.metrics()?, reason))
    }
}

/// What is attached to a device, by either mechanism.
fn programs(node: &Node, device: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for side in ["ingress", "egress"] {
        let text = node.command("tc").args(["filter", "show", "dev", device, side]).text()?;
        found.extend(["from_pod", "to_pod"].into_iter().filter(|name| text.contains(*name)));
    }
    for entry in std::fs::read_dir(node.bpffs().join("quilla/links")).context("list links")? {
        let name = entry.context("list links")?.file_name().to_string_lossy().into_owned();
        found.extend(
            ["from_pod", "to_pod"].into_iter().filter(|program| name == format!("{program}-{device}")),
        );
    }
    Ok(found.into_iter().map(str::to_owned).collect())
}

/// E19: however another tool removes the programs of a Pod, they are back as soon as the kernel says so, with no audit
/// for an hour; the Pod cannot send under another address then. A removal without an agent shows what they prevent.
pub(crate) fn programs_that_somebody_removes_come_back_at_once() -> Result<()> {
    let mut cluster = Cluster::builder("guard").nodes(1).start()?;
    let pod = cluster.pod("node-a", "liar").start()?;
    let attentive = ["--audit-interval", "3600"];
    let node = cluster.node_mut("node-a");
    node.agent()?.kill()?;
    node.start_agent_with(&attentive)?;
    node.wait_ready()?;
    let device = device(node, "liar")?;
    let remove = |node: &Node, way: &str| -> Result<()> {
        let words = way.replace("DEVICE", &device);
        node.command("tc").args(words.split(' ')).text().map(drop)
    };
    {
        let liar = Liar::new(cluster.node("node-a"), &pod)?;
        for way in WAYS {
            let before = liar.caught()?;
            remove(liar.node, way)?;
            let back = || programs(liar.node, &device);
            eventually::becomes(&format!("programs after {way}"), back, |programs| programs.len() == 2)?;
            ensure!(!liar.is_heard()?, "a lie was heard after {way}");
            let caught = liar.caught()?;
            ensure!(caught.since(&before).values().sum::<u64>() >= 1, "no lie was caught after {way}");
        }
        let restored = liar.node.metrics()?;
        let counted = format!("quilla_agent_programs_restored_total {}\n", WAYS.len());
        ensure!(restored.contains(&counted), "not {counted}: {restored}");
    }

    let node = cluster.node_mut("node-a");
    node.agent()?.kill()?;
    remove(node, WAYS[0])?;
    pod.command("ip").args(["address", "del", &format!("{STOLEN}/32"), "dev", "lo"]).text()?;
    {
        let liar = Liar::new(cluster.node("node-a"), &pod)?;
        ensure!(liar.is_heard()?, "without programs nothing keeps a lie back, or the test is deaf");
    }
    cluster.stop()
}
