use std::sync::Arc;

use quilla_model::{Node, Problem, Reason, Snapshot};

use crate::desired::{Desired, Target};
use crate::facts::{Masquerade, NodeFacts};

fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> Node {
    Node {
        name: name.into(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
        zone: None,
        leaving: false,
    }
}

fn planned(nodes: Vec<Node>, service_cidrs: &[&str]) -> (Desired, Vec<Problem>) {
    let nodes = nodes.into_iter().map(|node| (node.name.clone(), Arc::new(node))).collect();
    let mut snapshot = Snapshot { nodes, ..Snapshot::default() };
    let cidrs = service_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    snapshot.service_cidrs.insert("kubernetes".into(), cidrs);
    let mut facts = NodeFacts::new("here");
    facts.addresses = vec!["192.0.2.1".parse().unwrap()];
    crate::plan(&snapshot, &facts)
}

fn target(desired: &Desired, prefix: &str) -> Option<Target> {
    desired.routes.get(&prefix.parse().unwrap()).cloned()
}

#[test]
fn every_range_of_the_cluster_has_a_route() {
    let here = node("here", &["192.0.2.1"], &["10.244.0.0/24", "fd00:244::/64"]);
    let there = node("there", &["192.0.2.2"], &["10.244.1.0/24", "fd00:244:0:1::/64"]);
    let (desired, problems) = planned(vec![here, there], &["10.96.0.0/16", "fd00:96::/112"]);
    assert_eq!(problems, []);
    let there = || Some(Target::RemotePods("there".into()));
    for (prefix, expected) in [
        ("10.244.0.0/24", Some(Target::LocalPods)),
        ("fd00:244::/64", Some(Target::LocalPods)),
        ("10.244.0.1/32", Some(Target::Host)),
        ("fd00:244::1/128", Some(Target::Host)),
        ("10.244.1.0/24", there()),
        ("fd00:244:0:1::/64", there()),
        ("10.96.0.0/16", Some(Target::Services)),
        ("fd00:96::/112", Some(Target::Services)),
        ("192.0.2.1/32", Some(Target::Host)),
        ("169.254.0.0/16", Some(Target::Unroutable)),
        ("192.0.2.2/32", None),
    ] {
        assert_eq!(target(&desired, prefix), expected, "{prefix}");
    }
    assert_eq!(desired.config.gateway_ipv4, [10, 244, 0, 1]);
    assert_eq!(desired.tunnels.keys().collect::<Vec<_>>(), ["there"]);
}

/// What is said of ip-masq-agent's settings: the cluster keeps its routes, whichever range is the wider.
#[test]
fn exceptions_of_the_masquerade_take_nothing_from_the_cluster() {
    let here = node("here", &["192.0.2.1"], &["10.244.0.0/24"]);
    let there = node("there", &["192.0.2.2"], &["10.244.1.0/24"]);
    let plan = |masquerade: Masquerade| {
        let nodes = [&here, &there].map(|node| (node.name.clone(), Arc::new(node.clone()))).into();
        let mut snapshot = Snapshot { nodes, ..Snapshot::default() };
        snapshot.service_cidrs.insert("kubernetes".into(), vec!["10.96.0.0/16".parse().unwrap()]);
        crate::plan(&snapshot, &NodeFacts { masquerade, ..NodeFacts::new("here") }).0
    };
    let except =
        ["10.0.0.0/8", "10.244.1.0/25", "10.96.7.0/24", "10.244.0.0/24", "2001:db8::1/32", "0.0.0.0/0"];
    let except = except.map(|net| net.parse().unwrap()).into();
    let desired = plan(Masquerade { except, ..Masquerade::default() });
    for (prefix, expected) in [
        ("10.0.0.0/8", Some(Target::Native)),
        ("0.0.0.0/0", Some(Target::Native)),
        ("2001:db8::/32", Some(Target::Native)),
        ("10.244.1.0/24", Some(Target::RemotePods("there".into()))),
        ("10.244.0.0/24", Some(Target::LocalPods)),
        ("10.244.1.0/25", None),
        ("10.96.7.0/24", None),
        ("169.254.0.0/16", Some(Target::Unroutable)),
        ("fe80::/10", Some(Target::Unroutable)),
    ] {
        assert_eq!(target(&desired, prefix), expected, "{prefix}");
    }
    for (masqueraded, expected) in [(true, None), (false, Some(Target::Native))] {
        let link_local = Some(masqueraded);
        let desired = plan(Masquerade { link_local, link_local_ipv6: link_local, ..Masquerade::default() });
        assert_eq!(target(&desired, "169.254.0.0/16"), expected);
        assert_eq!(target(&desired, "fe80::/10"), expected);
    }
}

/// What may be for an own Pod is told by one prefix of each family.
#[test]
fn one_prefix_is_around_all_pods_of_a_node() {
    let around = |cidrs: &[&str]| {
        let config = planned(vec![node("here", &["192.0.2.1"], cidrs)], &[]).0.config;
        (config.pods_ipv4, config.pods_mask_ipv4, config.pods_mask_ipv6[..4].to_vec())
    };
    assert_eq!(around(&[]), ([0; 4], [0; 4], vec![0; 4]));
    assert_eq!(around(&["10.244.3.0/24"]), ([10, 244, 3, 0], [255, 255, 255, 0], vec![0; 4]));
    let (prefix, mask, _) = around(&["10.244.3.0/24", "10.244.1.0/24", "fd00:244::/64"]);
    assert_eq!((prefix, mask), ([10, 244, 0, 0], [255, 255, 252, 0]));
    let (prefix, mask, v6) = around(&["10.244.3.0/24", "192.168.0.0/24", "fd00:244::/64"]);
    assert_eq!((prefix, mask, v6), ([10, 244, 3, 0], [255, 255, 255, 0], vec![255; 4]), "not the world");
}

#[test]
fn overlapping_claims_are_refused_whichever_is_wider() {
    let own = node("here", &[], &["10.244.0.0/24"]);
    for (claimed, clash) in [
        ("10.244.0.0/24", true),
        ("10.244.0.128/25", true),
        ("10.244.0.0/16", true),
        ("10.0.0.0/8", true),
        ("0.0.0.0/0", true),
        ("127.1.0.0/16", true),
        ("10.244.1.0/24", false),
        ("10.243.255.0/24", false),
    ] {
        let (desired, problems) = planned(vec![own.clone(), node("a", &["192.0.2.9"], &[claimed])], &[]);
        let reasons: Vec<_> = problems.iter().map(|problem| problem.reason).collect();
        assert_eq!(reasons, if clash { vec![Reason::Conflict] } else { vec![] }, "{claimed}");
        assert!(problems.iter().all(|problem| problem.detail.ends_with(" and is left out")), "{problems:?}");
        assert_eq!(target(&desired, "10.244.0.0/24"), Some(Target::LocalPods), "{claimed}");
    }
}

#[test]
fn e20_a_tunnel_address_belongs_to_one_node() {
    let thief = node("thief", &["192.0.2.1", "192.0.2.2", "fe80::1"], &["10.244.2.0/24"]);
    let (desired, problems) = planned(vec![node("b", &["192.0.2.2"], &[]), thief], &[]);
    assert_eq!(desired.tunnels.keys().collect::<Vec<_>>(), ["b"]);
    let reasons: Vec<_> = problems.iter().map(|problem| problem.reason).collect();
    assert_eq!(reasons, [Reason::Conflict, Reason::Conflict, Reason::UnusableAddress, Reason::Missing]);
    let taken = "InternalIP 192.0.2.2 belongs to b and is left out";
    assert!(problems.iter().any(|problem| problem.detail == taken), "{problems:?}");
    assert_eq!(
        target(&desired, "10.244.2.0/24"),
        Some(Target::RemotePods("thief".into())),
        "dropped as unknown node"
    );
}
