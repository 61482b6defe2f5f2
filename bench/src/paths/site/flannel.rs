//! Two nodes as Flannel leaves them: a bridge for the Pods, a routed VXLAN device, rules for masquerading and forwarding.
//!
//! Frames on the bridge go through the rules too, as Kubernetes asks of a node. None of kube-proxy's rules are here: these
//! nodes have no Services.

use std::net::Ipv4Addr;

use anyhow::Result;
use quilla_tests::command::Run;
use quilla_tests::netns::Netns;

use super::overlay::routed_overlay;
use super::{CLIENT, FAR, MTU, NEAR, NODES, Site, UNDERLAY_MTU, forward, host, wired};
use crate::paths::contender::Group;

/// All Pods.
const CLUSTER: &str = "10.9.0.0/16";

pub(super) fn build() -> Result<Site> {
    let nodes = wired(["flannel-a", "flannel-b"], NODES, UNDERLAY_MTU)?;
    for (own, node) in nodes.iter().enumerate() {
        let gateway = gateway(own);
        node.ip(&format!(
            "link add cni0 mtu {MTU} type bridge\n\
             link set cni0 up\n\
             addr add {gateway}/24 dev cni0"
        ))?;
        forward(node)?;
        node.sysctl("net.bridge.bridge-nf-call-iptables", "1")?;
        routed_overlay(node, own)?;
        node.command("iptables-restore").text_from(&rules(own))?;
    }
    let client = pod(&nodes[0], "flannel-client", CLIENT, gateway(0), 11)?;
    let near = pod(&nodes[0], "flannel-near", NEAR, gateway(0), 12)?;
    let far = pod(&nodes[1], "flannel-far", FAR, gateway(1), 11)?;
    let mut namespaces = Vec::from(nodes);
    namespaces.extend([client, near, far]);
    let site = Site::from(namespaces).between(Group::SameNode, [2, 3], NEAR);
    Ok(site.between(Group::BetweenNodes, [2, 4], FAR))
}

fn gateway(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, if node == 0 { 1 } else { 2 }, 1)
}

/// A Pod on the bridge; bridge and neighbours learn by themselves there.
fn pod(node: &Netns, name: &str, address: Ipv4Addr, gateway: Ipv4Addr, index: u32) -> Result<Netns> {
    let pod = host(name)?;
    node.ip(&format!(
        "link add h{index} mtu {MTU} type veth peer name eth0 mtu {MTU} netns {name}\n\
         link set h{index} master cni0 up"
    ))?;
    pod.ip(&format!(
        "link set eth0 up\n\
         addr add {address}/24 dev eth0\n\
         route add default via {gateway}"
    ))?;
    Ok(pod)
}

fn rules(node: usize) -> String {
    let own = format!("10.9.{}.0/24", node + 1);
    format!(
        "*nat\n\
         :MASQ - [0:0]\n\
         -A POSTROUTING -j MASQ\n\
         -A MASQ -m mark --mark 0x4000/0x4000 -j RETURN\n\
         -A MASQ -s {own} -d {CLUSTER} -j RETURN\n\
         -A MASQ -s {CLUSTER} -d {own} -j RETURN\n\
         -A MASQ ! -s {CLUSTER} -d {own} -j RETURN\n\
         -A MASQ -s {CLUSTER} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n\
         -A MASQ ! -s {CLUSTER} -d {CLUSTER} -j MASQUERADE --random-fully\n\
         COMMIT\n\
         *filter\n\
         :FWD - [0:0]\n\
         -A FORWARD -j FWD\n\
         -A FWD -s {CLUSTER} -j ACCEPT\n\
         -A FWD -d {CLUSTER} -j ACCEPT\n\
         COMMIT\n"
    )
}
