//! One object in, the fields complained about out.
#![allow(
    clippy::needless_pass_by_value,
    clippy::too_many_lines,
    reason = "tables of JSON read best whole and inline"
)]

use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{endpoint_slice, endpoints, namespace, network_policy, node, pod};
use crate::field::{Complaint, FieldErrors, fields};

use Complaint::{Duplicate, Forbidden, Invalid, NotSupported, Required, TooMany};

fn typed<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("well-typed")
}

/// Runs one validation and compares the complaints.
fn expect(told: &Value, expected: &[(&str, Complaint)], validate: impl FnOnce(&mut FieldErrors)) {
    let mut errors = FieldErrors::default();
    validate(&mut errors);
    assert_eq!(fields(&errors), expected, "{told}");
}

#[test]
fn nodes_keep_their_pod_cidrs() {
    let of = |spec: Value| -> Node { typed(json!({"metadata": {"name": "n"}, "spec": spec})) };
    let both = json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24", "fd00::/64"]});
    let table = [
        (json!({}), json!({}), vec![]),
        (json!({}), both.clone(), vec![]),
        (both.clone(), both.clone(), vec![]),
        (both.clone(), json!({}), vec![("spec.podCIDR", Forbidden), ("spec.podCIDRs", Forbidden)]),
        (json!({}), json!({"podCIDRs": ["10.0.0.0/33"]}), vec![("spec.podCIDRs[0]", Invalid)]),
        (json!({}), json!({"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}), vec![("spec.podCIDRs[1]", Invalid)]),
        (
            json!({}),
            json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.1.0/24"]}),
            vec![("spec.podCIDRs[0]", Invalid)],
        ),
    ];
    for (old, new, expected) in table {
        expect(&new, &expected, |errors| node(errors, &of(new.clone()), Some(&of(old))));
    }
}

#[test]
fn a_weight_is_a_number_from_0_to_100() {
    let field = "metadata.annotations[quilla.dev/weight]";
    for (weight, fits) in
        [("0", true), ("1", true), ("100", true), ("101", false), ("-1", false), ("+1", false), ("", false)]
    {
        let metadata = json!({"name": "x", "annotations": {"quilla.dev/weight": weight}});
        let expected = if fits { vec![] } else { vec![(field, Invalid)] };
        let told = json!({"metadata": metadata, "spec": {"containers": [{"name": "c"}]}});
        expect(&told, &expected, |errors| pod(errors, &typed(told.clone()), None));
        let told = json!({"metadata": metadata, "addressType": "IPv4", "endpoints": []});
        expect(&told, &expected, |errors| endpoint_slice(errors, &typed(told.clone()), None));
    }
}

#[test]
fn endpoint_slices_hold_addresses_that_can_be_reached() {
    let of = |family: &str, endpoints: Value, ports: Value| -> EndpointSlice {
        typed(
            json!({"metadata": {"name": "s"}, "addressType": family, "endpoints": endpoints, "ports": ports}),
        )
    };
    let one = |address: &str| json!([{"addresses": [address]}]);
    let first = "endpoints[0].addresses[0]";
    let table = [
        ("IPv4", one("10.0.0.1"), json!([{"port": 80}]), vec![]),
        ("IPv6", one("fd00::1"), json!([]), vec![]),
        ("IPv4", one("fd00::1"), json!([]), vec![(first, Invalid)]),
        ("IPv4", one("127.0.0.1"), json!([]), vec![(first, Invalid)]),
        ("IPv4", one("0.0.0.0"), json!([]), vec![(first, Invalid)]),
        ("IPv4", one("224.0.0.1"), json!([]), vec![(first, Invalid)]),
        ("IPv4", one("169.254.1.1"), json!([]), vec![(first, Invalid)]),
        ("IPv6", one("::1"), json!([]), vec![(first, Invalid)]),
        ("IPv6", one("ff02::1"), json!([]), vec![(first, Invalid)]),
        ("IPv6", one("10.0.0.1"), json!([]), vec![(first, Invalid)]),
        ("IPv4", one("010.0.0.1"), json!([]), vec![(first, Invalid)]),
        ("IPv4", json!([{"addresses": []}]), json!([]), vec![("endpoints[0].addresses", Required)]),
        ("IPv5", json!([]), json!([]), vec![("addressType", NotSupported)]),
        ("IPv4", json!([]), json!([{"port": 0}]), vec![("ports[0].port", Invalid)]),
        ("IPv4", json!([]), json!([{"port": 1}, {"port": 2}]), vec![("ports[1].name", Duplicate)]),
        ("IPv4", json!([]), json!([{"protocol": "X"}]), vec![("ports[0].protocol", NotSupported)]),
        (
            "IPv4",
            json!(vec![json!({"addresses": ["10.0.0.1"]}); 1001]),
            json!([]),
            vec![("endpoints", TooMany)],
        ),
    ];
    for (family, endpoints, ports, expected) in table {
        let slice = of(family, endpoints.clone(), ports);
        expect(&endpoints, &expected, |errors| endpoint_slice(errors, &slice, None));
    }
    let (four, six) = (of("IPv4", json!([]), json!([])), of("IPv6", json!([]), json!([])));
    expect(&json!("IPv6"), &[("addressType", Invalid)], |errors| endpoint_slice(errors, &six, Some(&four)));
}

#[test]
fn endpoints_are_held_to_the_same() {
    let of = |subset: Value| -> Endpoints { typed(json!({"metadata": {"name": "e"}, "subsets": [subset]})) };
    let table = [
        (json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}), vec![]),
        (json!({"addresses": [{"ip": "127.0.0.1"}]}), vec![("subsets[0].addresses[0].ip", Invalid)]),
        (json!({"notReadyAddresses": [{"ip": "x"}]}), vec![("subsets[0].notReadyAddresses[0].ip", Invalid)]),
        (
            json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}),
            vec![("subsets[0].ports[0].name", Required)],
        ),
    ];
    for (subset, expected) in table {
        expect(&subset, &expected, |errors| endpoints(errors, &of(subset.clone())));
    }
}

#[test]
fn n8_n10_n19_a_policy_has_one_meaning() {
    let of = |spec: Value| -> NetworkPolicy { typed(json!({"metadata": {"name": "p"}, "spec": spec})) };
    let peer = |peer: Value| json!({"podSelector": {}, "ingress": [{"from": [peer]}]});
    let port = |port: Value| json!({"podSelector": {}, "egress": [{"ports": [port]}]});
    let from = "spec.ingress[0].from[0]";
    let block = "spec.ingress[0].from[0].ipBlock";
    let to = "spec.egress[0].ports[0]";
    let table = [
        (json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}]}), vec![]),
        (
            json!({"podSelector": {}, "policyTypes": ["Both"]}),
            vec![("spec.policyTypes[0]".to_owned(), NotSupported)],
        ),
        (peer(json!({})), vec![(from.to_owned(), Required)]),
        (peer(json!({"podSelector": {}, "namespaceSelector": {}})), vec![]),
        (
            peer(json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})),
            vec![(from.to_owned(), Forbidden)],
        ),
        (peer(json!({"ipBlock": {"cidr": "10.0.0.0"}})), vec![(format!("{block}.cidr"), Invalid)]),
        (
            peer(
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"]}}),
            ),
            vec![(format!("{block}.except[0]"), Invalid), (format!("{block}.except[2]"), Invalid)],
        ),
        (
            peer(json!({"podSelector": {"matchExpressions": [
                {"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["b"]},
                {"key": "a", "operator": "Near"}]}})),
            vec![
                (format!("{from}.podSelector.matchExpressions[0].values"), Required),
                (format!("{from}.podSelector.matchExpressions[1].values"), Forbidden),
                (format!("{from}.podSelector.matchExpressions[2].operator"), Invalid),
            ],
        ),
        (port(json!({"port": 80, "endPort": 90, "protocol": "UDP"})), vec![]),
        (port(json!({"port": 80, "endPort": 70})), vec![(format!("{to}.endPort"), Invalid)]),
        (port(json!({"port": "http", "endPort": 90})), vec![(format!("{to}.endPort"), Invalid)]),
        (port(json!({"endPort": 90})), vec![(format!("{to}.endPort"), Invalid)]),
        (port(json!({"port": 0})), vec![(format!("{to}.port"), Invalid)]),
        (port(json!({"protocol": "ICMP"})), vec![(format!("{to}.protocol"), NotSupported)]),
    ];
    for (spec, expected) in table {
        let expected: Vec<_> =
            expected.iter().map(|(field, complaint)| (field.as_str(), *complaint)).collect();
        expect(&spec, &expected, |errors| network_policy(errors, &of(spec.clone())));
    }
}

#[test]
fn pods_are_named_right_and_do_not_change_under_way() {
    let of = |spec: Value| -> Pod { typed(json!({"metadata": {"name": "p"}, "spec": spec})) };
    let container = |ports: Value| json!({"containers": [{"name": "c", "image": "a", "ports": ports}]});
    let port = "spec.containers[0].ports[0]";
    let table = [
        (container(json!([{"containerPort": 80, "name": "http"}])), vec![]),
        (json!({"containers": []}), vec![("spec.containers".to_owned(), Required)]),
        (json!({"containers": [{"name": "C"}]}), vec![("spec.containers[0].name".to_owned(), Invalid)]),
        (
            json!({"containers": [{"name": "c"}], "initContainers": [{"name": "c"}]}),
            vec![("spec.initContainers[0].name".to_owned(), Duplicate)],
        ),
        (container(json!([{"containerPort": 0}])), vec![(format!("{port}.containerPort"), Invalid)]),
        (container(json!([{"containerPort": 1, "name": "1"}])), vec![(format!("{port}.name"), Invalid)]),
        (
            container(json!([{"containerPort": 1, "hostPort": 70000}])),
            vec![(format!("{port}.hostPort"), Invalid)],
        ),
        (
            container(json!([{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}])),
            vec![("spec.containers[0].ports[1].name".to_owned(), Duplicate)],
        ),
    ];
    for (spec, expected) in table {
        let expected: Vec<_> =
            expected.iter().map(|(field, complaint)| (field.as_str(), *complaint)).collect();
        expect(&spec, &expected, |errors| pod(errors, &of(spec.clone()), None));
    }
    let old = of(json!({"containers": [{"name": "c", "image": "a"}]}));
    let bound = of(json!({"nodeName": "n", "containers": [{"name": "c", "image": "b"}]}));
    expect(&json!("bound"), &[], |errors| pod(errors, &bound, Some(&old)));
    for spec in [
        json!({"nodeName": "other", "containers": [{"name": "c", "image": "b"}]}),
        json!({"nodeName": "n", "hostNetwork": true, "containers": [{"name": "c", "image": "b"}]}),
    ] {
        expect(&spec, &[("spec", Forbidden)], |errors| pod(errors, &of(spec.clone()), Some(&bound)));
    }
}

#[test]
fn n9_a_namespace_can_be_selected_by_its_name() {
    let of = |name: &str, label: &str| -> Namespace {
        typed(json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": label}}}))
    };
    expect(&json!("a"), &[], |errors| namespace(errors, &of("a", "a")));
    expect(&json!("a.b"), &[("metadata.name", Invalid)], |errors| namespace(errors, &of("a.b", "a.b")));
    let label = "metadata.labels[kubernetes.io/metadata.name]";
    expect(&json!("b"), &[(label, Invalid)], |errors| namespace(errors, &of("a", "b")));
}
