//! Peers of the path between nodes: two nodes with a veth for an underlay.
//!
//! Outer headers have no UDP checksum in any of them, as in the product.

use std::net::Ipv4Addr;

use anyhow::Result;
use quilla_tests::command::Run;
use quilla_tests::netns::Netns;

use super::program::{attach, in_tunnel, out_of_tunnel, to_node, to_peer_of};
use super::{
    CLIENT, FAR, GATEWAY_MAC, MTU, NODES, Site, UNDERLAY, UNDERLAY_MTU, end_mac, forward, pod, wired,
};
use crate::paths::contender::Group;

const VNI: u32 = 42;
const PORT: u16 = 8472;

/// Index of the overlay device of a node.
const OVERLAY: u32 = 21;

/// The hosts themselves: what no overlay can be faster than.
pub(super) fn node_to_node() -> Result<Site> {
    let nodes = wired(["host-client", "host-far"], NODES, MTU)?;
    Ok(Site::from(Vec::from(nodes)).between(Group::BetweenNodes, [0, 1], NODES[1]))
}

/// The kernel's VXLAN device with a route, a neighbour and a forwarding entry for the other node.
pub(super) fn kernel_vxlan() -> Result<Site> {
    let site = nodes("vxlan")?;
    for own in [0, 1] {
        forward(&site.namespaces[own])?;
        routed_overlay(&site.namespaces[own], own)?;
    }
    Ok(site)
}

/// One device for all nodes, to which a program tells where each packet goes.
pub(super) fn collect_metadata() -> Result<Site> {
    let mut site = nodes("metadata")?;
    for own in [0, 1] {
        let node = &site.namespaces[own];
        node.ip(&format!(
            "link add vx0 index {OVERLAY} address {GATEWAY_MAC} mtu {MTU} type vxlan external dstport {PORT}\n\
             link set vx0 up"
        ))?;
        let out = attach(node, "h11", &to_node(NODES[1 - own], VNI, OVERLAY))?;
        let back = attach(node, "vx0", &to_peer_of(11))?;
        site.programs.extend([out, back]);
    }
    Ok(site)
}

/// Room for outer headers, constants in it, and away with it: what direct encapsulation costs the kernel.
pub(super) fn bare_encapsulation() -> Result<Site> {
    let mut site = nodes("bare")?;
    for own in [0, 1] {
        let node = &site.namespaces[own];
        let out = attach(node, "h11", &in_tunnel(end_mac(1 - own), UNDERLAY))?;
        let back = attach(node, "eth0", &out_of_tunnel(11))?;
        site.programs.extend([out, back]);
    }
    Ok(site)
}

/// Two nodes with a Pod each, which do not reach each other yet.
fn nodes(name: &str) -> Result<Site> {
    let [a, b] = wired([&format!("{name}-a"), &format!("{name}-b")], NODES, UNDERLAY_MTU)?;
    let client = pod(&a, &format!("{name}-client"), CLIENT, 11)?;
    let far = pod(&b, &format!("{name}-far"), FAR, 11)?;
    Ok(Site::from(vec![a, b, client, far]).between(Group::BetweenNodes, [2, 3], FAR))
}

/// The overlay device of a node, and the way to the other node's Pods.
pub(super) fn routed_overlay(node: &Netns, own: usize) -> Result<()> {
    let other = 1 - own;
    let mac = |end: usize| format!("02:00:00:00:03:{end:02x}");
    // The first address of a node's Pods is the overlay device's.
    let network = |end: usize| Ipv4Addr::new(10, 9, if end == 0 { 1 } else { 2 }, 0);
    node.ip(&format!(
        "link add vx0 index {OVERLAY} address {} mtu {MTU} type vxlan id {VNI} dev eth0 local {} dstport {PORT} nolearning noudpcsum\n\
         link set vx0 up\n\
         addr add {}/32 dev vx0\n\
         neigh add {} lladdr {} dev vx0 nud permanent\n\
         route add {}/24 via {} dev vx0 onlink",
        mac(own),
        NODES[own],
        network(own),
        network(other),
        mac(other),
        network(other),
        network(other),
    ))?;
    let mut bridge = node.command("bridge");
    bridge.args(["fdb", "append", &mac(other), "dev", "vx0", "dst", &NODES[other].to_string()]);
    bridge.text().map(drop)
}
