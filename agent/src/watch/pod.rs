//! Pods of this node, trimmed.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod as ApiPod, PodStatus};
use kube::ResourceExt;
use quilla_model::Pod;
use quilla_model::address::parse_lenient;

use super::driver::{Notes, Watch, name_of};
use super::{Kind, Value};

pub(super) struct Watched;

impl Watch for Watched {
    type Object = ApiPod;
    const KIND: Kind = Kind::Pod;

    fn read(object: &ApiPod, notes: &mut Notes) -> Option<Value> {
        let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
        Some(Value::Pod(Arc::new(Pod {
            name: name_of(object),
            uid: object.uid().unwrap_or_default(),
            addresses: object.status.as_ref().map_or_else(Vec::new, |status| addresses(status, notes)),
            host_network: object.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
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
}
