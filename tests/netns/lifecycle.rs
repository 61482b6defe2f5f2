//! Nodes that come, go, change their addresses and their uplinks, while all Pods speak to each other. Nothing reaches a Pod
//! for which it is not (E20), and in the end everything reaches everybody. What does not concern two Pods costs them no datagram.

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::counters::Counters;
use quilla_tests::eventually;
use quilla_tests::node::Node;
use quilla_tests::topology::FABRIC;
use serde_json::{Value, json};

use crate::traffic::Traffic;

/// The Pods of the first two nodes, which stay.
const PAIR: [&str; 2] = ["pod-a", "pod-b"];

/// Nodes of a control plane that stands, and no others, with a Pod on each that takes part in the traffic.
fn start(cluster: &mut Cluster, nodes: &[&str], arguments: &[&str]) -> Result<Traffic> {
    for node in nodes {
        cluster.node_mut(node).start_podlet()?;
        cluster.node_mut(node).start_agent_with(arguments)?;
    }
    let traffic = Traffic::start();
    for node in nodes {
        cluster.node_mut(node).wait_ready()?;
        traffic.join(&cluster.pod(node, &pod_of(node)).start()?)?;
    }
    traffic.flows()?;
    Ok(traffic)
}

fn pod_of(node: &str) -> String {
    node.replace("node", "pod")
}

/// E20: a node is deleted but still there, with its Pods and its programs, and another one gets its Pod CIDRs, so that the new
/// node's first Pod has the old one's addresses. Only the new one hears what is for it, and nobody hears the old one. The
/// other two nodes lose nothing. What is for the new Pod is lost until the last agent has heard of its node.
pub(crate) fn another_node_takes_the_pod_cidrs() -> Result<()> {
    for mode in ["direct", "device"] {
        let mut cluster = Cluster::builder(&format!("cidr-moves-{mode}")).nodes(4).control_plane()?;
        let arguments = ["--encapsulation", mode];
        let traffic = start(&mut cluster, &["node-a", "node-b", "node-c"], &arguments)?;
        let before = traffic.mark();
        let old = cluster.wait_pod("pod-c")?;
        let cidrs = cluster.get(&["node", "node-c"])?["spec"]["podCIDRs"].clone();

        let gone = cluster.node_mut("node-c");
        gone.kill_podlet()?;
        gone.kill_agent()?;
        traffic.abandon(old.name());
        cluster.kubectl(&["delete", "pod", old.name(), "--force", "--grace-period=0"])?;
        cluster.kubectl(&["delete", "node", "node-c"])?;
        for node in ["node-a", "node-b"] {
            knows(cluster.node(node), "node-c", None)?;
        }
        traffic.disown(old.name());
        traffic.flows()?;
        traffic.no_loss_since(before, PAIR).context("while a node went")?;

        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-d"},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        });
        cluster.apply(&node.to_string())?;
        cluster.node_mut("node-d").start_podlet()?;
        cluster.node_mut("node-d").start_agent_with(&arguments)?;
        cluster.node_mut("node-d").wait_ready()?;
        let new = cluster.pod("node-d", "pod-d").start()?;
        ensure!(new.addresses() == old.addresses(), "{:?} and {:?}", new.addresses(), old.addresses());
        traffic.join(&new)?;
        for _ in 0..5 {
            traffic.flows()?;
        }
        traffic.no_loss_since(before, PAIR).context("while a node came")?;
        let metrics = cluster.node("node-a").metrics()?;
        let strangers =
            Counters::of_metrics(&metrics, "quilla_agent_drops_total{reason=\"unknown_tunnel_source\"}");
        ensure!(!strangers.since(&Counters::default()).is_empty(), "the old node's Pod did not speak");
        let (sent, lost) = traffic.finish()?;
        println!("{mode}: {lost} of {sent} datagrams lost");
        cluster.stop()?;
    }
    Ok(())
}

/// E20: a node gets another address, and a new node the address that it had, which costs the others no datagram; nor does the
/// end of the former one where everybody knows the new one. Before, nothing can be promised: a node takes tunnels at one
/// address, so what is sent while only one of both agents has heard of the change is refused.
pub(crate) fn an_address_changes_hands() -> Result<()> {
    for mode in ["direct", "device"] {
        let mut cluster = Cluster::builder(&format!("address-moves-{mode}")).nodes(3).control_plane()?;
        let arguments = ["--encapsulation", mode];
        let traffic = start(&mut cluster, &["node-a", "node-b"], &arguments)?;
        let former = cluster.node("node-b").addresses().map(|address| address.to_string());
        let own = ["192.168.77.21", "fd77::21"];

        let node = cluster.node("node-b").netns();
        node.ip(&format!("addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad", own[0], own[1]))?;
        // From here on nobody looks after its Pods, which stay as they are.
        cluster.node_mut("node-b").kill_podlet()?;
        announce(&cluster, "node-b", own)?;
        knows(cluster.node("node-a"), "node-b", Some(own[0]))?;
        // Twice: what is heard first may have been sent before.
        (0..2).try_for_each(|_| traffic.flows())?;
        let before = traffic.mark();
        let node = cluster.node("node-b").netns();
        node.sysctl("net.ipv4.conf.eth0.promote_secondaries", "1")?;
        node.ip(&format!("addr del {}/24 dev eth0\naddr del {}/64 dev eth0", former[0], former[1]))?;
        traffic.flows()?;
        traffic.no_loss_since(before, PAIR).context("when the former address went")?;
        let before = traffic.mark();

        let heir = cluster.node("node-c").netns();
        heir.ip(&format!(
            "addr flush dev eth0 scope global\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
             route replace default via {}\nroute replace ::/0 via {}",
            former[0], former[1], FABRIC[0], FABRIC[1]
        ))?;
        let addresses = [former[0].parse()?, former[1].parse()?];
        cluster.node_mut("node-c").announce(&addresses)?;
        cluster.node_mut("node-c").start_agent_with(&arguments)?;
        cluster.node_mut("node-c").wait_ready()?;
        traffic.join(&cluster.pod("node-c", "pod-c").start()?)?;
        for _ in 0..5 {
            traffic.flows()?;
        }
        traffic.no_loss_since(before, PAIR).context("when the former address came back")?;
        let (sent, lost) = traffic.finish()?;
        println!("{mode}: {lost} of {sent} datagrams lost");
        cluster.stop()?;
    }
    Ok(())
}

/// Has the cluster know a node by these addresses, as its podlet would.
pub(crate) fn announce(cluster: &Cluster, node: &str, addresses: [&str; 2]) -> Result<()> {
    let addresses = addresses.map(|address| json!({"type": "InternalIP", "address": address}));
    let patch = json!({"status": {"addresses": addresses}}).to_string();
    cluster.kubectl(&["patch", "node", node, "--subresource=status", "--type=merge", "-p", &patch]).map(drop)
}

/// Waits until a node's agent knows another node by an address, or not at all.
pub(crate) fn knows(node: &Node, other: &str, address: Option<&str>) -> Result<()> {
    eventually::succeeds(&format!("{} knows {other} at {address:?}", node.name()), || {
        let nodes: Vec<Value> = serde_json::from_str(&node.quilla(&["-o", "json", "nodes"])?)?;
        let found = nodes.iter().find(|node| node["node"] == other);
        let right = match (found, address) {
            (None, None) => true,
            (Some(found), Some(address)) => found.to_string().contains(&format!("\"{address}\"")),
            _ => false,
        };
        ensure!(right, "{nodes:?}");
        Ok(())
    })
}

/// E15, E20: an uplink is called something else, is made anew, and gets a second one beside it. Packets go directly wherever
/// they go, and an operator is told. Names and the second uplink cost no datagram; without an uplink nothing gets through.
pub(crate) fn uplinks_are_renamed_made_anew_and_added() -> Result<()> {
    let mut cluster = Cluster::builder("uplink-changes").nodes(2).control_plane()?;
    let arguments = ["--encapsulation", "direct", "--audit-interval", "1", "--uplink", "eth0,eth1"];
    let traffic = start(&mut cluster, &["node-a", "node-b"], &arguments)?;
    let node = cluster.node("node-a");
    problems(node, "uplink eth1")?;

    let before = traffic.mark();
    node.netns().ip("link set eth0 name wan0")?;
    problems(node, "uplink eth0, which is called wan0 now")?;
    // Audits attach to it by its new name.
    for _ in 0..5 {
        traffic.flows()?;
    }
    node.netns().ip("link set wan0 name eth0")?;
    eventually::succeeds("the name is right again", || {
        let problems = node.quilla(&["-o", "json", "problems"])?;
        ensure!(!problems.contains("wan0"), "{problems}");
        Ok(())
    })?;
    traffic.flows()?;
    traffic.no_loss_since(before, PAIR).context("by a name")?;

    cluster.fabric().ip("link del node-a")?;
    problems(node, "uplink eth0")?;
    wire(&cluster, "node-a", "eth0")?;
    traffic.flows()?;
    directly(node, &traffic)?;
    // Its hardware address is another one, of which each CPU of the other node learns when it asks next.
    traffic.settles(PAIR)?;

    let before = traffic.mark();
    cluster.fabric().ip(&format!(
        "link add node-a-2 type veth peer name eth1 netns {}\nlink set node-a-2 master br0 up",
        node.netns().name()
    ))?;
    let to = cluster.node("node-b").addresses();
    let from = node.addresses();
    node.netns().ip(&format!(
        "link set eth1 up\nroute add {}/32 dev eth1 src {}\nroute add {}/128 dev eth1 src {}",
        to[0], from[0], to[1], from[1]
    ))?;
    eventually::succeeds("the second uplink is known", || {
        let problems = node.quilla(&["-o", "json", "problems"])?;
        ensure!(!problems.contains("eth1"), "{problems}");
        Ok(())
    })?;
    // Attached to first; the way to the other node follows with the rows.
    eventually::succeeds("packets leave by the second uplink", || {
        let before = packets(node, "eth1")?;
        traffic.flows()?;
        ensure!(packets(node, "eth1")? != before, "{before:?} still");
        Ok(())
    })?;
    directly(node, &traffic)?;
    traffic.no_loss_since(before, PAIR).context("by a second uplink")?;
    let (sent, lost) = traffic.finish()?;
    println!("{lost} of {sent} datagrams lost");
    cluster.stop()
}

/// Waits until the node tells of a problem.
fn problems(node: &Node, detail: &str) -> Result<()> {
    eventually::succeeds(&format!("{} tells of {detail:?}", node.name()), || {
        let problems = node.quilla(&["-o", "json", "problems"])?;
        ensure!(problems.contains(&format!("\"{detail}\"")), "{problems}");
        Ok(())
    })
}

/// Gives a node its uplink again, as the topology made it.
fn wire(cluster: &Cluster, node: &str, device: &str) -> Result<()> {
    let place = cluster.node(node);
    let addresses = place.addresses();
    cluster.fabric().ip(&format!(
        "link add {node} type veth peer name {device} netns {}\nlink set {node} master br0 up",
        place.netns().name()
    ))?;
    place
        .netns()
        .ip(&format!(
            "link set {device} mtu 1500 up\naddr add {}/24 dev {device}\naddr add {}/64 dev {device} nodad\n\
             route add default via {}\nroute add ::/0 via {}",
            addresses[0], addresses[1], FABRIC[0], FABRIC[1]
        ))
        .map(drop)
}

/// The overlay device sends and receives nothing while everybody speaks.
fn directly(node: &Node, traffic: &Traffic) -> Result<()> {
    eventually::succeeds("packets go directly", || {
        let before = packets(node, "quilla_vxlan")?;
        traffic.flows()?;
        let after = packets(node, "quilla_vxlan")?;
        ensure!(before == after, "{before:?}, then {after:?}");
        Ok(())
    })
}

/// What a device has sent and received.
fn packets(node: &Node, device: &str) -> Result<Value> {
    let text = node.command("ip").args(["-s", "-json", "link", "show", device]).text()?;
    let links: Value = serde_json::from_str(&text)?;
    Ok(json!([links[0]["stats64"]["tx"]["packets"], links[0]["stats64"]["rx"]["packets"]]))
}
