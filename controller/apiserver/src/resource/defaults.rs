//! The defaults Kubernetes writes into objects, as far as clients or their patches depend on them.
//!
//! `Resource::set_defaults` calls it before validation. Invariant: a default never replaces what the client said, and
//! applying defaults twice changes nothing more.

use serde_json::{Value, json};

use crate::object;

pub(super) fn none(_: &mut Value) {}

pub(super) fn namespace(namespace: &mut Value) {
    set(namespace, "spec", "finalizers", json!(["kubernetes"]));
    set(namespace, "status", "phase", json!("Active"));
    let name = object::name(namespace).to_owned();
    let labels = object::metadata(namespace).entry("labels").or_insert(Value::Null);
    object::map(labels).insert("kubernetes.io/metadata.name".to_owned(), json!(name));
}

pub(super) fn pod(pod: &mut Value) {
    for (field, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("enableServiceLinks", json!(true)),
        ("securityContext", json!({})),
    ] {
        set(pod, "spec", field, value);
    }
    for list in ["containers", "initContainers"] {
        for container in elements(&mut pod["spec"], list) {
            let image = container["image"].as_str().unwrap_or_default();
            let tag = image.rsplit('/').next().unwrap_or_default();
            let latest = !tag.contains(':') || tag.ends_with(":latest");
            fill(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
            fill(container, "terminationMessagePath", json!("/dev/termination-log"));
            fill(container, "terminationMessagePolicy", json!("File"));
            fill(container, "resources", json!({}));
            protocols(container);
        }
    }
    set(pod, "status", "phase", json!("Pending"));
}

pub(super) fn service(service: &mut Value) {
    set(service, "spec", "type", json!("ClusterIP"));
    set(service, "spec", "sessionAffinity", json!("None"));
    let external = service["spec"]["type"] == "ExternalName";
    if !external {
        set(service, "spec", "internalTrafficPolicy", json!("Cluster"));
    }
    if matches!(service["spec"]["type"].as_str(), Some("NodePort" | "LoadBalancer")) {
        set(service, "spec", "externalTrafficPolicy", json!("Cluster"));
    }
    if service["spec"]["type"] == "LoadBalancer" {
        set(service, "spec", "allocateLoadBalancerNodePorts", json!(true));
    }
    if service["spec"]["sessionAffinity"] == "ClientIP" {
        set(service, "spec", "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    protocols(&mut service["spec"]);
    for port in elements(&mut service["spec"], "ports") {
        let target = port["port"].clone();
        if !target.is_null() {
            fill(port, "targetPort", target);
        }
    }
    set_status(service, json!({"loadBalancer": {}}));
}

pub(super) fn endpoints(endpoints: &mut Value) {
    elements(endpoints, "subsets").for_each(protocols);
}

pub(super) fn endpoint_slice(slice: &mut Value) {
    protocols(slice);
    for port in elements(slice, "ports") {
        fill(port, "name", json!(""));
    }
}

pub(super) fn network_policy(policy: &mut Value) {
    let egress = policy["spec"]["egress"].as_array().is_some_and(|rules| !rules.is_empty());
    set(policy, "spec", "podSelector", json!({}));
    set(
        policy,
        "spec",
        "policyTypes",
        if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) },
    );
    for direction in ["ingress", "egress"] {
        elements(&mut policy["spec"], direction).for_each(protocols);
    }
}

pub(super) fn node(node: &mut Value) {
    object::map(&mut node["spec"]);
}

/// `stringData` is a write-only convenience for `data`.
pub(super) fn secret(secret: &mut Value) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    fill(secret, "type", json!("Opaque"));
    let Some(Value::Object(plain)) = object::map(secret).remove("stringData") else { return };
    let data = object::map(&mut secret["data"]);
    for (key, value) in plain {
        data.insert(key, json!(STANDARD.encode(value.as_str().unwrap_or_default())));
    }
}

fn protocols(holder: &mut Value) {
    for port in elements(holder, "ports") {
        fill(port, "protocol", json!("TCP"));
    }
}

/// The objects of a list field; none if it is absent.
fn elements<'a>(holder: &'a mut Value, list: &str) -> impl Iterator<Item = &'a mut Value> {
    holder.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
}

fn fill(holder: &mut Value, field: &str, value: Value) {
    object::map(holder).entry(field).or_insert(value);
}

fn set(object: &mut Value, part: &str, field: &str, value: Value) {
    fill(object::map(object).entry(part).or_insert_with(|| json!({})), field, value);
}

fn set_status(object: &mut Value, status: Value) {
    object::map(object).entry("status").or_insert(status);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_fill_and_do_not_replace() {
        let mut object = json!({"spec": {"sessionAffinity": "ClientIP", "ports": [{"port": 80}, {"port": 53, "protocol": "UDP", "targetPort": "dns"}]}});
        service(&mut object);
        assert_eq!(object["spec"]["ports"][0], json!({"port": 80, "targetPort": 80, "protocol": "TCP"}));
        assert_eq!(object["spec"]["ports"][1], json!({"port": 53, "targetPort": "dns", "protocol": "UDP"}));
        assert_eq!(object["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10800);
        let once = object.clone();
        service(&mut object);
        assert_eq!(object, once);
    }

    #[test]
    fn secrets_take_plain_text() {
        let mut object = json!({"stringData": {"a": "b"}});
        secret(&mut object);
        assert_eq!(object, json!({"type": "Opaque", "data": {"a": "Yg=="}}));
    }
}
