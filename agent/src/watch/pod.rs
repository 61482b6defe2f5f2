//! Pods of this node, trimmed.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod as ApiPod, PodStatus};
use kube::ResourceExt;
use quilla_model::Pod;
use quilla_model::address::parse_lenient;

use super::driver::{Notes, Watch, name_of};
use super::{Kind, Value};
use crate::static_address::{self, ALLOWED, ANNOTATION};

pub(super) struct Watched;

impl Watch for Watched {
    type Object = ApiPod;
    const KIND: Kind = Kind::Pod;

    fn read(object: &ApiPod, notes: &mut Notes) -> Option<Value> {
        let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
        Some(Value::Pod(Arc::new(Pod {
            name: name_of(object),
            uid: static_address::uid(object),
            addresses: object.status.as_ref().map_or_else(Vec::new, |status| addresses(status, notes)),
            host_network: object.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            wished_addresses: object.annotations().get(ANNOTATION).cloned().inspect(|text| {
                notes.annotation(ANNOTATION, text, static_address::parse(text), ALLOWED);
            }),
        })))
    }
}

fn addresses(status: &PodStatus, notes: &mut Notes) -> Vec<IpAddr> {
    let listed = status.pod_ips.iter().flatten().map(|pod_ip| pod_ip.ip.as_str());
    listed.filter_map(|text| notes.parsed("status.podIPs", text, parse_lenient(text))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Watched;
    use crate::watch::Value;
    use crate::watch::driver::tests::read;

    #[test]
    fn n17_a_finished_pod_says_so() {
        let known = read::<Watched>(json!({
            "metadata": {"namespace": "shop", "name": "job", "uid": "u1"},
            "spec": {"containers": [], "hostNetwork": true},
            "status": {"phase": "Succeeded", "podIPs": [{"ip": "10.244.0.9"}, {"ip": "fd00::9"}]},
        }));
        let Some(Value::Pod(pod)) = &known.value else { panic!("{known:?}") };
        assert!(pod.finished && pod.host_network);
        assert_eq!((pod.uid.as_str(), pod.addresses.len()), ("u1", 2));
    }

    /// CNI-33: the annotation is kept as it is, so that an ADD is told of a malformed one; the Pod's owner is, too.
    #[test]
    fn cni_33_wished_addresses_are_kept_and_malformed_ones_reported() {
        let known = |annotations: serde_json::Value| {
            read::<Watched>(json!({
                "metadata": {"namespace": "shop", "name": "db", "uid": "u1", "annotations": annotations},
                "spec": {"containers": []},
            }))
        };
        let wish = |annotations| match known(annotations).value {
            Some(Value::Pod(pod)) => (pod.uid.clone(), pod.wished_addresses.clone()),
            other => panic!("{other:?}"),
        };
        assert_eq!(wish(json!({"other": "x"})), ("u1".into(), None));
        let good = json!({"quilla.dev/addresses": "10.1.0.7,fd00::7"});
        assert_eq!(wish(good.clone()).1.as_deref(), Some("10.1.0.7,fd00::7"));
        assert_eq!(known(good).problems, []);
        let bad = json!({"quilla.dev/addresses": "10.1.0"});
        assert_eq!(wish(bad.clone()).1.as_deref(), Some("10.1.0"));
        assert!(known(bad).problems[0].detail.contains("quilla.dev/addresses \"10.1.0\": an IPv4 address"));
        // The kubelet runs a static Pod under the hash that its mirror has in annotations.
        let hash = json!({"kubernetes.io/config.mirror": "h", "kubernetes.io/config.hash": "h"});
        assert_eq!(wish(hash).0, "h");
    }
}
