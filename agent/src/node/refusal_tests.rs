//! Ranges that the host may be refused, and what is done once about those that the kernel does not take.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use quilla_datapath::DatapathError;
use quilla_datapath::netlink::{RuleChanges, Surroundings};
use quilla_model::{Node, Snapshot};
use quilla_plan::{NodeFacts, plan};

use super::{Ranges, Refusals};

fn set<T: std::str::FromStr<Err: std::fmt::Debug> + Ord>(texts: &[&str]) -> BTreeSet<T> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Two nodes, the other with two addresses, and these ranges of Services.
fn snapshot(ranges: &[&str]) -> Snapshot {
    let node = |name: &str, addresses: &[&str], cidr: &str| Node {
        name: name.into(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        pod_cidrs: vec![cidr.parse().unwrap()],
        zone: None,
        leaving: false,
    };
    let here = node("here", &["192.0.2.1"], "10.244.0.0/24");
    let there = node("there", &["192.0.2.2", "172.16.9.2"], "10.244.1.0/24");
    let nodes = [here, there].map(|node| (node.name.clone(), Arc::new(node))).into();
    let mut snapshot = Snapshot { nodes, ..Snapshot::default() };
    let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
    snapshot.service_cidrs.insert("kubernetes".into(), ranges);
    snapshot
}

/// What becomes of a range: refused, or what is in it.
fn judge(range: &str, servers: Option<&[&str]>) -> Option<String> {
    let snapshot = snapshot(&[range]);
    let facts = NodeFacts { addresses: vec!["198.51.100.1".parse().unwrap()], ..NodeFacts::new("here") };
    let (desired, _) = plan(&snapshot, &facts);
    let surroundings = Surroundings {
        gateways: set(&["192.168.7.254", "2001:db8::9"]),
        networks: set(&["192.168.5.0/24", "203.0.113.0/25", "fe80::/64"]),
    };
    let servers = servers.map(set::<IpAddr>);
    let mut ranges = Ranges::new(&snapshot, &desired, servers.as_ref(), &surroundings);
    let wanted: IpNet = range.parse().unwrap();
    assert_eq!(ranges.refused.len() + ranges.spared.len(), 1, "{range}: {ranges:?}");
    assert!(ranges.refused.contains(&wanted) || ranges.spared.contains_key(&wanted), "{ranges:?}");
    ranges.spared.remove(&wanted)
}

#[test]
fn e8_a_range_with_nobody_in_it_is_refused() {
    for range in ["10.96.0.0/12", "fd00:96::/108", "198.51.100.128/25", "172.16.8.0/24"] {
        assert_eq!(judge(range, Some(&["192.0.2.10", "2001:db8::10"])), None);
    }
}

#[test]
fn e8_a_range_with_what_the_node_needs_is_spared_and_said() {
    for (range, has) in [
        ("10.0.0.0/24", "the apiserver 10.0.0.7"),
        ("2001:db8:7::/64", "the apiserver 2001:db8:7::7"),
        ("192.168.7.0/24", "the gateway 192.168.7.254"),
        ("2001:db8::/112", "the gateway 2001:db8::9"),
        ("192.168.0.0/18", "the gateway 192.168.7.254"),
        ("192.168.4.0/23", "the node's network 192.168.5.0/24"),
        ("203.0.113.64/26", "the node's network 203.0.113.0/25"),
        ("198.51.100.0/24", "the node's 198.51.100.1"),
        ("192.0.2.2/31", "192.0.2.2 of node there"),
        ("172.16.9.0/24", "172.16.9.2 of node there"),
        ("10.244.0.0/16", "the Pod CIDR 10.244.0.0/24"),
        ("10.244.1.64/26", "the Pod CIDR 10.244.1.0/24"),
    ] {
        assert_eq!(judge(range, Some(&["10.0.0.7", "2001:db8:7::7"])).as_deref(), Some(has), "{range}");
    }
}

#[test]
fn e8_nothing_is_refused_before_the_apiserver_s_address_is_known() {
    assert!(judge("10.96.0.0/12", None).unwrap().contains("apiserver"));
    assert_eq!(judge("10.96.0.0/12", Some(&[])), None);
}

fn ranges(refused: &[&str]) -> Ranges {
    Ranges { refused: set(refused), ..Ranges::default() }
}

fn error() -> DatapathError {
    DatapathError::NoDevice { name: "any error".into() }
}

#[test]
fn e8_what_the_kernel_does_not_take_is_a_problem_and_asked_for_once() {
    let mut refusals = Refusals::default();
    let both = ["10.96.0.0/16", "fd00:96::/112"];
    let refuse_v6 = |wanted: &BTreeSet<IpNet>| {
        let failed = wanted.iter().filter(|range| range.addr().is_ipv6()).map(|range| (*range, error()));
        Ok(RuleChanges { failed: failed.collect(), ..RuleChanges::default() })
    };
    refusals.set_by(ranges(&both), refuse_v6);
    let problems = refusals.problems("here");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].detail.starts_with("rule against fd00:96::/112: "), "{problems:?}");
    refusals.set_by(ranges(&both), |_| unreachable!("nothing changed"));
    refusals.forget();
    refusals.set_by(ranges(&both), |wanted| {
        assert_eq!(*wanted, set(&both[..1]), "not asked again");
        Ok(RuleChanges::default())
    });
    assert_eq!(refusals.problems("here").len(), 1, "still so");
    refusals.set_by(ranges(&["10.97.0.0/16", both[1]]), |wanted| {
        assert_eq!(wanted.len(), 2, "another wish");
        Ok(RuleChanges::default())
    });
    assert_eq!(refusals.problems("here"), []);
}

#[test]
fn e8_a_kernel_without_rules_is_a_problem_and_asked_once() {
    let mut refusals = Refusals::default();
    refusals.set_by(ranges(&["10.96.0.0/16"]), |_| Err(error()));
    refusals.forget();
    refusals.set_by(ranges(&["10.96.0.0/16"]), |_| unreachable!("asked again"));
    let problems = refusals.problems("here");
    assert!(problems[0].detail.starts_with("rules against ranges of Services: "), "{problems:?}");
}
