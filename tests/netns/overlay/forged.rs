//! Tunnels that a Pod makes up (E19, E20).

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quilla_tests::command::Run;
use quilla_tests::eventually;
use quilla_tests::netns::run_inside;
use quilla_tests::node::Node;
use quilla_tests::packet::Packet;
use quilla_tests::pod::Pod;
use serde_json::Value;

use super::start;
use crate::mtu::drops;

/// Where the overlay listens, and its network.
const OVERLAY: u16 = 8472;
const VNI: u8 = 1;
const PORT: u16 = 7000;
/// Addresses of a node that are no tunnel's end; the kernel's VXLAN socket hears them as well.
const OTHERS: [&str; 2] = ["192.168.77.211", "fd77::d3"];

/// E19, E20: a Pod sends whole tunnel frames to every address of another node, in which a Pod beside it seems to speak.
/// Nobody hears them, and they are counted.
pub(crate) fn pods_reach_no_tunnel_by_any_address() -> Result<()> {
    for mode in ["direct", "device"] {
        let cluster = start(&format!("forged-{mode}"), 2, &["--encapsulation", mode])?;
        let pods = [("node-a", "liar"), ("node-a", "beside"), ("node-b", "far")];
        let [liar, beside, far] = pods.map(|(node, name)| cluster.pod(node, name).start());
        let (liar, beside, far) = (liar?, beside?, far?);
        let node = cluster.node("node-b");
        node.netns()
            .ip(&format!("addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad", OTHERS[0], OTHERS[1]))?;
        for v6 in [false, true] {
            let [from, to] = [&beside, &far].map(|pod| SocketAddr::new(pod.address(v6), PORT));
            let inner =
                Packet::udp(from, to).payload(b"forged").macs(mac(cluster.node("node-a"))?, mac(node)?);
            let mut frame = vec![8, 0, 0, 0, 0, 0, VNI, 0];
            frame.extend(inner.build());
            let listener = run_inside(far.netns(), || UdpSocket::bind(to))??;
            listener.set_read_timeout(Some(Duration::from_millis(200)))?;
            for address in node.addresses().into_iter().chain(others()?) {
                let before = drops(&cluster)?;
                let sent = send(&liar, SocketAddr::new(address, OVERLAY), &frame);
                sent.with_context(|| format!("{mode}: send to {address}"))?;
                eventually::succeeds(&format!("{mode}: a frame to {address} is counted"), || {
                    let after = drops(&cluster)?;
                    let forged = |name: &&str| {
                        ["forged_overlay", "bad_tunnel_header"].iter().any(|r| name.contains(r))
                    };
                    ensure!(after.since(&before).keys().any(forged), "{after:?}");
                    Ok(())
                })?;
            }
            ensure!(listener.recv(&mut [0; 64]).is_err(), "{mode}: a forged datagram was heard");
        }
        cluster.stop()?;
    }
    Ok(())
}

fn others() -> Result<Vec<IpAddr>> {
    OTHERS.iter().map(|address| Ok(address.parse()?)).collect()
}

fn send(from: &Pod, to: SocketAddr, frame: &[u8]) -> Result<usize> {
    let own = SocketAddr::new(from.address(to.is_ipv6()), 0);
    run_inside(from.netns(), || Ok(UdpSocket::bind(own)?.send_to(frame, to)?))?
}

/// The Ethernet address of a node's overlay device.
fn mac(node: &Node) -> Result<[u8; 6]> {
    let text = node.command("ip").args(["-json", "link", "show", "quilla_vxlan"]).text()?;
    let links: Value = serde_json::from_str(&text)?;
    let address = links[0]["address"].as_str().context("an address")?;
    let bytes = address.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().ok().context("six bytes")
}
