//! Nodes.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node as ApiNode, NodeSpec};
use kube::ResourceExt;
use quilla_model::Node;
use quilla_model::address::parse_lenient;

use super::driver::{Notes, Watch};
use super::{Kind, Value};

const ZONE: &str = "topology.kubernetes.io/zone";

/// A taint of the cluster autoscaler on a node that it is about to remove.
const SCALED_DOWN: &str = "ToBeDeletedByClusterAutoscaler";

pub(super) struct Watched;

impl Watch for Watched {
    type Object = ApiNode;
    const KIND: Kind = Kind::Node;

    fn read(object: &ApiNode, notes: &mut Notes) -> Option<Value> {
        let zone = object.labels().get(ZONE).filter(|zone| !zone.is_empty());
        Some(Value::Node(Arc::new(Node {
            name: object.name_any(),
            addresses: internal_ips(object, notes),
            pod_cidrs: object.spec.as_ref().map_or_else(Vec::new, |spec| pod_cidrs(spec, notes)),
            zone: zone.cloned(),
            leaving: leaving(object),
        })))
    }
}

fn leaving(object: &ApiNode) -> bool {
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    object.metadata.deletion_timestamp.is_some()
        || taints.into_iter().flatten().any(|taint| taint.key == SCALED_DOWN)
}

fn internal_ips(object: &ApiNode, notes: &mut Notes) -> Vec<IpAddr> {
    let listed = object.status.as_ref().and_then(|status| status.addresses.as_ref());
    let internal = listed.into_iter().flatten().filter(|address| address.type_ == "InternalIP");
    let mut parse = |text: &String| notes.parsed("status.addresses InternalIP", text, parse_lenient(text));
    internal.filter_map(|address| parse(&address.address)).collect()
}

/// `podCIDRs`, or the older `podCIDR` where only that is set.
fn pod_cidrs(spec: &NodeSpec, notes: &mut Notes) -> Vec<IpNet> {
    let listed = spec.pod_cidrs.as_deref().unwrap_or_default();
    let texts = if listed.is_empty() { spec.pod_cidr.as_slice() } else { listed };
    let parsed =
        texts.iter().filter_map(|text| notes.parsed("spec.podCIDRs", text, text.parse::<IpNet>().ok()));
    parsed.map(|cidr| cidr.trunc()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Watched;
    use crate::watch::Value;
    use crate::watch::driver::tests::read;

    #[test]
    fn bad_addresses_and_cidrs_are_skipped_one_by_one() {
        let known = read::<Watched>(json!({
            "metadata": {"name": "a", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:244::/64", "10.244.0.0"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "a"},
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "nonsense"},
                {"type": "ExternalIP", "address": "198.51.100.1"},
            ]},
        }));
        let Some(Value::Node(node)) = &known.value else { panic!("{known:?}") };
        assert_eq!(node.addresses, [std::net::IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(node.pod_cidrs.len(), 2);
        assert_eq!(node.zone.as_deref(), Some("z1"));
        assert_eq!(known.problems.len(), 2);
    }

    #[test]
    fn a_node_that_just_joined_has_nothing_yet() {
        let known = read::<Watched>(json!({"metadata": {"name": "a"}}));
        let Some(Value::Node(node)) = &known.value else { panic!("{known:?}") };
        assert_eq!((node.pod_cidrs.len(), known.problems.len()), (0, 0));
    }

    #[test]
    fn s41_a_node_that_is_deleted_or_scaled_down_is_leaving() {
        let leaving = |metadata: serde_json::Value, taint: &str| {
            let spec = json!({"taints": [{"key": taint, "effect": "NoSchedule"}]});
            let known = read::<Watched>(json!({"metadata": metadata, "spec": spec}));
            let Some(Value::Node(node)) = known.value else { panic!("{:?}", known.problems) };
            node.leaving
        };
        let present = json!({"name": "a"});
        assert!(!leaving(present.clone(), "node.kubernetes.io/unschedulable"), "a drain is no farewell");
        assert!(leaving(present, "ToBeDeletedByClusterAutoscaler"));
        let deleted = json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert!(leaving(deleted, "other"));
    }
}
