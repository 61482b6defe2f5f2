//! A node that is nothing but a kernel VXLAN device.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use quilla_plan::tunnel::mac_of;
use quilla_tests::ask::{By, ask, echo};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::{Daemon, Run};
use quilla_tests::netns::Netns;
use quilla_tests::{binary, eventually};
use serde_json::json;

use super::{PORT, STREAM, no_wrong_checksums, start};

/// Its Pods, the only one included.
const CIDRS: [&str; 2] = ["10.244.200.0/24", "fd00:244:0:200::/64"];
const POD: [&str; 2] = ["10.244.200.2", "fd00:244:0:200::2"];
/// Its tunnel end.
const END: [&str; 2] = ["192.168.77.100", "fd77::100"];

/// Packet by packet the same overlay: a Pod of ours and one behind a kernel VXLAN device reach each other, over IPv4 and
/// over IPv6, in both families and in bulk.
pub(crate) fn a_plain_vxlan_device_is_a_node() -> Result<()> {
    for v6 in [false, true] {
        let name = if v6 { "overlay-plain6" } else { "overlay-plain4" };
        let cluster = start(name, 1, &["--encapsulation", "direct"])?;
        let (netns, server) = plain_node(&cluster, name, v6)?;
        let pod = cluster.pod("node-a", "pod").start()?;
        let node = cluster.node("node-a");
        for text in POD {
            let there = SocketAddr::new(text.parse()?, PORT);
            let here = SocketAddr::new(pod.address(there.is_ipv6()), PORT);
            eventually::succeeds("the plain node is known", || {
                ask(|program| pod.command(program), there, By::Http, 1)
            })?;
            echo(|program| pod.command(program), there, By::Http, STREAM)?;
            echo(|program| netns.command(program), here, By::Http, STREAM)?;
            for by in By::ALL {
                ask(|program| netns.command(program), here, by, 3)?;
                ask(|program| pod.command(program), there, by, 3)?;
            }
            pod.command("ping").args(["-c2", "-i0.2", "-W2", text]).text()?;
            // The node's own stack, by its device.
            ask(|program| node.command(program), there, By::Http, 1)?;
        }
        no_wrong_checksums(|program| pod.command(program))?;
        no_wrong_checksums(|program| netns.command(program))?;
        drop(server);
        cluster.stop()?;
    }
    Ok(())
}

/// Makes it, and a server on its Pod's addresses.
fn plain_node(cluster: &Cluster, name: &str, v6: bool) -> Result<(Netns, Daemon)> {
    let netns = Netns::create(&format!("{name}.plain"))?;
    let object = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "plain"},
        "spec": {"podCIDR": CIDRS[0], "podCIDRs": CIDRS},
    });
    cluster.apply(&object.to_string())?;
    let end = END[usize::from(v6)];
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": end}]}}).to_string();
    cluster.kubectl(&["patch", "node", "plain", "--subresource=status", "--type=merge", "-p", &status])?;
    cluster.fabric().ip(&format!(
        "link add plain type veth peer name eth0 netns {}\nlink set plain master br0 up",
        netns.name()
    ))?;
    let far = cluster.node("node-a").addresses()[usize::from(v6)];
    let sums = if v6 { "udp6zerocsumtx udp6zerocsumrx" } else { "noudpcsum" };
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let (own, peer) = (text(mac_of("plain")), text(mac_of("node-a")));
    netns.ip(&format!(
        "link set eth0 mtu 1500 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
         link add vx type vxlan id 1 dstport 8472 remote {far} local {end} nolearning {sums}\n\
         link set vx address {own} mtu 1430 up",
        END[0], END[1]
    ))?;
    // It resolves nobody: everybody it knows is node-a's.
    for (index, (pod, range)) in POD.into_iter().zip(["10.244.0.0/16", "fd00:244::/48"]).enumerate() {
        let (length, flags) = if index == 0 { (32, "") } else { (128, "nodad") };
        let via: IpAddr = ["169.254.7.7", "fe80::7"][index].parse()?;
        netns.ip(&format!(
            "addr add {pod}/{length} dev vx {flags}\nneigh add {via} lladdr {peer} dev vx nud permanent\n\
             route add {range} via {via} dev vx onlink src {pod}"
        ))?;
    }
    let program = binary::path("quilla-pod")?;
    let mut server = netns.command(&program.to_string_lossy());
    let log = cluster.files().join("plain.log");
    let server = Daemon::start("plain", server.args(["--name", "plain", "--port", &PORT.to_string()]), &log)?;
    Ok((netns, server))
}
