//! Everything the watches know at one moment.
//!
//! What there may be many of is shared between snapshots, so that taking one costs next to nothing; a snapshot is never
//! changed after it was published.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use litemap::LiteMap;
use serde::{Deserialize, Serialize};

use crate::{EndpointSlice, Namespace, Node, ObjectName, Pod, Service, SharedMap};

/// The cluster's intent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Services.
    pub services: SharedMap<ObjectName, Arc<Service>>,
    /// Endpoint slices by their Service, then by their own name.
    pub slices: SharedMap<ObjectName, LiteMap<Arc<str>, Arc<EndpointSlice>>>,
    /// Nodes.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// Pods of this node.
    pub pods: BTreeMap<ObjectName, Arc<Pod>>,
    /// Namespaces.
    pub namespaces: BTreeMap<String, Arc<Namespace>>,
    /// What Services get their addresses from, by the object that says so.
    pub service_cidrs: BTreeMap<String, Vec<IpNet>>,
}

impl Snapshot {
    /// All slices of a Service.
    pub fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flat_map(|slices| slices.values().map(Arc::as_ref))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Snapshot;
    use crate::{Node, ObjectName, Pod};

    #[test]
    fn survives_the_disk() {
        let mut snapshot = Snapshot::default();
        let name = ObjectName::new("shop", "cart");
        let pod = Pod {
            name: name.clone(),
            uid: "1".into(),
            addresses: vec![],
            host_network: false,
            finished: false,
            wished_addresses: None,
        };
        snapshot.pods.insert(name, Arc::new(pod));
        let addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let pod_cidrs = vec!["10.244.0.0/24".parse().unwrap()];
        let node = Node { name: "a".into(), addresses, pod_cidrs, zone: None, leaving: false };
        snapshot.nodes.insert("a".into(), Arc::new(node));
        snapshot.service_cidrs.insert("kubernetes".into(), vec!["10.96.0.0/16".parse().unwrap()]);

        let stored = serde_json::to_string(&snapshot).unwrap();
        assert_eq!(serde_json::from_str::<Snapshot>(&stored).unwrap(), snapshot);
    }
}
