//! Objects in, slices out.
#![allow(clippy::needless_pass_by_value, reason = "JSON reads best inline")]

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::slices::LARGEST;
use super::{
    HEADLESS_LABEL, MANAGED_BY, MANAGED_BY_LABEL, Plan, SERVICE_LABEL, TRIGGER_ANNOTATION, Topology,
    Triggers, WEIGHT_ANNOTATION, desired, plan, pod_trigger, service_trigger,
};
use crate::reconcile::cache::{Change, Key};

fn service(spec: Value) -> Service {
    let mut spec = spec;
    let defaults = json!({"clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "ports": [{"port": 80, "targetPort": 8080}]});
    for (key, value) in defaults.as_object().expect("object") {
        spec.as_object_mut().expect("object").entry(key).or_insert_with(|| value.clone());
    }
    let metadata = json!({"name": "web", "namespace": "default", "uid": "s1", "labels": {"team": "a"}});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("service")
}

fn pod(number: u8, ready: bool) -> Value {
    json!({
        "metadata": {"name": format!("p{number}"), "namespace": "default", "uid": format!("u{number:03}")},
        "spec": {"nodeName": format!("n{}", number % 2), "containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": 8000 + u16::from(number % 2)}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.0.0.{number}")}, {"ip": format!("fd00::{number}")}],
                   "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    })
}

fn typed(pod: Value) -> Pod {
    serde_json::from_value(pod).expect("pod")
}

fn node(name: &str, zone: Option<&str>) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": zone.map(|zone| json!({"topology.kubernetes.io/zone": zone}))},
        "status": {"allocatable": {"cpu": "4"}, "conditions": [{"type": "Ready", "status": "True"}]},
    }))
    .expect("node")
}

/// Only one of the two nodes tells its zone.
fn planned(service: &Service, pods: &[Pod], existing: &[EndpointSlice]) -> Plan {
    let topology = Topology::of(&[node("n0", None), node("n1", Some("z1"))]);
    plan(service, desired(service, pods, &topology), existing)
}

/// The endpoints of a first plan.
fn endpoints(service: &Service, pods: &[Pod]) -> Vec<Endpoint> {
    planned(service, pods, &[])
        .create
        .into_iter()
        .flat_map(|slice| slice.endpoints.unwrap_or_default())
        .collect()
}

/// Carries a plan out.
fn apply(mut slices: Vec<EndpointSlice>, plan: Plan, serial: &mut u32) -> Vec<EndpointSlice> {
    let gone: Vec<_> = plan.delete.iter().map(|slice| slice.metadata.name.clone()).collect();
    slices.retain(|slice| !gone.contains(&slice.metadata.name));
    for new in plan.update {
        let stored = slices.iter_mut().find(|slice| slice.metadata.name == new.metadata.name);
        *stored.expect("an update is of a slice that exists") = new;
    }
    for mut new in plan.create {
        *serial += 1;
        new.metadata.name = Some(format!("web-{serial}"));
        slices.push(new);
    }
    slices
}

#[test]
fn s6_conditions_follow_the_pod() {
    let mut terminating = pod(3, true);
    terminating["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let pods = [typed(pod(1, true)), typed(pod(2, false)), typed(terminating)];
    let found = |publish: bool| -> Vec<_> {
        let service = service(json!({"publishNotReadyAddresses": publish}));
        let found = endpoints(&service, &pods).into_iter().map(|one| one.conditions.expect("set"));
        found.map(|one| (one.ready, one.serving, one.terminating)).collect()
    };
    let (yes, no) = (Some(true), Some(false));
    assert_eq!(found(false), [(yes, yes, no), (no, no, no), (no, yes, yes)]);
    assert_eq!(found(true), [(yes, yes, no), (yes, no, no), (yes, yes, yes)]);
}

#[test]
fn finished_pods_and_pods_without_an_address_are_no_endpoints() {
    let mut pods = vec![typed(pod(1, true))];
    for phase in ["Succeeded", "Failed"] {
        let mut finished = pod(2, true);
        finished["status"]["phase"] = json!(phase);
        pods.push(typed(finished));
    }
    let mut nowhere = pod(3, true);
    nowhere["status"]["podIPs"] = json!([]);
    pods.push(typed(nowhere));
    let mut malformed = pod(4, true);
    malformed["status"]["podIPs"] = json!([{"ip": "127.0.0.1"}, {"ip": "x"}]);
    pods.push(typed(malformed));
    assert_eq!(endpoints(&service(json!({})), &pods).len(), 1);
}

#[test]
fn each_family_and_each_set_of_ports_has_slices_of_its_own() {
    let spec =
        json!({"ipFamilies": ["IPv4", "IPv6"], "ports": [{"name": "w", "port": 80, "targetPort": "http"}]});
    let plan = planned(&service(spec), &[typed(pod(1, true)), typed(pod(2, true))], &[]);
    let mut found: Vec<_> = plan
        .create
        .iter()
        .map(|slice| {
            let port = &slice.ports.as_ref().expect("ports")[0];
            let address = slice.endpoints.as_ref().expect("endpoints")[0].addresses[0].clone();
            (slice.address_type.as_str(), port.port, address)
        })
        .collect();
    found.sort();
    let expected = [
        ("IPv4", Some(8000), "10.0.0.2"),
        ("IPv4", Some(8001), "10.0.0.1"),
        ("IPv6", Some(8000), "fd00::2"),
        ("IPv6", Some(8001), "fd00::1"),
    ];
    assert_eq!(found, expected.map(|(family, port, address)| (family, port, address.to_owned())));
}

#[test]
fn a_name_or_protocol_nobody_serves_makes_no_endpoint() {
    for target in [
        json!({"port": 80, "targetPort": "admin"}),
        json!({"port": 80, "targetPort": "http", "protocol": "UDP"}),
    ] {
        assert!(endpoints(&service(json!({"ports": [target]})), &[typed(pod(1, true))]).is_empty());
    }
    let portless = service(json!({"clusterIP": "None", "ports": []}));
    assert_eq!(endpoints(&portless, &[typed(pod(1, true))]).len(), 1);
}

#[test]
fn an_endpoint_tells_its_pod_node_and_zone() {
    let mut named = pod(1, true);
    named["spec"]["hostname"] = json!("first");
    named["spec"]["subdomain"] = json!("web");
    let found = endpoints(&service(json!({})), &[typed(named)]).remove(0);
    assert_eq!(
        serde_json::to_value(found).expect("json"),
        json!({
            "addresses": ["10.0.0.1"], "hostname": "first", "nodeName": "n1", "zone": "z1",
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "p1", "uid": "u001"},
        })
    );
}

#[test]
fn s15_traffic_distribution_becomes_hints_of_ready_endpoints() {
    let pods = [typed(pod(1, true)), typed(pod(2, true)), typed(pod(3, false))];
    for (distribution, expected) in [
        ("PreferSameZone", [json!({"forZones": [{"name": "z1"}]}), Value::Null, Value::Null]),
        ("PreferClose", [json!({"forZones": [{"name": "z1"}]}), Value::Null, Value::Null]),
        (
            "PreferSameNode",
            [
                json!({"forZones": [{"name": "z1"}], "forNodes": [{"name": "n1"}]}),
                json!({"forNodes": [{"name": "n0"}]}),
                Value::Null,
            ],
        ),
    ] {
        let found = endpoints(&service(json!({"trafficDistribution": distribution})), &pods);
        let found: Vec<_> = found.iter().map(|one| serde_json::to_value(&one.hints).expect("json")).collect();
        assert_eq!(found, expected, "{distribution}");
    }
}

fn zones(endpoints: &[Endpoint]) -> Vec<Option<&str>> {
    let hint = |endpoint: &Endpoint| Some(endpoint.hints.as_ref()?.for_zones.as_ref()?[0].name.clone());
    let zone = |endpoint| match hint(endpoint)?.as_str() {
        "z0" => Some("z0"),
        "z1" => Some("z1"),
        other => panic!("no node is in {other}"),
    };
    endpoints.iter().map(zone).collect()
}

#[test]
fn s16_topology_mode_auto_shares_endpoints_out_by_capacity() {
    let topology = Topology::of(&[node("n0", Some("z0")), node("n1", Some("z1"))]);
    let unknown = Topology::of(&[node("n0", None), node("n1", Some("z1"))]);
    let found = |mode: &str, numbers: &[u8], topology: &Topology| -> Vec<Endpoint> {
        let mut service = service(json!({"trafficDistribution": "PreferSameNode"}));
        service.metadata.annotations =
            Some([("service.kubernetes.io/topology-mode".to_owned(), mode.to_owned())].into());
        let pods: Vec<_> = numbers.iter().map(|&number| typed(pod(number, number < 100))).collect();
        desired(&service, &pods, topology).into_values().flat_map(BTreeMap::into_values).collect()
    };
    let (z0, z1) = (Some("z0"), Some("z1"));
    assert_eq!(zones(&found("Auto", &[2, 3], &topology)), [z0, z1], "at home");
    // Three endpoints in zone 1: the last of them serves zone 0, and one that is not ready counts for nothing.
    assert_eq!(zones(&found("Auto", &[1, 2, 3, 5, 101], &topology)), [z1, z0, z1, z0, None]);
    for (numbers, topology, why) in
        [(&[1u8, 2][..], &unknown, "a node without a zone"), (&[1][..], &topology, "too few endpoints")]
    {
        let found = found("auto", numbers, topology);
        assert!(found.iter().all(|endpoint| endpoint.hints.is_none()), "{why}");
    }
    let of_node = found("Disabled", &[1], &topology).remove(0).hints.expect("as the spec says");
    assert_eq!(of_node.for_nodes.expect("node")[0].name, "n1");
}

#[test]
fn s6_a_pod_on_the_host_network_serves_at_its_node_s_address() {
    let mut host = pod(1, true);
    host["spec"]["hostNetwork"] = json!(true);
    host["status"]["hostIP"] = json!("192.0.2.1");
    host["status"]["podIP"] = json!("192.0.2.1");
    host["status"]["podIPs"] = json!([{"ip": "192.0.2.1"}]);
    let service = service(json!({"ipFamilies": ["IPv4", "IPv6"]}));
    let found = endpoints(&service, &[typed(host)]);
    let addresses: Vec<_> = found.iter().map(|one| one.addresses[0].as_str()).collect();
    assert_eq!(addresses, ["192.0.2.1"]);
}

fn weighted(number: u8, weight: &str) -> Pod {
    let mut weighted = pod(number, true);
    weighted["metadata"]["annotations"] = json!({WEIGHT_ANNOTATION: weight});
    typed(weighted)
}

fn weight(slice: &EndpointSlice) -> Option<String> {
    slice.metadata.annotations.as_ref()?.get(WEIGHT_ANNOTATION).cloned()
}

#[test]
fn pods_of_different_weight_have_slices_of_their_own() {
    let service = service(json!({}));
    let pods =
        [typed(pod(2, true)), weighted(4, "1"), weighted(6, "20"), weighted(8, "0"), weighted(10, "x")];
    let plan = planned(&service, &pods, &[]);
    let mut found: Vec<_> = plan
        .create
        .iter()
        .map(|slice| (weight(slice), slice.endpoints.as_ref().expect("endpoints").len()))
        .collect();
    found.sort();
    assert_eq!(found, [(None, 3), (Some("0".to_owned()), 1), (Some("20".to_owned()), 1)]);
}

#[test]
fn s17_an_endpoint_whose_weight_changes_is_never_missing() {
    let service = service(json!({}));
    let pods = |weight: &str| [typed(pod(2, true)), weighted(4, weight), weighted(6, "20")];
    let mut serial = 0;
    for (before, after) in [("1", "20"), ("20", "1")] {
        let slices = apply(Vec::new(), planned(&service, &pods(before), &[]), &mut serial);
        let moved = planned(&service, &pods(after), &slices);
        assert_eq!((moved.create.len(), moved.update.len(), moved.delete.len()), (0, 2, 0));
        let holds =
            |at: usize| moved.update[at].endpoints.iter().flatten().any(|one| one.addresses[0] == "10.0.0.4");
        assert!(holds(0) && !holds(1), "the slice that gains it is written first");
        let slices = apply(slices, moved, &mut serial);
        assert!(planned(&service, &pods(after), &slices).is_empty());
    }
}

#[test]
fn slices_carry_the_labels_of_the_service_and_ours() {
    let slice = planned(&service(json!({"clusterIP": "None"})), &[typed(pod(1, true))], &[]).create.remove(0);
    let expected =
        [("team", "a"), (SERVICE_LABEL, "web"), (MANAGED_BY_LABEL, MANAGED_BY), (HEADLESS_LABEL, "")];
    let expected: BTreeMap<_, _> =
        expected.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    assert_eq!(slice.metadata.labels, Some(expected));
    assert_eq!(slice.metadata.owner_references.expect("owner")[0].uid, "s1");
}

#[test]
fn a_change_of_one_endpoint_writes_one_slice() {
    let service = service(json!({}));
    let mut pods: Vec<_> = (0..250).map(|number| typed(pod(number, true))).collect();
    let mut serial = 0;
    let slices = apply(Vec::new(), planned(&service, &pods, &[]), &mut serial);
    let sizes: Vec<_> = slices.iter().map(|slice| slice.endpoints.as_ref().expect("set").len()).collect();
    assert_eq!(sizes, [LARGEST, LARGEST, 50]);
    pods[120] = typed(pod(120, false));
    let change = planned(&service, &pods, &slices);
    assert_eq!((change.create.len(), change.update.len(), change.delete.len()), (0, 1, 0));
    let slices = apply(slices, change, &mut serial);
    pods.push(typed(pod(250, true)));
    let growth = planned(&service, &pods, &slices);
    assert_eq!((growth.create.len(), growth.update.len()), (0, 1), "the slice with room takes it");
    let slices = apply(slices, growth, &mut serial);
    assert_eq!(planned(&service, &[], &slices).delete.len(), 3);
}

/// A Pod whose readiness changed at a time.
fn since(time: &str, ready: bool) -> Pod {
    let mut pod = pod(1, ready);
    pod["status"]["conditions"][0]["lastTransitionTime"] = json!(time);
    typed(pod)
}

fn pod_change(old: Option<&Pod>, new: &Pod) -> Option<String> {
    let change = Change {
        key: Key::new("default", "p1"),
        old: old.map(|old| Arc::new(old.clone())),
        new: Some(Arc::new(new.clone())),
    };
    pod_trigger(&change).map(|time| time.0.to_string())
}

#[test]
fn s53_only_a_new_moment_of_a_pod_is_a_trigger() {
    let (early, late) = ("2026-01-02T00:00:00Z", "2026-01-02T00:03:00Z");
    let (unready, ready) = (since(early, false), since(late, true));
    assert_eq!(pod_change(None, &unready).as_deref(), Some(early));
    assert_eq!(pod_change(Some(&unready), &ready).as_deref(), Some(late));
    let mut labelled = ready.clone();
    labelled.metadata.labels = Some([("app".to_owned(), "web".to_owned())].into());
    assert_eq!(pod_change(Some(&ready), &labelled), None, "the Pod is as ready as it was");
    let mut ending = ready.clone();
    ending.metadata.deletion_timestamp = Some(Time("2026-01-02T00:05:30Z".parse().expect("time")));
    ending.metadata.deletion_grace_period_seconds = Some(30);
    assert_eq!(
        pod_change(Some(&ready), &ending).as_deref(),
        Some("2026-01-02T00:05:00Z"),
        "when it was asked"
    );
    assert_eq!(pod_change(Some(&ending), &ending), None);
}

#[test]
fn s53_a_service_triggers_by_its_creation_only() {
    let time = Time("2026-01-02T00:00:00Z".parse().expect("time"));
    let mut new = service(json!({}));
    new.metadata.creation_timestamp = Some(time.clone());
    let trigger = |old: Option<&Service>, new: &Service| {
        let old = old.map(|old| Arc::new(old.clone()));
        service_trigger(&Change { key: Key::new("default", "web"), old, new: Some(Arc::new(new.clone())) })
    };
    assert_eq!(trigger(None, &new), Some(time.clone()));
    assert_eq!(trigger(Some(&new), &new), None);
    let mut again = new.clone();
    again.metadata.uid = Some("s2".to_owned());
    assert_eq!(trigger(Some(&new), &again), Some(time), "deleted and created again between two looks");
}

#[test]
fn s53_a_change_is_told_once_and_a_stamp_never_outlives_it() {
    let time = |text: &str| Time(text.parse().expect("time"));
    let (early, late) = (time("2026-01-02T00:00:00Z"), time("2026-01-02T00:03:00Z"));
    let key = Key::new("default", "web");
    let mut triggers = Triggers::default();
    triggers.put(key.clone(), late.clone());
    triggers.put(key.clone(), early);
    assert_eq!(triggers.take(&key), Some(late.clone()));
    assert_eq!(triggers.take(&key), None);

    let stamp = |slice: &EndpointSlice| {
        slice.metadata.annotations.as_ref().and_then(|all| all.get(TRIGGER_ANNOTATION)).cloned()
    };
    let pods = [typed(pod(1, true))];
    let mut first = planned(&service(json!({})), &pods, &[]);
    first.stamp(Some(&late));
    assert_eq!(stamp(&first.create[0]).as_deref(), Some("2026-01-02T00:03:00Z"));
    let slices = apply(Vec::new(), first, &mut 0);
    let mut labelled = service(json!({}));
    labelled.metadata.labels = None;
    let mut second = planned(&labelled, &pods, &slices);
    second.stamp(None);
    assert_eq!(stamp(&second.update[0]), None);
    let moved = service(json!({"ports": [{"port": 80, "targetPort": 8081}]}));
    let mut third = planned(&moved, &pods, &slices);
    third.stamp(None);
    assert_eq!(stamp(&third.create[0]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_plan_reaches_the_desired_state_and_then_rests(
        steps in prop::collection::vec(prop::collection::vec((0u8..=254, any::<bool>()), 0..230), 1..5),
    ) {
        let service = service(json!({
            "ipFamilies": ["IPv4", "IPv6"], "ports": [{"name": "w", "port": 80, "targetPort": "http"}]}));
        let (mut slices, mut serial) = (Vec::new(), 0);
        for step in steps {
            let states: BTreeMap<_, _> = step.into_iter().collect();
            let weigh = |number: u8, mut pod: Value| {
                pod["metadata"]["annotations"] = json!({WEIGHT_ANNOTATION: (number % 3).to_string()});
                typed(pod)
            };
            let pods: Vec<_> = states.iter().map(|(&number, &ready)| weigh(number, pod(number, ready))).collect();
            let plan = planned(&service, &pods, &slices);
            slices = apply(slices, plan, &mut serial);
            let mut found: Vec<_> =
                slices.iter().flat_map(|slice| slice.endpoints.iter().flatten()).map(|one| one.addresses[0].clone()).collect();
            prop_assert!(slices.iter().all(|slice| (1..=LARGEST).contains(&slice.endpoints.as_ref().map_or(0, Vec::len))));
            found.sort();
            let mut expected: Vec<_> =
                states.keys().flat_map(|number| [format!("10.0.0.{number}"), format!("fd00::{number}")]).collect();
            expected = expected.into_iter().map(|text| text.parse::<std::net::IpAddr>().expect("ip").to_string()).collect();
            expected.sort();
            prop_assert_eq!(found, expected);
            prop_assert!(planned(&service, &pods, &slices).is_empty(), "a second plan changes nothing");
        }
    }
}
