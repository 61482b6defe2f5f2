//! What the server serves, told in the forms clients ask for it.
//!
//! Invariant: everything here is computed from the table of kinds.

use serde_json::{Value, json};

use crate::resource::{RESOURCES, Resource};

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const STATUS_VERBS: [&str; 3] = ["get", "patch", "update"];

/// The media type of aggregated discovery.
pub(super) const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The Kubernetes minor version whose behaviour this server follows.
const MINOR: &str = "33";

pub(super) fn version() -> Value {
    json!({
        "major": "1", "minor": MINOR,
        "gitVersion": format!("v1.{MINOR}.0+quilla-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}

pub(super) fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

pub(super) fn groups() -> Value {
    let groups: Vec<_> = named_groups().into_iter().map(group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

pub(super) fn group(name: &str) -> Value {
    let versions: Vec<_> = versions(name)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": name,
        "preferredVersion": versions[0], "versions": versions,
    })
}

pub(super) fn resources(group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for resource in of(group, version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": VERBS,
        });
        name_shortly(resource, &mut entry);
        list.push(entry);
        if resource.has_status() {
            list.push(json!({
                "name": format!("{}/status", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": resource.kind, "verbs": STATUS_VERBS,
            }));
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list})
}

/// All at once, for the core group or for all the others.
pub(super) fn aggregated(core: bool) -> Value {
    let names = if core { vec![""] } else { named_groups() };
    let items: Vec<_> = names
        .into_iter()
        .map(|name| {
            let versions: Vec<_> = versions(name)
                .into_iter()
                .map(|version| {
                    let resources: Vec<_> = of(name, version).map(aggregated_resource).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let mut entry = json!({
        "resource": resource.plural, "singularResource": resource.singular, "responseKind": kind,
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" }, "verbs": VERBS,
    });
    name_shortly(resource, &mut entry);
    if resource.has_status() {
        entry["subresources"] =
            json!([{"subresource": "status", "responseKind": kind, "verbs": STATUS_VERBS}]);
    }
    entry
}

fn name_shortly(resource: &Resource, entry: &mut Value) {
    for (field, names) in [("shortNames", resource.short_names), ("categories", resource.categories)] {
        if !names.is_empty() {
            entry[field] = json!(names);
        }
    }
}

pub(super) fn of(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(move |resource| resource.group == group && resource.version == version)
}

/// All groups but the core one.
pub(super) fn named_groups() -> Vec<&'static str> {
    let mut names: Vec<_> = RESOURCES.iter().map(|r| r.group).filter(|name| !name.is_empty()).collect();
    names.dedup();
    names
}

pub(super) fn versions(group: &str) -> Vec<&'static str> {
    let mut versions: Vec<_> = RESOURCES.iter().filter(|r| r.group == group).map(|r| r.version).collect();
    versions.dedup();
    versions
}
