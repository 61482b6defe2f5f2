//! Writes in, what is stored or refused out.

use quilla_apiserver::{Admission, AdmissionRequest, Operation, Rejection};
use serde_json::{Value, json};

use super::NetworkAdmission;
use crate::service::{NodePortRange, ServiceAdmission};

fn request<'a>(group: &'a str, resource: &'a str) -> AdmissionRequest<'a> {
    AdmissionRequest {
        group,
        version: "v1",
        resource,
        namespace: Some("default"),
        name: "x",
        operation: Operation::Create,
        subresource: None,
        old: None,
        dry_run: false,
    }
}

fn admission() -> NetworkAdmission {
    let cidrs = ["10.96.0.0/24".parse().expect("cidr")];
    let admission = NetworkAdmission::new(ServiceAdmission::new(&cidrs, NodePortRange::default()));
    admission.adopt(&[], &[]);
    admission
}

#[test]
fn s51_nothing_is_allocated_before_stored_services_are_known() {
    let cidrs = ["10.96.0.0/24".parse().expect("cidr")];
    let admission = NetworkAdmission::new(ServiceAdmission::new(&cidrs, NodePortRange::default()));
    let asked =
        json!({"metadata": {"name": "x"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}});
    let refused = admission.admit(&request("", "services"), Some(&mut asked.clone())).expect_err("too early");
    assert_eq!(refused.code, 503);
    let stored =
        json!({"metadata": {"name": "y"}, "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}});
    admission.adopt(&[], &[stored, json!({"spec": 1})]);
    let refused = admission.admit(&request("", "services"), Some(&mut asked.clone())).expect_err("taken");
    assert_eq!(refused.code, 422);
}

#[test]
fn a_service_comes_back_complete_and_is_given_up_when_undone() {
    let admission = admission();
    let asked =
        json!({"metadata": {"name": "x"}, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]}});
    let mut new = asked.clone();
    admission.admit(&request("", "services"), Some(&mut new)).expect("admitted");
    assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.9"]));
    assert_eq!(new["metadata"], asked["metadata"]);
    admission.admit(&request("", "services"), Some(&mut asked.clone())).expect_err("taken");
    admission.rolled_back(&request("", "services"), Some(&new));
    admission.admit(&request("", "services"), Some(&mut asked.clone())).expect("free again");
}

#[test]
fn a_refusal_names_kind_object_and_field() {
    let mut new =
        json!({"metadata": {"name": "x"}, "addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}]});
    let refused = admission()
        .admit(&request("discovery.k8s.io", "endpointslices"), Some(&mut new))
        .expect_err("loopback of the other family");
    assert_eq!((refused.code, refused.reason), (422, "Invalid"));
    assert!(
        refused.message.starts_with("EndpointSlice.discovery.k8s.io \"x\" is invalid: ["),
        "{}",
        refused.message
    );
    assert_eq!(refused.causes.len(), 2);
    assert_eq!(refused.causes[0].field, "endpoints[0].addresses[0]");
}

#[test]
fn what_is_not_of_its_type_is_a_bad_request_and_other_kinds_pass() {
    let mut new = json!({"metadata": {"name": "x"}, "spec": {"ports": "none"}});
    let refused = admission().admit(&request("", "services"), Some(&mut new)).expect_err("malformed");
    assert_eq!(refused.code, 400);
    admission().admit(&request("", "configmaps"), Some(&mut new)).expect("not ours");
}

/// Creates, changes or deletes a `ServiceCIDR`: what `old` and `new` are tells which.
fn write_cidr(
    admission: &NetworkAdmission,
    name: &str,
    old: Option<&Value>,
    new: Option<&mut Value>,
) -> Result<(), Rejection> {
    admission.admit(&cidr_request(name, old, new.is_some()), new)
}

fn cidr_request<'a>(name: &'a str, old: Option<&'a Value>, stays: bool) -> AdmissionRequest<'a> {
    let operation = match (old, stays) {
        (None, _) => Operation::Create,
        (Some(_), true) => Operation::Update,
        (Some(_), false) => Operation::Delete,
    };
    AdmissionRequest { name, operation, old, ..request("networking.k8s.io", "servicecidrs") }
}

fn cidr(name: &str, networks: &[&str]) -> Value {
    json!({"metadata": {"name": name}, "spec": {"cidrs": networks}})
}

fn service_at(address: &str) -> Value {
    json!({"metadata": {"name": "x"}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}})
}

#[test]
fn services_get_addresses_of_networks_added_at_run_time_while_these_last() {
    let admission = admission();
    let refused = |error: Rejection| (error.code, error.causes.first().map(|cause| cause.field.clone()));
    let outside = admission.admit(&request("", "services"), Some(&mut service_at("10.97.0.9")));
    assert_eq!(refused(outside.expect_err("outside")), (422, Some("spec.clusterIPs[0]".to_owned())));
    let mut more = cidr("more", &["10.97.0.0/28"]);
    write_cidr(&admission, "more", None, Some(&mut more)).expect("added");
    assert_eq!(more["status"]["conditions"][0]["type"], "Ready");
    let mut service = service_at("10.97.0.9");
    admission.admit(&request("", "services"), Some(&mut service)).expect("inside now");

    let held = write_cidr(&admission, "more", Some(&more), None).expect_err("in use");
    assert_eq!(held.code, 409);
    assert!(held.message.contains("1 of its addresses are held by services: 10.97.0.9"), "{}", held.message);
    let mut around = cidr("around", &["10.97.0.0/24"]);
    write_cidr(&admission, "around", None, Some(&mut around)).expect("networks may overlap");
    admission.admit(&request("", "services"), Some(&mut service_at("10.97.0.9"))).expect_err("held once");
    write_cidr(&admission, "more", Some(&more), None).expect("its address lies in the other too");
    write_cidr(&admission, "around", Some(&around), None).expect_err("now the last");
    let delete =
        AdmissionRequest { operation: Operation::Delete, old: Some(&service), ..request("", "services") };
    admission.admit(&delete, None).expect("deleted");
    write_cidr(&admission, "around", Some(&around), None).expect("nothing is left");
    admission.admit(&request("", "services"), Some(&mut service_at("10.97.0.9"))).expect_err("outside again");
}

#[test]
fn a_service_cidr_that_was_not_stored_leaves_nothing() {
    let admission = admission();
    let mut more = cidr("more", &["10.97.0.0/28"]);
    write_cidr(&admission, "more", None, Some(&mut more)).expect("added");
    admission.rolled_back(&cidr_request("more", None, true), Some(&more));
    admission.admit(&request("", "services"), Some(&mut service_at("10.97.0.9"))).expect_err("undone");
    write_cidr(&admission, "more", None, Some(&mut more)).expect("added");
    write_cidr(&admission, "more", Some(&more), None).expect("deleted");
    admission.rolled_back(&cidr_request("more", Some(&more), false), None);
    admission.admit(&request("", "services"), Some(&mut service_at("10.97.0.9"))).expect("restored");
}

#[test]
fn the_object_of_the_command_line_s_networks_adds_nothing() {
    let admission = admission();
    let mut own = cidr("kubernetes", &["10.97.0.0/28"]);
    write_cidr(&admission, "kubernetes", None, Some(&mut own)).expect("stored");
    admission.admit(&request("", "services"), Some(&mut service_at("10.97.0.9"))).expect_err("outside");
    admission.adopt(&[cidr("more", &["10.98.0.0/28"])], &[]);
    admission
        .admit(&request("", "services"), Some(&mut service_at("10.98.0.9")))
        .expect("S51: stored network");
}

#[test]
fn networks_that_make_no_sense_are_refused() {
    let cidrs = ["10.96.0.0/24".parse().expect("cidr")];
    let services = ServiceAdmission::new(&cidrs, NodePortRange::default());
    let admission = NetworkAdmission::new(services.reserving(&["10.244.0.0/16".parse().expect("cidr")]));
    admission.adopt(&[], &[]);
    for (networks, why) in [
        (&[][..], "at least one CIDR required"),
        (&["10.97.0.1/28"], "must be in canonical form"),
        (&["10.97.0.0/28", "10.98.0.0/28"], "no more than one IP for each IP family"),
        (&["fd00::/112"], "not configured on this cluster"),
        (&["10.244.7.0/24"], "overlaps 10.244.0.0/16"),
        (&["ten"], "must be a valid CIDR value"),
    ] {
        let told = write_cidr(&admission, "more", None, Some(&mut cidr("more", networks))).expect_err(why);
        assert!(told.code == 422 && told.message.contains(why), "expected {why:?}, got {}", told.message);
    }
    let stored = cidr("more", &["10.97.0.0/28"]);
    let told = write_cidr(&admission, "more", Some(&stored), Some(&mut cidr("more", &["10.98.0.0/28"])));
    assert!(told.expect_err("immutable").message.contains("field is immutable"));
}

fn status_write(spec: &Value, entry: &Value) -> Result<Value, Rejection> {
    let mut new =
        json!({"metadata": {"name": "x"}, "spec": spec, "status": {"loadBalancer": {"ingress": [entry]}}});
    let request = AdmissionRequest {
        subresource: Some("status"),
        operation: Operation::Update,
        ..request("", "services")
    };
    admission().admit(&request, Some(&mut new))?;
    Ok(new["status"]["loadBalancer"]["ingress"][0].clone())
}

#[test]
fn s3_a_balancer_s_address_has_a_mode() {
    let balanced = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
    let told = status_write(&balanced, &json!({"ip": "192.0.2.1"})).expect("accepted");
    assert_eq!(told, json!({"ip": "192.0.2.1", "ipMode": "VIP"}));
    let proxied = json!({"ip": "192.0.2.1", "ipMode": "Proxy"});
    assert_eq!(status_write(&balanced, &proxied).expect("accepted"), proxied);
    let named = json!({"hostname": "lb.example.net"});
    assert_eq!(status_write(&balanced, &named).expect("accepted"), named);
    let field = "status.loadBalancer.ingress";
    for (spec, entry, at) in [
        (&balanced, json!({"ip": "192.0.2"}), "[0].ip"),
        (&balanced, json!({"ip": "192.0.2.1", "ipMode": "Direct"}), "[0].ipMode"),
        (&balanced, json!({"hostname": "a", "ipMode": "VIP"}), "[0].ipMode"),
        (&balanced, json!({"hostname": "192.0.2.1"}), "[0].hostname"),
        (&balanced, json!({"hostname": "not a name"}), "[0].hostname"),
        (&json!({"type": "NodePort"}), json!({"ip": "192.0.2.1"}), ""),
    ] {
        let told = status_write(spec, &entry).expect_err(&entry.to_string());
        assert_eq!(told.causes[0].field, format!("{field}{at}"), "{entry}");
    }
}

#[test]
fn s3_a_service_that_is_no_balancer_any_more_has_no_balancer_s_address() {
    let admission = admission();
    let mut old =
        json!({"metadata": {"name": "x"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    admission.admit(&request("", "services"), Some(&mut old)).expect("created");
    old["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}});
    let update =
        AdmissionRequest { operation: Operation::Update, old: Some(&old), ..request("", "services") };
    let mut same = old.clone();
    admission.admit(&update, Some(&mut same)).expect("unchanged");
    assert_eq!(same["status"], old["status"]);
    let mut plain = old.clone();
    plain["spec"]["type"] = json!("NodePort");
    admission.admit(&update, Some(&mut plain)).expect("type may change");
    assert_eq!(plain["status"], json!({"loadBalancer": {}}));
}
