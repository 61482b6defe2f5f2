//! The other nodes' tunnel ends. Called by [`crate::plan()`].

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use quilla_abi::Mac;
use quilla_model::address::unusable;
use quilla_model::{Node, ObjectRef, Problem, Reason, Snapshot};

use crate::desired::Tunnel;
use crate::facts::NodeFacts;

/// A tunnel to each other node with a usable address; of two nodes with one address the first by name has it.
pub(crate) fn plan(
    snapshot: &Snapshot,
    facts: &NodeFacts,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, Tunnel> {
    let mut owners: HashMap<IpAddr, &str> =
        facts.addresses.iter().map(|&a| (a, facts.name.as_str())).collect();
    let mut tunnels = BTreeMap::new();
    for node in snapshot.nodes.values().filter(|node| node.name != facts.name) {
        let tunnel = tunnel_to(node, &mut owners, problems);
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
    let mut tunnel = Tunnel { ipv4: None, ipv6: None, mac: mac_of(&node.name) };
    for &address in &node.addresses {
        let object = || ObjectRef::cluster("Node", &node.name);
        if let Some(why) = unusable(address) {
            let detail = format!("InternalIP {address}: {why}");
            problems.push(Problem::new(object(), Reason::UnusableAddress, detail));
            continue;
        }
        let owner = *owners.entry(address).or_insert(&node.name);
        if owner != node.name {
            let detail = format!("InternalIP {address} belongs to {owner}");
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

    use super::mac_of;

    #[test]
    fn vtep_addresses_are_unicast_local_and_different() {
        let macs: BTreeSet<_> = (0..8192).map(|number| mac_of(&format!("node-{number}"))).collect();
        assert_eq!(macs.len(), 8192);
        assert!(macs.iter().all(|mac| mac[0] & 0b11 == 0b10));
    }
}
