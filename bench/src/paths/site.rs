//! The networks of the peers: namespaces of their own for each, with everything in them static.
//!
//! Ends have an MTU of 1500 everywhere, so that all paths carry the same segments; the underlay below an overlay has room
//! for its headers. No neighbour is ever looked up, and there is no IPv6. Invariant: host sides of Pods and overlay
//! devices that programs redirect from have [`GATEWAY_MAC`], so that a redirected packet counts as the host's own.

mod flannel;
mod overlay;
pub(super) mod program;
mod same_node;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::Result;
use aya::Ebpf;
use quilla_tests::cgroup::Cgroup;
use quilla_tests::netns::Netns;
use quilla_tests::sandbox::Sandbox;

use super::contender::{Contender, Ends, Group};
use super::quiet::Core;

pub(super) const MTU: u32 = 1500;
/// [`MTU`] and the headers of VXLAN over IPv4.
pub(super) const UNDERLAY_MTU: u32 = MTU + 50;

/// Names of peers, by which targets find them.
pub(super) const DIRECT: &str = "direct veth";
pub(super) const REDIRECT_PEER: &str = "bare redirect_peer";
pub(super) const HOST_ROUTING: &str = "host routing";
pub(super) const NODE_TO_NODE: &str = "node to node";
pub(super) const KERNEL_VXLAN: &str = "kernel VXLAN";
pub(super) const COLLECT_METADATA: &str = "collect metadata";
pub(super) const BARE_ENCAPSULATION: &str = "bare encapsulation";
pub(super) const FLANNEL: &str = "Flannel-shaped";

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 2);
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 9, 1, 3);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 9, 2, 3);
const NODES: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 31, 0, 1), Ipv4Addr::new(172, 31, 0, 2)];

/// Index of both ends of a wire.
const UNDERLAY: u32 = 31;

const GATEWAY: &str = "169.254.1.1";
const GATEWAY_MAC: &str = "02:00:00:00:00:01";

/// What a peer consists of.
struct Site {
    namespaces: Vec<Netns>,
    programs: Vec<Ebpf>,
    ends: Vec<Ends>,
}

impl Site {
    fn path(&self, namespace: usize) -> PathBuf {
        self.namespaces[namespace].path().to_owned()
    }

    /// Adds a path between two of the namespaces.
    fn between(mut self, group: Group, [client, server]: [usize; 2], address: Ipv4Addr) -> Self {
        let (client, server) = (self.path(client), self.path(server));
        self.ends.push(Ends { group, client, server, address: IpAddr::V4(address) });
        self
    }
}

impl From<Vec<Netns>> for Site {
    fn from(namespaces: Vec<Netns>) -> Self {
        Self { namespaces, programs: Vec::new(), ends: Vec::new() }
    }
}

/// What must live as long as the peers' paths.
pub(super) struct Kept {
    _programs: Vec<Ebpf>,
    _namespaces: Vec<Netns>,
    _cgroups: Cgroups,
}

/// Where the peers' processes are: as deep as the product's, and those of two nodes apart, because it costs time to
/// change from a cgroup to another.
struct Cgroups {
    pods: [Cgroup; 2],
    // Dropped after those that it contains.
    _above: Vec<Cgroup>,
}

impl Cgroups {
    fn create() -> Result<Self> {
        let peers = Cgroup::create(&Sandbox::current()?.cgroup().join("peers"))?;
        let nodes = [peers.child("node-a")?, peers.child("node-b")?];
        let pods = [nodes[0].child("pods")?, nodes[1].child("pods")?];
        let mut above = Vec::from(nodes);
        above.push(peers);
        Ok(Self { pods, _above: above })
    }

    /// For client and server.
    fn of(&self, group: Group) -> [&Path; 2] {
        let server = usize::from(group == Group::BetweenNodes);
        [self.pods[0].path(), self.pods[server].path()]
    }
}

/// Builds all peers of the groups.
pub(super) fn peers(groups: &[Group], core: &Core) -> Result<(Vec<Contender>, Kept)> {
    use Group::{BetweenNodes, SameNode};
    type Build = fn() -> Result<Site>;
    let all: [(&str, &[Group], Build); 8] = [
        (DIRECT, &[SameNode], same_node::direct),
        (REDIRECT_PEER, &[SameNode], same_node::redirect_peer),
        (HOST_ROUTING, &[SameNode], same_node::host_routing),
        (NODE_TO_NODE, &[BetweenNodes], overlay::node_to_node),
        (KERNEL_VXLAN, &[BetweenNodes], overlay::kernel_vxlan),
        (COLLECT_METADATA, &[BetweenNodes], overlay::collect_metadata),
        (BARE_ENCAPSULATION, &[BetweenNodes], overlay::bare_encapsulation),
        (FLANNEL, &[SameNode, BetweenNodes], flannel::build),
    ];
    let cgroups = Cgroups::create()?;
    let (mut contenders, mut programs, mut namespaces) = (Vec::new(), Vec::new(), Vec::new());
    for (name, of, build) in all {
        if !of.iter().any(|group| groups.contains(group)) {
            continue;
        }
        let site = build()?;
        let crossed: Vec<PathBuf> = site.namespaces.iter().map(|one| one.path().to_owned()).collect();
        for ends in site.ends.into_iter().filter(|ends| groups.contains(&ends.group)) {
            let places = cgroups.of(ends.group);
            contenders.push(Contender::peer(name, ends, crossed.clone(), places, core)?);
        }
        programs.extend(site.programs);
        namespaces.extend(site.namespaces);
    }
    Ok((contenders, Kept { _programs: programs, _namespaces: namespaces, _cgroups: cgroups }))
}

/// A namespace with IPv4 alone.
fn host(name: &str) -> Result<Netns> {
    let netns = Netns::create(name)?;
    for place in ["all", "default"] {
        netns.sysctl(&format!("net.ipv6.conf.{place}.disable_ipv6"), "1")?;
        netns.sysctl(&format!("net.ipv4.conf.{place}.rp_filter"), "0")?;
    }
    Ok(netns)
}

/// A Pod behind `h{index}`, a device with that index, of the node.
fn pod(node: &Netns, name: &str, address: Ipv4Addr, index: u32) -> Result<Netns> {
    let pod = host(name)?;
    let mac = format!("02:00:00:00:02:{index:02x}");
    node.ip(&format!(
        "link add h{index} index {index} address {GATEWAY_MAC} mtu {MTU} type veth \
         peer name eth0 address {mac} mtu {MTU} netns {name}\n\
         link set h{index} up\n\
         route add {address}/32 dev h{index}\n\
         neigh add {address} lladdr {mac} dev h{index} nud permanent"
    ))?;
    pod.ip(&format!(
        "link set eth0 up\n\
         addr add {address}/32 dev eth0\n\
         route add {GATEWAY}/32 dev eth0\n\
         route add default via {GATEWAY}\n\
         neigh add {GATEWAY} lladdr {GATEWAY_MAC} dev eth0 nud permanent"
    ))?;
    Ok(pod)
}

/// Two hosts with a wire between their `eth0`.
fn wired(names: [&str; 2], addresses: [Ipv4Addr; 2], mtu: u32) -> Result<[Netns; 2]> {
    let hosts = [host(names[0])?, host(names[1])?];
    let mac = |end| end_mac(end).map(|byte| format!("{byte:02x}")).join(":");
    hosts[0].ip(&format!(
        "link add eth0 index {UNDERLAY} address {} mtu {mtu} type veth \
         peer name eth0 index {UNDERLAY} address {} mtu {mtu} netns {}",
        mac(0),
        mac(1),
        names[1]
    ))?;
    for (own, other) in [(0, 1), (1, 0)] {
        hosts[own].ip(&format!(
            "link set eth0 up\n\
             addr add {}/24 dev eth0\n\
             neigh add {} lladdr {} dev eth0 nud permanent",
            addresses[own],
            addresses[other],
            mac(other)
        ))?;
    }
    Ok(hosts)
}

/// The Ethernet address of an end of a wire.
fn end_mac(end: usize) -> [u8; 6] {
    [2, 0, 0, 0, 1, u8::from(end != 0)]
}

fn forward(node: &Netns) -> Result<()> {
    node.sysctl("net.ipv4.ip_forward", "1")
}
