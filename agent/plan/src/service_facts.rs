//! What the planning of one Service depends on besides the Service and its slices. Made once per plan.
//!
//! Invariant: as long as these are equal, and the Service and its slices are, so is its plan.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use quilla_model::address::unusable;
use quilla_model::{Family, Snapshot};

use crate::choice::Place;
use crate::facts::{NodeFacts, NodePortAddresses};
use crate::route::gateways;

/// The node and the cluster as one Service sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceFacts {
    /// This node's name.
    pub node: String,
    /// Its zone.
    pub zone: Option<String>,
    /// Every address of the node.
    pub addresses: BTreeSet<IpAddr>,
    /// Those that serve node ports (S23).
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Whether processes of the node reach node ports at 127.0.0.1.
    pub localhost_node_ports: bool,
    /// See [`NodeFacts::reject_without_local`].
    pub reject_without_local: bool,
    /// What Services get their addresses from.
    pub service_cidrs: Vec<IpNet>,
    /// UDP port of the overlay, which no frontend may take away from the node.
    pub overlay_port: u16,
}

impl ServiceFacts {
    /// What `snapshot` and `facts` mean for Services.
    pub fn new(snapshot: &Snapshot, facts: &NodeFacts) -> Self {
        let node = snapshot.nodes.get(&facts.name);
        let (gateway_ipv4, gateway_ipv6) = gateways(snapshot, &facts.name);
        let gateways = gateway_ipv4.map(IpAddr::V4).into_iter().chain(gateway_ipv6.map(IpAddr::V6));
        let primary = primary_addresses(snapshot, facts);
        let addresses =
            facts.addresses.iter().copied().chain(gateways).chain(primary.iter().copied()).collect();
        let (node_port_addresses, localhost_node_ports) = match &facts.node_port_addresses {
            NodePortAddresses::Primary => (primary, true),
            NodePortAddresses::Within(cidrs) => {
                let within = |address: &IpAddr| within(cidrs, *address);
                let listed = facts.addresses.iter().copied().filter(within).collect();
                (listed, within(&Ipv4Addr::LOCALHOST.into()))
            }
        };
        Self {
            node: facts.name.clone(),
            zone: node.and_then(|node| node.zone.clone()).filter(|zone| !zone.is_empty()),
            addresses,
            node_port_addresses,
            localhost_node_ports,
            reject_without_local: facts.reject_without_local,
            service_cidrs: snapshot.service_cidrs.values().flatten().copied().collect(),
            overlay_port: facts.overlay_port,
        }
    }

    /// Where the clients of this node are.
    pub(crate) fn place(&self) -> Place<'_> {
        Place { node: &self.node, zone: self.zone.as_deref() }
    }
}

/// The node's address of each family: the first in its object, else the uplink's.
fn primary_addresses(snapshot: &Snapshot, facts: &NodeFacts) -> BTreeSet<IpAddr> {
    let listed = snapshot.nodes.get(&facts.name).map_or(&[][..], |node| &node.addresses);
    let uplink = facts.host_ipv4.map(IpAddr::V4).into_iter().chain(facts.host_ipv6.map(IpAddr::V6));
    let known: Vec<IpAddr> = listed.iter().copied().chain(uplink).collect();
    let first = |family| {
        known.iter().copied().find(|address| Family::of(*address) == family && unusable(*address).is_none())
    };
    [Family::V4, Family::V6].into_iter().filter_map(first).collect()
}

/// Whether CIDRs choose an address. Of a family of which there is none, all are chosen (S23).
fn within(cidrs: &[IpNet], address: IpAddr) -> bool {
    let mut same_family = cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == address.is_ipv4()).peekable();
    same_family.peek().is_none() || same_family.any(|cidr| cidr.contains(&address))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use quilla_model::{Node, Snapshot};

    use super::ServiceFacts;
    use crate::facts::{NodeFacts, NodePortAddresses};

    fn facts(chosen: NodePortAddresses, in_object: &[&str]) -> ServiceFacts {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let node = Node {
            name: "here".into(),
            addresses: parse(in_object),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
            zone: Some("z1".into()),
            leaving: false,
        };
        let mut snapshot = Snapshot::default();
        snapshot.nodes.insert("here".into(), Arc::new(node));
        let facts = NodeFacts {
            addresses: parse(&["192.0.2.7", "198.51.100.7", "10.244.1.1", "2001:db8::7"]),
            host_ipv4: Some([192, 0, 2, 7].into()),
            host_ipv6: Some("2001:db8::7".parse().unwrap()),
            node_port_addresses: chosen,
            ..NodeFacts::new("here")
        };
        ServiceFacts::new(&snapshot, &facts)
    }

    fn listed(facts: &ServiceFacts) -> Vec<String> {
        facts.node_port_addresses.iter().map(IpAddr::to_string).collect()
    }

    /// S23: without a choice, the node's own address of each family.
    #[test]
    fn s23_primary_is_the_first_internal_address_of_each_family() {
        let of_object = facts(NodePortAddresses::Primary, &["198.51.100.7", "192.0.2.7"]);
        assert_eq!(listed(&of_object), ["198.51.100.7", "2001:db8::7"], "IPv6 is the uplink's");
        assert_eq!(listed(&facts(NodePortAddresses::Primary, &["127.0.0.1"])), ["192.0.2.7", "2001:db8::7"]);
        assert!(of_object.localhost_node_ports);
    }

    /// S23: CIDRs choose among the node's addresses, each for its own family.
    #[test]
    fn s23_cidrs_choose_within_their_family() {
        let within = |cidrs: &[&str]| {
            facts(NodePortAddresses::Within(cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect()), &[])
        };
        let one = within(&["192.0.2.0/24"]);
        assert_eq!(listed(&one), ["192.0.2.7", "2001:db8::7"], "no CIDR of IPv6: all of IPv6");
        assert!(!one.localhost_node_ports);
        let both = within(&["127.0.0.0/8", "198.51.100.0/24", "fd00::/8"]);
        assert_eq!(listed(&both), ["198.51.100.7"]);
        assert!(both.localhost_node_ports);
        assert_eq!(listed(&within(&[])).len(), 4);
    }
}
