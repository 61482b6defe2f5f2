//! The other nodes' tunnel ends. Called by [`crate::plan()`].

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use quilla_abi::Mac;
use quilla_model::address::unusable;
use quilla_model::{Node, ObjectRef, Problem, Reason, Snapshot};

use crate::desired::Tunnel;
use crate::facts::NodeFacts;
use crate::routing::{Path, Why, path};

/// The other nodes with a usable address and how packets get to them: what [`crate::plan()`] makes of the same facts.
pub fn tunnels(snapshot: &Snapshot, facts: &NodeFacts) -> BTreeMap<String, Tunnel> {
    plan(snapshot, facts, &mut Vec::new())
}

/// A tunnel to each other node with a usable address; of two nodes with one address the first by name has it.
pub(crate) fn plan(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Tunnel> {
    let mut owners: HashMap<IpAddr, &str> =
        facts.addresses.iter().map(|&a| (a, facts.name.as_str())).collect();
    let own = own_ends(snapshot, facts);
    let mut tunnels = BTreeMap::new();
    for node in snapshot.nodes.values().filter(|node| node.name != facts.name) {
        let mut tunnel = tunnel_to(node, &mut owners, problems);
        tunnel.path_ipv4 = path(facts, own.0.map(IpAddr::V4), tunnel.ipv4.map(IpAddr::V4));
        tunnel.path_ipv6 = path(facts, own.1.map(IpAddr::V6), tunnel.ipv6.map(IpAddr::V6));
        if tunnel.ipv4.is_some() || tunnel.ipv6.is_some() {
            tunnels.insert(node.name.clone(), tunnel);
        } else {
            let object = ObjectRef::cluster("Node", &node.name);
            problems.push(Problem::new(object, Reason::Missing, "no usable InternalIP for the overlay"));
        }
    }
    tunnels
}

fn tunnel_to<'a>(
    node: &'a Node,
    owners: &mut HashMap<IpAddr, &'a str>,
    problems: &mut Vec<Problem>,
) -> Tunnel {
    let unknown = Path::Overlay(Why::NoAddress);
    let mac = mac_of(&node.name);
    let mut tunnel = Tunnel { ipv4: None, ipv6: None, mac, path_ipv4: unknown, path_ipv6: unknown };
    for &address in &node.addresses {
        let object = || ObjectRef::cluster("Node", &node.name);
        if let Some(why) = unusable(address) {
            let detail = format!("InternalIP {address}: {why}");
            problems.push(Problem::new(object(), Reason::UnusableAddress, detail));
            continue;
        }
        let owner = *owners.entry(address).or_insert(&node.name);
        if owner != node.name {
            let detail = format!("InternalIP {address} belongs to {owner} and is left out");
            problems.push(Problem::new(object(), Reason::Conflict, detail));
            continue;
        }
        match address {
            IpAddr::V4(v4) => tunnel.ipv4 = tunnel.ipv4.or(Some(v4)),
            IpAddr::V6(v6) => tunnel.ipv6 = tunnel.ipv6.or(Some(v6)),
        }
    }
    tunnel
}

/// This node's tunnel ends, where it has the addresses by which other nodes know it.
pub fn own_ends(snapshot: &Snapshot, facts: &NodeFacts) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let (ipv4, ipv6) = named_ends(snapshot, facts);
    let has = |address: IpAddr| facts.addresses.contains(&address);
    (ipv4.filter(|address| has((*address).into())), ipv6.filter(|address| has((*address).into())))
}

/// This node's tunnel ends as the other nodes take them from its Node object.
pub(crate) fn named_ends(snapshot: &Snapshot, facts: &NodeFacts) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let named = snapshot.nodes.get(&facts.name).map_or(&[][..], |node| &node.addresses);
    let mut usable = named.iter().copied().filter(|address| unusable(*address).is_none());
    let ipv4 = usable.clone().find_map(|address| match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    });
    let ipv6 = usable.find_map(|address| match address {
        IpAddr::V6(v6) => Some(v6),
        IpAddr::V4(_) => None,
    });
    (ipv4, ipv6)
}

/// The Ethernet address of a node's overlay device: locally administered, made from the node's name.
///
/// Every node can work out every other's, so nothing has to be published. They must differ, because the kernel's VXLAN
/// driver drops a frame whose source is its own address.
pub fn mac_of(node: &str) -> Mac {
    let hash = node.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3) // FNV-1a
    });
    let mut mac = [0x0a; 6];
    mac[1..].copy_from_slice(&(hash ^ (hash >> 40)).to_le_bytes()[..5]);
    mac
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;
    use std::sync::Arc;

    use quilla_model::{Node, Snapshot};

    use quilla_abi::config::flag;

    use super::{mac_of, own_ends};
    use crate::facts::NodeFacts;

    /// E20: the outer source is the address by which the other nodes know this one, or the tunnel is not made here.
    #[test]
    fn own_tunnel_ends_are_those_of_the_node_object() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let node = Node {
            name: "here".into(),
            addresses: ["fe80::1", "192.0.2.2", "192.0.2.1", "2001:db8::1"].map(address).into(),
            pod_cidrs: vec![],
            zone: None,
            leaving: false,
        };
        let snapshot = Snapshot { nodes: [("here".into(), Arc::new(node))].into(), ..Snapshot::default() };
        let ends = |own: &[&str]| {
            let addresses = own.iter().map(|text| address(text)).collect();
            own_ends(&snapshot, &NodeFacts { addresses, ..NodeFacts::new("here") })
        };
        let (v4, v6) = ([192, 0, 2, 2].into(), "2001:db8::1".parse().unwrap());
        assert_eq!(ends(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]), (Some(v4), Some(v6)));
        assert_eq!(ends(&["192.0.2.1"]), (None, None), "peers know it by another address");
        let flags = |own: &[&str]| {
            let addresses = own.iter().map(|text| address(text)).collect();
            let facts = NodeFacts { addresses, ..NodeFacts::new("here") };
            facts.config(&snapshot).flags & (flag::TRANSLATED_V4 | flag::TRANSLATED_V6)
        };
        assert_eq!(flags(&["192.0.2.2", "2001:db8::1"]), 0);
        assert_eq!(flags(&["192.0.2.1", "2001:db8::1"]), flag::TRANSLATED_V4);
        assert_eq!(flags(&["192.0.2.2"]), flag::TRANSLATED_V6);
        assert_eq!(own_ends(&snapshot, &NodeFacts::new("there")), (None, None));
    }

    #[test]
    fn vtep_addresses_are_unicast_local_and_different() {
        let macs: BTreeSet<_> = (0..8192).map(|number| mac_of(&format!("node-{number}"))).collect();
        assert_eq!(macs.len(), 8192);
        assert!(macs.iter().all(|mac| mac[0] & 0b11 == 0b10));
    }
}
