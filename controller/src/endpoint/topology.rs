//! What hints need to know of the cluster's nodes. Made by the reconciler from the nodes it sees; compared with the one
//! before to tell whether a change of a node matters to any Service.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// Nodes that carry one of these run no workload worth counting.
const CONTROL_PLANE_LABELS: [&str; 2] =
    ["node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"];

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    zones: BTreeMap<String, String>,
    capacity: Option<BTreeMap<String, u64>>,
}

impl Topology {
    pub fn of<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Self {
        let mut zones = BTreeMap::new();
        let mut capacity = Some(BTreeMap::new());
        for node in nodes {
            let zone = zone(node);
            if let (Some(name), Some(zone)) = (&node.metadata.name, zone) {
                zones.insert(name.clone(), zone.to_owned());
            }
            if !is_worker(node) {
                continue;
            }
            // S16: one node that is not known well enough, and no zone can be weighed against another.
            match (zone, milli_cpus(node), &mut capacity) {
                (Some(zone), Some(cpus), Some(all)) => *all.entry(zone.to_owned()).or_default() += cpus,
                _ => capacity = None,
            }
        }
        Self { zones, capacity: capacity.filter(|zones| zones.len() > 1) }
    }

    /// The zone of a node, if it says one.
    pub(super) fn zone(&self, node: &str) -> Option<&str> {
        self.zones.get(node).map(String::as_str)
    }

    /// The CPUs of the ready nodes by zone, in thousandths: of two zones at least, and only if every ready node tells
    /// both its zone and its CPUs.
    pub(super) fn capacity(&self) -> Option<&BTreeMap<String, u64>> {
        self.capacity.as_ref()
    }
}

fn zone(node: &Node) -> Option<&str> {
    node.metadata.labels.as_ref()?.get(ZONE_LABEL).map(String::as_str).filter(|zone| !zone.is_empty())
}

fn is_worker(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let controls =
        CONTROL_PLANE_LABELS.iter().any(|label| labels.is_some_and(|labels| labels.contains_key(*label)));
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.filter(|one| one.type_ == "Ready").any(|one| one.status == "True");
    ready && !controls
}

/// A quantity of CPUs as nodes write it: `4`, `3920m`, `0.5`.
fn milli_cpus(node: &Node) -> Option<u64> {
    let text = &node.status.as_ref()?.allocatable.as_ref()?.get("cpu")?.0;
    let milli = if let Some(milli) = text.strip_suffix('m') {
        milli.parse().ok()?
    } else {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let part: String = part.chars().chain("000".chars()).take(3).collect();
        whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(part.parse().ok()?)?
    };
    Some(milli).filter(|&milli| milli > 0)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::{Value, json};

    use super::Topology;

    fn node(name: &str, zone: &str, cpu: &str, ready: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn capacity(nodes: &[Value]) -> Option<Vec<(String, u64)>> {
        let nodes: Vec<Node> =
            nodes.iter().map(|one| serde_json::from_value(one.clone()).expect("node")).collect();
        Topology::of(&nodes).capacity().map(|zones| zones.clone().into_iter().collect())
    }

    #[test]
    fn s16_zones_are_weighed_only_if_every_ready_node_is_known() {
        let (a, b) = (node("a", "z1", "4", "True"), node("b", "z2", "1500m", "True"));
        let both = Some(vec![("z1".to_owned(), 4000), ("z2".to_owned(), 1500)]);
        assert_eq!(capacity(&[a.clone(), b.clone()]), both);
        assert_eq!(capacity(std::slice::from_ref(&a)), None, "one zone only");
        for unknown in
            [node("c", "", "4", "True"), node("c", "z1", "0", "True"), node("c", "z1", "four", "True")]
        {
            assert_eq!(capacity(&[a.clone(), b.clone(), unknown.clone()]), None, "{unknown}");
        }
        let mut control = node("c", "", "4", "True");
        control["metadata"]["labels"]["node-role.kubernetes.io/control-plane"] = json!("");
        for ignored in [node("c", "", "4", "False"), control] {
            assert_eq!(capacity(&[a.clone(), b.clone(), ignored.clone()]), both, "{ignored}");
        }
        assert_eq!(capacity(&[a, node("c", "z1", "0.25", "True"), b]).expect("known")[0].1, 4250);
    }
}
