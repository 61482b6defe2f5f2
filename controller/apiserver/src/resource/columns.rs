//! What `kubectl get` shows of each kind: the cells of server-side tables.
//!
//! Rows of `table` name these; `http::printer` renders them. Invariant: a cell is computed from the object alone and
//! never fails; what is not there shows as `<none>`, as in Kubernetes.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{self, at};

/// One column: priority 0 is always shown, higher ones with `-o wide`.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) format: &'static str,
    pub(crate) priority: u8,
    pub(crate) cell: fn(&Value) -> Value,
}

pub(super) const fn column(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column { name, format: "", priority: 0, cell }
}

pub(super) const fn wide(name: &'static str, cell: fn(&Value) -> Value) -> Column {
    Column { name, format: "", priority: 1, cell }
}

pub(super) const NAME: Column =
    Column { name: "Name", format: "name", priority: 0, cell: |object| json!(object::name(object)) };
pub(super) const AGE: Column = column("Age", |object| age(object::meta(object, "creationTimestamp")));

pub(super) const PLAIN: &[Column] = &[NAME, AGE];
pub(super) const NAMESPACE: &[Column] = &[NAME, column("Status", |object| text(object, "status.phase")), AGE];
pub(super) const CONFIG_MAP: &[Column] =
    &[NAME, column("Data", |object| json!(entries(&object["data"]) + entries(&object["binaryData"]))), AGE];
pub(super) const SECRET: &[Column] = &[
    NAME,
    column("Type", |object| text(object, "type")),
    column("Data", |object| json!(entries(&object["data"]))),
    AGE,
];
pub(super) const SERVICE_ACCOUNT: &[Column] =
    &[NAME, column("Secrets", |object| json!(elements(&object["secrets"]).count())), AGE];
pub(super) const NODE: &[Column] = &[
    NAME,
    column("Status", node_status),
    column("Roles", node_roles),
    AGE,
    column("Version", |object| text(object, "status.nodeInfo.kubeletVersion")),
    wide("Internal-IP", |object| node_address(object, "InternalIP")),
    wide("External-IP", |object| node_address(object, "ExternalIP")),
    wide("OS-Image", |object| unknown(at(object, "status.nodeInfo.osImage"))),
    wide("Kernel-Version", |object| unknown(at(object, "status.nodeInfo.kernelVersion"))),
    wide("Container-Runtime", |object| unknown(at(object, "status.nodeInfo.containerRuntimeVersion"))),
];
pub(super) const POD: &[Column] = &[
    NAME,
    column("Ready", pod_ready),
    column("Status", pod_status),
    column("Restarts", |object| {
        json!(
            elements(&object["status"]["containerStatuses"])
                .filter_map(|s| s["restartCount"].as_u64())
                .sum::<u64>()
                .to_string()
        )
    }),
    AGE,
    wide("IP", |object| text(object, "status.podIP")),
    wide("Node", |object| text(object, "spec.nodeName")),
    wide("Nominated Node", |object| text(object, "status.nominatedNodeName")),
    wide("Readiness Gates", |_| json!("<none>")),
];
pub(super) const SERVICE: &[Column] = &[
    NAME,
    column("Type", |object| text(object, "spec.type")),
    column("Cluster-IP", |object| text(object, "spec.clusterIP")),
    column("External-IP", service_external),
    column("Port(s)", service_ports),
    AGE,
    wide("Selector", |object| pairs(&object["spec"]["selector"])),
];
pub(super) const ENDPOINTS: &[Column] = &[NAME, column("Endpoints", endpoints), AGE];
pub(super) const ENDPOINT_SLICE: &[Column] = &[
    NAME,
    column("AddressType", |object| text(object, "addressType")),
    column("Ports", |object| first(elements(&object["ports"]).map(|port| plain(&port["port"])), "<unset>")),
    column("Endpoints", |object| {
        let addresses = elements(&object["endpoints"]).flat_map(|endpoint| elements(&endpoint["addresses"]));
        first(addresses.map(plain), "<unset>")
    }),
    AGE,
];
pub(super) const NETWORK_POLICY: &[Column] =
    &[NAME, column("Pod-Selector", |object| json!(label_selector(&object["spec"]["podSelector"]))), AGE];
pub(super) const SERVICE_CIDR: &[Column] =
    &[NAME, column("CIDRs", |object| json!(join(elements(&object["spec"]["cidrs"]).map(plain)))), AGE];
pub(super) const IP_ADDRESS: &[Column] = &[NAME, column("ParentRef", parent), AGE];
pub(super) const LEASE: &[Column] =
    &[NAME, column("Holder", |object| text(object, "spec.holderIdentity")), AGE];
pub(super) const EVENT: &[Column] = &[
    column("Last Seen", |event| {
        let times = ["lastTimestamp", "eventTime", "firstTimestamp"].map(|field| event[field].as_str());
        age(times.into_iter().flatten().next().unwrap_or(object::meta(event, "creationTimestamp")))
    }),
    column("Type", |event| text(event, "type")),
    column("Reason", |event| text(event, "reason")),
    column("Object", |event| {
        let of = &event["involvedObject"];
        json!(format!("{}/{}", plain(&of["kind"]).to_lowercase(), plain(&of["name"])))
    }),
    wide("Subobject", |event| json!(plain(at(event, "involvedObject.fieldPath")))),
    wide("Source", |event| json!(plain(at(event, "source.component")))),
    column("Message", |event| json!(plain(&event["message"]).trim())),
    wide("First Seen", |event| age(event["firstTimestamp"].as_str().unwrap_or_default())),
    wide("Count", |event| event["count"].as_u64().map_or(json!(1), Value::from)),
    Column { name: "Name", format: "name", priority: 1, cell: |event| json!(object::name(event)) },
];

// === cells ===

fn node_status(node: &Value) -> Value {
    let ready = condition(node, "Ready");
    let mut status = match ready {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    json!(status)
}

fn node_roles(node: &Value) -> Value {
    let labels = node["metadata"]["labels"].as_object();
    let roles =
        labels.into_iter().flatten().filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"));
    let roles = join(roles.map(str::to_owned));
    json!(if roles.is_empty() { "<none>".to_owned() } else { roles })
}

fn node_address(node: &Value, kind: &str) -> Value {
    let found = elements(&node["status"]["addresses"]).find(|address| address["type"] == kind);
    json!(found.map_or_else(|| "<none>".to_owned(), |address| plain(&address["address"])))
}

fn pod_ready(pod: &Value) -> Value {
    let ready =
        elements(&pod["status"]["containerStatuses"]).filter(|status| status["ready"] == true).count();
    json!(format!("{ready}/{}", elements(&pod["spec"]["containers"]).count()))
}

fn pod_status(pod: &Value) -> Value {
    if object::is_terminating(pod) {
        return json!("Terminating");
    }
    let waiting = elements(&pod["status"]["containerStatuses"])
        .filter_map(|status| {
            let state = &status["state"];
            state["waiting"]["reason"].as_str().or(state["terminated"]["reason"].as_str())
        })
        .last();
    match waiting.or(pod["status"]["reason"].as_str()) {
        Some(reason) => json!(reason),
        None => text(pod, "status.phase"),
    }
}

fn service_external(service: &Value) -> Value {
    let external = elements(&service["spec"]["externalIPs"]).map(plain);
    let assigned = elements(&service["status"]["loadBalancer"]["ingress"]).map(|ingress| {
        let ip = plain(&ingress["ip"]);
        if ip.is_empty() { plain(&ingress["hostname"]) } else { ip }
    });
    let shown = match service["spec"]["type"].as_str() {
        Some("LoadBalancer") => join(assigned.chain(external)),
        Some("ExternalName") => plain(&service["spec"]["externalName"]),
        _ => join(external),
    };
    match (shown.is_empty(), service["spec"]["type"] == "LoadBalancer") {
        (true, true) => json!("<pending>"),
        (true, false) => json!("<none>"),
        _ => json!(shown),
    }
}

fn service_ports(service: &Value) -> Value {
    let ports = join(elements(&service["spec"]["ports"]).map(|port| {
        let (number, protocol) = (plain(&port["port"]), plain(&port["protocol"]));
        match port["nodePort"].as_u64().filter(|number| *number > 0) {
            Some(node_port) => format!("{number}:{node_port}/{protocol}"),
            None => format!("{number}/{protocol}"),
        }
    }));
    json!(if ports.is_empty() { "<none>".to_owned() } else { ports })
}

fn endpoints(endpoints: &Value) -> Value {
    let mut shown = Vec::new();
    for subset in elements(&endpoints["subsets"]) {
        for address in elements(&subset["addresses"]) {
            let ip = plain(&address["ip"]);
            let ip = if ip.contains(':') { format!("[{ip}]") } else { ip };
            shown.extend(elements(&subset["ports"]).map(|port| format!("{ip}:{}", plain(&port["port"]))));
        }
    }
    first(shown.into_iter(), "<none>")
}

fn parent(address: &Value) -> Value {
    let parent = &address["spec"]["parentRef"];
    let parts = ["resource", "namespace", "name"].map(|field| plain(&parent[field]));
    json!(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"))
}

// === pieces ===

fn elements(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn entries(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

/// Text without quotes; empty if absent.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn text(object: &Value, path: &str) -> Value {
    let text = plain(at(object, path));
    json!(if text.is_empty() { "<none>".to_owned() } else { text })
}

fn unknown(value: &Value) -> Value {
    json!(value.as_str().unwrap_or("<unknown>"))
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

/// The first three, and how many more.
fn first(parts: impl Iterator<Item = String>, none: &str) -> Value {
    let parts: Vec<_> = parts.collect();
    let shown = parts[..parts.len().min(3)].join(",");
    json!(match parts.len() {
        0 => none.to_owned(),
        1..=3 => shown,
        all => format!("{shown} + {} more...", all - 3),
    })
}

fn pairs(map: &Value) -> Value {
    let pairs =
        join(map.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", plain(value))));
    json!(if pairs.is_empty() { "<none>".to_owned() } else { pairs })
}

fn label_selector(selector: &Value) -> String {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let equal = equal.map(|(key, value)| format!("{key}={}", plain(value)));
    let expressions = elements(&selector["matchExpressions"]).map(|expression| {
        let key = plain(&expression["key"]);
        let values = join(elements(&expression["values"]).map(plain));
        match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key,
        }
    });
    let text = join(equal.chain(expressions));
    if text.is_empty() { "<none>".to_owned() } else { text }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    elements(&object["status"]["conditions"]).find(|condition| condition["type"] == kind)?["status"].as_str()
}

fn age(since: &str) -> Value {
    let Ok(since) = since.parse::<Timestamp>() else { return json!("<unknown>") };
    json!(duration(Timestamp::now().as_second() - since.as_second()))
}

/// Two units at most, the shorter the older: `59s`, `5m30s`, `59m`, `5h2m`, `3d4h`, `400d`, `3y10d`.
fn duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        ..0 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_writes_them() {
        for (seconds, text) in [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (3540, "59m"),
            (10_800, "3h"),
            (18_120, "5h2m"),
            (172_800, "2d"),
            (273_600, "3d4h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
        ] {
            assert_eq!(duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn cells_of_a_service_and_of_nothing() {
        let service = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]}});
        assert_eq!(service_ports(&service), "80:30080/TCP");
        assert_eq!(service_external(&service), "<none>");
        for column in
            SERVICE.iter().chain(POD).chain(NODE).chain(EVENT).chain(ENDPOINTS).chain(ENDPOINT_SLICE)
        {
            drop((column.cell)(&Value::Null));
        }
        let addresses: Vec<_> = (1..=5).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        let object = json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        assert_eq!(endpoints(&object), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...");
    }
}
