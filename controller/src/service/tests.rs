//! Tables for the admission of Services: one manifest in, the stored object or the complaints out.
#![allow(
    clippy::needless_pass_by_value,
    clippy::too_many_lines,
    reason = "tables of JSON read best whole and inline"
)]

use k8s_openapi::api::core::v1::Service;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{NodePortRange, ServiceAdmission};
use crate::field::{Complaint, FieldErrors, fields};

fn cluster(cidrs: &[&str]) -> ServiceAdmission {
    let cidrs: Vec<_> = cidrs.iter().map(|cidr| cidr.parse().expect("cidr")).collect();
    ServiceAdmission::new(&cidrs, NodePortRange::default())
}

fn dual() -> ServiceAdmission {
    cluster(&["10.96.0.0/16", "fd00:96::/108"])
}

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}))
        .expect("service")
}

fn create(admission: &ServiceAdmission, spec: Value) -> Result<Service, FieldErrors> {
    let mut new = service(spec);
    admission.admit(Some(&mut new), None).map(|()| new)
}

fn update(admission: &ServiceAdmission, old: &Service, spec: Value) -> Result<Service, FieldErrors> {
    let mut new = service(spec);
    admission.admit(Some(&mut new), Some(old)).map(|()| new)
}

fn spec(service: &Service) -> &k8s_openapi::api::core::v1::ServiceSpec {
    service.spec.as_ref().expect("spec")
}

fn node_port(service: &Service) -> Option<i32> {
    spec(service).ports.as_ref()?.first()?.node_port
}

fn http() -> Value {
    json!([{"port": 80}])
}

#[test]
fn defaults_are_those_of_kubernetes() {
    let stored = create(&dual(), json!({"ports": http(), "sessionAffinity": "ClientIP"})).expect("admitted");
    let mut found = serde_json::to_value(spec(&stored)).expect("json");
    let address = found["clusterIP"].take();
    assert!(address.as_str().expect("address").starts_with("10.96."));
    assert_eq!(found["clusterIPs"].take(), json!([address]));
    let expected = json!({
        "clusterIP": null, "clusterIPs": null, "type": "ClusterIP", "internalTrafficPolicy": "Cluster",
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
    });
    assert_eq!(found, expected);
}

#[test]
fn each_mistake_is_named_by_its_field() {
    use Complaint::{Duplicate, Forbidden, Invalid, NotSupported, Required};
    let table = [
        (json!({}), vec![("spec.ports", Required)]),
        (
            json!({"ports": [{"port": 0}]}),
            vec![("spec.ports[0].port", Invalid), ("spec.ports[0].targetPort", Invalid)],
        ),
        (json!({"ports": [{"port": 65536, "targetPort": 1}]}), vec![("spec.ports[0].port", Invalid)]),
        (
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            vec![("spec.ports[0].protocol", NotSupported)],
        ),
        (
            json!({"ports": [{"port": 80, "targetPort": "no_name"}]}),
            vec![("spec.ports[0].targetPort", Invalid)],
        ),
        (json!({"ports": [{"port": 80}, {"port": 81, "name": "b"}]}), vec![("spec.ports[0].name", Required)]),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}),
            vec![("spec.ports[1].name", Duplicate)],
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            vec![("spec.ports[1]", Duplicate)],
        ),
        (json!({"ports": [{"port": 80, "name": "B!"}]}), vec![("spec.ports[0].name", Invalid)]),
        (json!({"ports": [{"port": 80, "nodePort": 30080}]}), vec![("spec.ports[0].nodePort", Forbidden)]),
        (
            json!({"ports": [{"port": 80, "nodePort": 80}], "type": "NodePort"}),
            vec![("spec.ports[0].nodePort", Invalid)],
        ),
        (json!({"ports": http(), "type": "Tunnel"}), vec![("spec.type", NotSupported)]),
        (json!({"ports": http(), "sessionAffinity": "Cookie"}), vec![("spec.sessionAffinity", NotSupported)]),
        (
            json!({"ports": http(), "sessionAffinity": "ClientIP",
                   "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
            vec![("spec.sessionAffinityConfig.clientIP.timeoutSeconds", Invalid)],
        ),
        (
            json!({"ports": http(), "internalTrafficPolicy": "Nearby"}),
            vec![("spec.internalTrafficPolicy", NotSupported)],
        ),
        (
            json!({"ports": http(), "externalTrafficPolicy": "Local"}),
            vec![("spec.externalTrafficPolicy", Invalid)],
        ),
        (json!({"ports": http(), "externalIPs": ["127.0.0.1"]}), vec![("spec.externalIPs[0]", Invalid)]),
        (json!({"ports": http(), "externalIPs": ["host"]}), vec![("spec.externalIPs[0]", Invalid)]),
        (
            json!({"ports": http(), "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
            vec![("spec.loadBalancerSourceRanges", Forbidden)],
        ),
        (
            json!({"ports": http(), "type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0"]}),
            vec![("spec.loadBalancerSourceRanges[0]", Invalid)],
        ),
        (
            json!({"ports": http(), "type": "LoadBalancer", "healthCheckNodePort": 31000}),
            vec![("spec.healthCheckNodePort", Invalid)],
        ),
        (
            json!({"ports": http(), "allocateLoadBalancerNodePorts": false}),
            vec![("spec.allocateLoadBalancerNodePorts", Forbidden)],
        ),
        (
            json!({"ports": http(), "type": "NodePort", "clusterIP": "None"}),
            vec![("spec.clusterIPs[0]", Invalid)],
        ),
        (json!({"ports": http(), "clusterIP": "10.0.0.300"}), vec![("spec.clusterIPs[0]", Invalid)]),
        (json!({"ports": http(), "clusterIP": "192.0.2.1"}), vec![("spec.clusterIPs[0]", Invalid)]),
        (json!({"ports": http(), "ipFamilies": ["IPv4", "IPv4"]}), vec![("spec.ipFamilies[1]", Duplicate)]),
        (json!({"ports": http(), "ipFamilies": ["IPv5"]}), vec![("spec.ipFamilies[0]", NotSupported)]),
        (
            json!({"ports": http(), "clusterIP": "10.96.0.9", "ipFamilies": ["IPv6"]}),
            vec![("spec.clusterIPs[0]", Invalid)],
        ),
        (json!({"type": "ExternalName"}), vec![("spec.externalName", Required)]),
        (json!({"type": "ExternalName", "externalName": "a b"}), vec![("spec.externalName", Invalid)]),
        (
            json!({"type": "ExternalName", "externalName": "a.example", "clusterIP": "10.96.0.9"}),
            vec![("spec.clusterIPs", Forbidden)],
        ),
        (
            json!({"ports": http(), "trafficDistribution": "Far"}),
            vec![("spec.trafficDistribution", NotSupported)],
        ),
    ];
    for (spec, expected) in table {
        let errors = create(&dual(), spec.clone()).expect_err(&spec.to_string());
        assert_eq!(fields(&errors), expected, "{spec}");
    }
}

#[test]
fn the_dual_stack_shapes_of_kep_563() {
    let table = [
        (json!({}), "SingleStack", vec!["IPv4"], 1),
        (json!({"ipFamilies": ["IPv6"]}), "SingleStack", vec!["IPv6"], 1),
        (json!({"ipFamilyPolicy": "PreferDualStack"}), "PreferDualStack", vec!["IPv4", "IPv6"], 2),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"]}),
            "RequireDualStack",
            vec!["IPv6", "IPv4"],
            2,
        ),
        (json!({"ipFamilies": ["IPv6", "IPv4"]}), "RequireDualStack", vec!["IPv6", "IPv4"], 2),
        (json!({"clusterIP": "fd00:96::9"}), "SingleStack", vec!["IPv6"], 1),
        (json!({"clusterIP": "None"}), "RequireDualStack", vec!["IPv4", "IPv6"], 1),
        (json!({"clusterIP": "None", "selector": {"app": "web"}}), "SingleStack", vec!["IPv4"], 1),
    ];
    for (mut shape, policy, families, addresses) in table {
        shape["ports"] = http();
        let stored = create(&dual(), shape.clone()).unwrap_or_else(|errors| panic!("{shape}: {errors}"));
        let spec = spec(&stored);
        assert_eq!(spec.ip_family_policy.as_deref(), Some(policy), "{shape}");
        assert_eq!(spec.ip_families.as_deref().expect("families"), families, "{shape}");
        assert_eq!(spec.cluster_ips.as_ref().expect("addresses").len(), addresses, "{shape}");
        assert_eq!(
            spec.cluster_ip.as_ref(),
            spec.cluster_ips.as_ref().expect("addresses").first(),
            "{shape}"
        );
    }
}

#[test]
fn a_single_stack_cluster_prefers_but_cannot_require() {
    let single = cluster(&["10.96.0.0/16"]);
    let stored =
        create(&single, json!({"ports": http(), "ipFamilyPolicy": "PreferDualStack"})).expect("admitted");
    assert_eq!(spec(&stored).ip_families, Some(vec!["IPv4".to_owned()]));
    for (shape, field) in [
        (json!({"ports": http(), "ipFamilyPolicy": "RequireDualStack"}), "spec.ipFamilyPolicy"),
        (json!({"ports": http(), "ipFamilies": ["IPv6"]}), "spec.ipFamilies[0]"),
        (json!({"ports": http(), "clusterIP": "fd00::1"}), "spec.clusterIPs[0]"),
    ] {
        let errors = create(&single, shape).expect_err("no second family");
        assert_eq!(fields(&errors), vec![(field, Complaint::Invalid)]);
    }
}

#[test]
fn an_address_asked_for_is_given_once() {
    let admission = dual();
    let asked = json!({"ports": http(), "clusterIP": "10.96.0.10"});
    let stored = create(&admission, asked.clone()).expect("free");
    let errors = create(&admission, asked.clone()).expect_err("taken");
    assert_eq!(fields(&errors), vec![("spec.clusterIPs[0]", Complaint::Invalid)]);
    // S51: what a deleted Service held is free for the next one at once.
    admission.admit(None, Some(&stored)).expect("deleted");
    create(&admission, asked).expect("free again");
}

#[test]
fn the_network_and_broadcast_addresses_are_nobodys() {
    let admission = cluster(&["10.0.0.0/29"]);
    let mut found: Vec<_> = (0..6)
        .map(|_| {
            spec(&create(&admission, json!({"ports": http()})).expect("free"))
                .cluster_ip
                .clone()
                .expect("set")
        })
        .collect();
    found.sort();
    assert_eq!(found, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    let errors = create(&admission, json!({"ports": http()})).expect_err("full");
    assert!(errors.to_string().contains("range is full"), "{errors}");
}

#[test]
fn a_write_that_was_not_stored_gives_back_and_takes_back() {
    let admission = dual();
    let old = create(&admission, json!({"ports": http(), "type": "NodePort"})).expect("free");
    let mut new = service(json!({"ports": [{"port": 80, "nodePort": 30080}], "type": "NodePort"}));
    admission.admit(Some(&mut new), Some(&old)).expect("admitted");
    admission.roll_back(Some(&new), Some(&old));
    let before = node_port(&old).expect("port");
    let asks = |number: i32| json!({"ports": [{"port": 81, "nodePort": number}], "type": "NodePort"});
    create(&admission, asks(before)).expect_err("held again");
    create(&admission, asks(30080)).expect("given back");
}

#[test]
fn node_ports_are_unique_per_protocol_and_shared_by_one_number() {
    let admission = dual();
    let both = json!({"type": "NodePort", "ports": [
        {"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 53, "protocol": "TCP"}]});
    let stored = create(&admission, both).expect("admitted");
    let ports: Vec<_> = spec(&stored).ports.iter().flatten().filter_map(|port| port.node_port).collect();
    assert_eq!(ports.len(), 2);
    assert_eq!(ports[0], ports[1]);
    let asks = |protocol: &str| json!({"ports": [{"port": 1, "protocol": protocol, "nodePort": ports[0]}], "type": "NodePort"});
    create(&admission, asks("TCP")).expect_err("taken");
    create(&admission, asks("SCTP")).expect("another protocol");
}

#[test]
fn an_update_without_the_allocated_fields_keeps_them() {
    let admission = dual();
    let wish = json!({"ports": http(), "type": "NodePort", "ipFamilyPolicy": "PreferDualStack"});
    let old = create(&admission, wish.clone()).expect("admitted");
    assert_eq!(update(&admission, &old, wish).expect("same"), old);
    let without_policy = json!({"ports": http(), "type": "NodePort"});
    assert_eq!(update(&admission, &old, without_policy).expect("same"), old);
}

#[test]
fn a_change_of_type_lets_go_of_what_the_new_type_cannot_have() {
    let admission = dual();
    let balanced = json!({"ports": http(), "type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let old = create(&admission, balanced).expect("admitted");
    assert!(spec(&old).health_check_node_port.is_some());
    let mut wish = serde_json::to_value(spec(&old)).expect("json");
    wish["type"] = json!("ClusterIP");
    let plain = update(&admission, &old, wish).expect("type may change");
    assert_eq!(spec(&plain).cluster_ip, spec(&old).cluster_ip);
    assert_eq!(node_port(&plain), None);
    assert_eq!(spec(&plain).health_check_node_port, None);
    assert_eq!(spec(&plain).external_traffic_policy, None);
    let freed = node_port(&old).expect("port");
    create(&admission, json!({"ports": [{"port": 1, "nodePort": freed}], "type": "NodePort"}))
        .expect("freed");

    let mut wish = serde_json::to_value(spec(&plain)).expect("json");
    wish["type"] = json!("ExternalName");
    wish["externalName"] = json!("a.example");
    let external = update(&admission, &plain, wish).expect("type may change");
    assert_eq!(spec(&external).cluster_ip, None);
    let freed = spec(&plain).cluster_ip.clone();
    create(&admission, json!({"ports": http(), "clusterIP": freed})).expect("freed");
}

#[test]
fn a_cluster_ip_is_for_life() {
    let admission = dual();
    let old = create(&admission, json!({"ports": http()})).expect("admitted");
    for address in ["10.96.0.77", "None"] {
        let errors =
            update(&admission, &old, json!({"ports": http(), "clusterIP": address})).expect_err(address);
        assert_eq!(fields(&errors), vec![("spec.clusterIPs[0]", Complaint::Invalid)]);
    }
    let wish = json!({"ports": http(), "ipFamilyPolicy": "RequireDualStack"});
    let dual_stack = update(&admission, &old, wish).expect("may grow");
    assert_eq!(spec(&dual_stack).cluster_ips.as_ref().expect("set").len(), 2);
    let wish = json!({"ports": http(), "ipFamilyPolicy": "SingleStack"});
    let single = update(&admission, &dual_stack, wish).expect("may shrink");
    assert_eq!(spec(&single).cluster_ips, spec(&old).cluster_ips);
}

#[test]
fn s27_a_load_balancer_may_have_no_node_ports() {
    let wish = json!({"ports": http(), "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
    assert_eq!(node_port(&create(&dual(), wish).expect("admitted")), None);
}

#[test]
fn s27_a_load_balancer_lets_go_of_the_node_ports_it_no_longer_names() {
    let admission = dual();
    let old = create(&admission, json!({"ports": http(), "type": "LoadBalancer"})).expect("admitted");
    let number = node_port(&old).expect("port");
    let wish = |port: Value| json!({"ports": [port], "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
    let kept = update(&admission, &old, wish(json!({"port": 80, "nodePort": number}))).expect("may stay");
    assert_eq!(node_port(&kept), Some(number));
    let without = update(&admission, &kept, wish(json!({"port": 80}))).expect("may go");
    assert_eq!(node_port(&without), None);
    create(&admission, json!({"ports": [{"port": 1, "nodePort": number}], "type": "NodePort"}))
        .expect("freed");
}

#[test]
fn a_collision_is_told_in_the_words_of_kubernetes() {
    let admission = dual();
    let node_port = json!({"ports": [{"port": 80, "nodePort": 30080}], "type": "NodePort"});
    create(&admission, node_port.clone()).expect("free");
    create(&admission, json!({"ports": http(), "clusterIP": "10.96.0.10"})).expect("free");
    let local = |health: u16, port: Value| {
        json!({"ports": [port], "type": "LoadBalancer",
        "externalTrafficPolicy": "Local", "healthCheckNodePort": health})
    };
    let taken = "provided port is already allocated";
    for (wish, told) in [
        (node_port, format!("spec.ports[0].nodePort: Invalid value: 30080: {taken}")),
        (
            local(30080, json!({"port": 80})),
            format!("spec.healthCheckNodePort: Invalid value: 30080: {taken}"),
        ),
        (
            local(30090, json!({"port": 80, "nodePort": 30090})),
            format!("spec.healthCheckNodePort: Invalid value: 30090: {taken}"),
        ),
        (
            json!({"ports": http(), "clusterIP": "10.96.0.10"}),
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.10\": failed to allocate IP 10.96.0.10: \
             provided IP is already allocated"
                .to_owned(),
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 80}], "type": "NodePort"}),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. \
             The range of valid ports is 30000-32767"
                .to_owned(),
        ),
    ] {
        assert_eq!(create(&admission, wish.clone()).expect_err(&wish.to_string()).to_string(), told);
    }
    create(&admission, local(30090, json!({"port": 80}))).expect("a refusal takes nothing");
}

/// Every type after every other, refusals and undone writes among them; what is left of it is one address.
#[test]
fn a_service_that_flaps_between_types_holds_nothing_too_much() {
    let ports = NodePortRange { first: 30_000, last: 30_003 };
    let admission = ServiceAdmission::new(&["10.0.0.0/29".parse().expect("cidr")], ports);
    let shapes = [
        json!({"type": "ClusterIP", "ports": http()}),
        json!({"type": "NodePort", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}),
        json!({"type": "LoadBalancer", "ports": http(), "externalTrafficPolicy": "Local"}),
        json!({"type": "LoadBalancer", "ports": http(), "allocateLoadBalancerNodePorts": false}),
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_002}]}),
        json!({"type": "ExternalName", "externalName": "a.example"}),
        json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 40_000}]}),
    ];
    let mut current = create(&admission, shapes[0].clone()).expect("first");
    for turn in 0..2000usize {
        let mut new = service(shapes[turn * 5 % 7].clone());
        if admission.admit(Some(&mut new), Some(&current)).is_ok() {
            if turn % 3 == 0 { admission.roll_back(Some(&new), Some(&current)) } else { current = new }
        }
    }
    admission.admit(None, Some(&current)).expect("deleted");
    let all: Vec<_> =
        (0..4).map(|number| json!({"name": format!("p{number}"), "port": 80 + number})).collect();
    create(&admission, json!({"type": "NodePort", "ports": all})).expect("every port is free");
    for _ in 1..6 {
        create(&admission, json!({"ports": http()})).expect("every address is free");
    }
}

#[test]
fn stored_services_are_adopted_and_a_clash_is_told() {
    let stored = create(&dual(), json!({"ports": http(), "type": "NodePort"})).expect("admitted");
    let restarted = dual();
    assert_eq!(restarted.adopt(&stored), Vec::<String>::new());
    assert_eq!(restarted.adopt(&stored).len(), 2);
    let asks = json!({"ports": http(), "clusterIP": spec(&stored).cluster_ip});
    create(&restarted, asks).expect_err("held");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_address_or_port_is_ever_held_twice(
        steps in prop::collection::vec((0usize..8, 0u8..4, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let admission = cluster(&["10.0.0.0/28", "fd00::/124"]);
        let mut slots: Vec<Option<Service>> = vec![None; 8];
        let types = ["ClusterIP", "NodePort", "LoadBalancer", "ClusterIP"];
        for (slot, kind, two, undone) in steps {
            let wish = json!({
                "type": types[usize::from(kind)],
                "ipFamilyPolicy": if two { "PreferDualStack" } else { "SingleStack" },
                "ports": http(),
            });
            let old = slots[slot].clone();
            if kind == 3 && old.is_some() {
                admission.admit(None, old.as_ref()).expect("deletion");
                if undone { admission.roll_back(None, old.as_ref()) } else { slots[slot] = None }
                continue;
            }
            let mut new = service(wish);
            if admission.admit(Some(&mut new), old.as_ref()).is_ok() {
                if undone { admission.roll_back(Some(&new), old.as_ref()) } else { slots[slot] = Some(new) }
            }
            let mut addresses: Vec<_> =
                slots.iter().flatten().flat_map(|one| spec(one).cluster_ips.clone().unwrap_or_default()).collect();
            let mut ports: Vec<_> = slots.iter().flatten().filter_map(node_port).collect();
            let held = (addresses.len(), ports.len());
            addresses.sort();
            addresses.dedup();
            ports.sort_unstable();
            ports.dedup();
            prop_assert_eq!(held, (addresses.len(), ports.len()));
        }
    }
}
