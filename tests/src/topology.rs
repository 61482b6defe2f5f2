//! The machines of a cluster and the wires between them, before any component runs.
//!
//! ```text
//!   node-a      node-b      node-c          outside
//!     eth0        eth0        eth0            eth0
//!      └───────────┴─────┬─────┘               │
//!                  br0 ──┴── fabric ── world ──┘
//! ```
//!
//! `fabric` is the underlay: a bridge, the nodes' router, and the place of the control plane. It knows no address of
//! Pods or Services, so a packet that leaves a node unmasqueraded or unencapsulated is answered by nobody. `outside`
//! stands for the internet.

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::cgroup::Cgroup;
use crate::netns::Netns;

/// Address of the control plane and of the nodes' router.
pub const FABRIC: [&str; 2] = ["192.168.77.1", "fd77::1"];
/// A host beyond the router.
pub const OUTSIDE: [&str; 2] = ["203.0.113.2", "2001:db8:113::2"];

const FORWARDING: [&str; 2] = ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"];

/// The namespaces of a cluster.
#[derive(Debug)]
pub struct Topology {
    /// Underlay and control plane.
    pub fabric: Netns,
    /// Beyond the underlay.
    pub outside: Netns,
    /// The nodes, `node-a` first.
    pub nodes: Vec<Machine>,
    /// Holds the nodes' cgroups.
    pub cgroup: Cgroup,
}

/// A node's place.
#[derive(Debug)]
pub struct Machine {
    /// Name of the node.
    pub name: String,
    /// Its network.
    pub netns: Netns,
    /// One address per family.
    pub addresses: [IpAddr; 2],
    /// What the node's operator names as the root for socket hooks.
    pub cgroup: Cgroup,
}

impl Topology {
    /// Builds it; `name` prefixes the namespaces.
    pub fn build(name: &str, nodes: u8, cgroup: Cgroup) -> Result<Self> {
        let fabric = Netns::create(&format!("{name}.fabric"))?;
        for sysctl in FORWARDING {
            fabric.sysctl(sysctl, "1")?;
        }
        fabric.ip(&format!(
            "link add br0 type bridge\n\
             link set br0 mtu 1500 up\n\
             addr add {}/24 dev br0\n\
             addr add {}/64 dev br0 nodad\n",
            FABRIC[0], FABRIC[1]
        ))?;
        let outside = outside(name, &fabric)?;
        let nodes = (0..nodes).map(|index| machine(name, index, &fabric, &cgroup)).collect::<Result<_>>()?;
        Ok(Self { fabric, outside, nodes, cgroup })
    }
}

fn outside(name: &str, fabric: &Netns) -> Result<Netns> {
    let outside = Netns::create(&format!("{name}.outside"))?;
    fabric.ip(&format!(
        "link add world type veth peer name eth0 netns {}\n\
         link set world up\n\
         addr add 203.0.113.1/24 dev world\n\
         addr add 2001:db8:113::1/64 dev world nodad\n",
        outside.name()
    ))?;
    outside.ip(&format!(
        "link set eth0 up\n\
         addr add {}/24 dev eth0\n\
         addr add {}/64 dev eth0 nodad\n\
         route add default via 203.0.113.1\n\
         route add ::/0 via 2001:db8:113::1\n",
        OUTSIDE[0], OUTSIDE[1]
    ))?;
    Ok(outside)
}

fn machine(cluster: &str, index: u8, fabric: &Netns, parent: &Cgroup) -> Result<Machine> {
    let letter =
        char::from(b'a'.checked_add(index).filter(u8::is_ascii_lowercase).context("at most 26 nodes")?);
    let name = format!("node-{letter}");
    let netns = Netns::create(&format!("{cluster}.{name}"))?;
    for sysctl in FORWARDING {
        netns.sysctl(sysctl, "1")?;
    }
    let addresses = [format!("192.168.77.{}", 10 + index), format!("fd77::{}", 10 + index)];
    fabric.ip(&format!(
        "link add {name} type veth peer name eth0 netns {}\n\
         link set {name} master br0 up\n",
        netns.name()
    ))?;
    netns.ip(&format!(
        "link set eth0 mtu 1500 up\n\
         addr add {}/24 dev eth0\n\
         addr add {}/64 dev eth0 nodad\n\
         route add default via {}\n\
         route add ::/0 via {}\n",
        addresses[0], addresses[1], FABRIC[0], FABRIC[1]
    ))?;
    let addresses = [addresses[0].parse()?, addresses[1].parse()?];
    Ok(Machine { cgroup: parent.child(&name)?, name, netns, addresses })
}
