//! Services (S1-S4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service as ApiService, ServicePort as ApiPort, ServiceSpec};
use kube::ResourceExt;
use quilla_model::address::{parse_lenient, parse_lenient_net};
use quilla_model::{LoadBalancing, Service, ServicePort, ServiceType, TrafficPolicy};

use super::driver::{Notes, Watch, name_of};
use super::{Kind, Value, port};

/// A Service with this label belongs to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// See [`LOAD_BALANCING_ALLOWED`].
const LOAD_BALANCING: &str = "quilla.dev/load-balancing";
const LOAD_BALANCING_ALLOWED: &str = "one of random, maglev, least-connections; random is used";
/// For how long a new endpoint gets fewer connections, such as `30s`.
const SLOW_START: &str = "quilla.dev/slow-start";
const SLOW_START_ALLOWED: &str =
    "a whole number with s, m or h, such as 30s, up to 24h; there is no slow start";
/// The API's default for `ClientIP` affinity.
const AFFINITY_SECONDS: i32 = 10_800;

pub(super) struct Watched;

impl Watch for Watched {
    type Object = ApiService;
    const KIND: Kind = Kind::Service;

    fn read(object: &ApiService, notes: &mut Notes) -> Option<Value> {
        let spec = object.spec.as_ref()?;
        let kind = kind(spec)?;
        let cluster_ips = cluster_ips(spec, notes);
        if cluster_ips.is_empty() || object.labels().contains_key(PROXY_NAME) {
            return None;
        }
        let external_ips = spec.external_ips.iter().flatten();
        let ports = spec.ports.iter().flatten();
        Some(Value::Service(Arc::new(Service {
            name: name_of(object),
            kind,
            cluster_ips,
            ports: ports.filter_map(|port| service_port(port, notes)).collect(),
            internal_policy: policy(spec.internal_traffic_policy.as_deref()),
            external_policy: policy(spec.external_traffic_policy.as_deref()),
            affinity_seconds: affinity(spec, notes),
            external_ips: external_ips.filter_map(|ip| address("externalIP", ip, notes)).collect(),
            load_balancer_ips: load_balancer_ips(object, notes),
            source_ranges: source_ranges(spec, notes),
            health_check_node_port: spec
                .health_check_node_port
                .filter(|&port| port != 0)
                .and_then(|port| port::number("healthCheckNodePort", port, notes)),
            load_balancing: load_balancing(object, notes),
            slow_start_seconds: slow_start(object, notes),
        })))
    }
}

/// `None` for types that have nothing to serve (S1).
fn kind(spec: &ServiceSpec) -> Option<ServiceType> {
    match spec.type_.as_deref().unwrap_or("ClusterIP") {
        "ClusterIP" => Some(ServiceType::ClusterIp),
        "NodePort" => Some(ServiceType::NodePort),
        "LoadBalancer" => Some(ServiceType::LoadBalancer),
        _ => None,
    }
}

/// The first address of each family; none for a headless Service.
fn cluster_ips(spec: &ServiceSpec, notes: &mut Notes) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut addresses: Vec<IpAddr> = Vec::new();
    for text in listed.filter(|text| !text.is_empty() && *text != "None") {
        let Some(address) = address("clusterIP", text, notes) else { continue };
        if !addresses.iter().any(|known| known.is_ipv4() == address.is_ipv4()) {
            addresses.push(address);
        }
    }
    addresses
}

fn address(field: &str, text: &str, notes: &mut Notes) -> Option<IpAddr> {
    notes.parsed(field, text, parse_lenient(text))
}

fn service_port(api: &ApiPort, notes: &mut Notes) -> Option<ServicePort> {
    Some(ServicePort {
        name: api.name.as_deref().unwrap_or_default().into(),
        port: port::number("port", api.port, notes)?,
        protocol: port::protocol("protocol", api.protocol.as_deref(), notes)?,
        node_port: api
            .node_port
            .filter(|&port| port != 0)
            .and_then(|port| port::number("nodePort", port, notes)),
    })
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn affinity(spec: &ServiceSpec, notes: &mut Notes) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = client_ip.and_then(|client_ip| client_ip.timeout_seconds).unwrap_or(AFFINITY_SECONDS);
    let valid = u32::try_from(seconds).ok().filter(|seconds| (1..=86_400).contains(seconds));
    notes.parsed("sessionAffinityConfig.clientIP.timeoutSeconds", &seconds.to_string(), valid)
}

fn load_balancing(object: &ApiService, notes: &mut Notes) -> LoadBalancing {
    let Some(text) = object.annotations().get(LOAD_BALANCING) else { return LoadBalancing::default() };
    let choice = LoadBalancing::parse(text);
    notes.annotation(LOAD_BALANCING, text, choice, LOAD_BALANCING_ALLOWED).unwrap_or_default()
}

fn slow_start(object: &ApiService, notes: &mut Notes) -> u32 {
    let Some(text) = object.annotations().get(SLOW_START) else { return 0 };
    notes.annotation(SLOW_START, text, seconds(text), SLOW_START_ALLOWED).unwrap_or(0)
}

/// A whole number with one of the units `s`, `m` and `h`, up to a day.
fn seconds(text: &str) -> Option<u32> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return None,
    };
    let number: u32 = text[..text.len() - 1].parse().ok()?;
    number.checked_mul(unit).filter(|seconds| *seconds <= 86_400)
}

/// Only addresses that may be short-circuited (S3); entries with a host name only are the load balancer's business.
fn load_balancer_ips(object: &ApiService, notes: &mut Notes) -> Vec<IpAddr> {
    let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
    let virtual_ips = ingress.filter(|entry| entry.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"));
    virtual_ips.filter_map(|entry| address("loadBalancer ingress", entry.ip.as_deref()?, notes)).collect()
}

/// A range that contains everything is no restriction (S2). Of ranges that cannot be read, those that can count; if there
/// is none, nobody is let in: a typing error must not open a Service to the world.
fn source_ranges(spec: &ServiceSpec, notes: &mut Notes) -> Vec<IpNet> {
    let texts = || spec.load_balancer_source_ranges.iter().flatten().map(|text| text.trim());
    let mut ranges: Vec<IpNet> = texts()
        .filter_map(|text| notes.parsed("loadBalancerSourceRange", text, parse_lenient_net(text)))
        .collect();
    for nobody in NOBODY {
        let v4 = nobody.is_ipv4();
        let given = texts().any(|text| text.contains(':') != v4);
        if given && !ranges.iter().any(|range| range.addr().is_ipv4() == v4) {
            ranges.push(nobody.into());
        }
    }
    let unrestricted =
        |v4: bool| ranges.iter().any(|range| range.prefix_len() == 0 && range.addr().is_ipv4() == v4);
    let restricts = |range: &&IpNet| !unrestricted(range.addr().is_ipv4());
    ranges.iter().filter(restricts).copied().collect()
}

/// Addresses that no client has.
const NOBODY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

#[cfg(test)]
mod tests {
    use quilla_model::{LoadBalancing, Protocol, Reason, Service, ServiceType, TrafficPolicy};
    use serde_json::{Value as Json, json};

    use super::Watched;
    use crate::watch::driver::tests::read;
    use crate::watch::{Known, Value};

    fn with_spec(spec: &Json) -> Known {
        read::<Watched>(json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": spec}))
    }

    fn service(known: &Known) -> &Service {
        match &known.value {
            Some(Value::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn s1_what_is_not_ours_is_ignored_without_complaint() {
        for spec in [
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({"clusterIP": ""}),
            json!({"type": "ExternalName", "externalName": "example.org"}),
        ] {
            let known = with_spec(&spec);
            assert_eq!((known.value, known.problems), (None, vec![]), "{spec}");
        }
        let labels = json!({"service.kubernetes.io/service-proxy-name": "other"});
        let metadata = json!({"namespace": "shop", "name": "web", "labels": labels});
        assert_eq!(
            read::<Watched>(json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.1"}})).value,
            None
        );
    }

    #[test]
    fn a_dual_stack_service_is_read_whole() {
        let known = with_spec(&json!({
            "type": "NodePort",
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Cluster",
            "sessionAffinity": "ClientIP",
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}, {"name": "web", "port": 80}],
        }));
        assert_eq!(known.problems, []);
        let service = service(&known);
        assert_eq!(service.kind, ServiceType::NodePort);
        assert_eq!(
            service.cluster_ips,
            ["10.96.0.1".parse::<std::net::IpAddr>().unwrap(), "fd00:96::1".parse().unwrap()]
        );
        assert_eq!(service.internal_policy, TrafficPolicy::Local);
        assert_eq!(service.affinity_seconds, Some(10_800));
        assert_eq!((service.ports[0].protocol, service.ports[0].node_port), (Protocol::Udp, Some(30_053)));
        assert_eq!((service.ports[1].protocol, service.ports[1].node_port), (Protocol::Tcp, None));
    }

    #[test]
    fn s2_s3_lists_of_addresses_lose_only_their_bad_entries() {
        let known = read::<Watched>(json!({
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.1",
                "externalIPs": ["192.0.2.1", "not an address", "010.0.0.9"],
                "loadBalancerSourceRanges": [" 192.0.2.0/24 ", "::/0", "2001:db8::/32", "10.0.0.0/99"],
                "ports": [{"port": 80}, {"port": 0}, {"port": 81, "protocol": "QUIC"}],
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.9"}, {"ip": "192.0.2.10", "ipMode": "Proxy"}, {"hostname": "lb.example.org"},
            ]}},
        }));
        let service = service(&known);
        assert_eq!(service.external_ips.len(), 2);
        assert_eq!(service.source_ranges, ["192.0.2.0/24".parse().unwrap()]);
        assert_eq!(service.load_balancer_ips, ["192.0.2.9".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(service.ports.len(), 1);
        let reasons: Vec<_> = known.problems.iter().map(|problem| problem.reason).collect();
        assert_eq!(reasons, [Reason::Malformed; 4]);
    }

    /// S24, fail closed: ranges that nobody can read let nobody in, each family for itself.
    #[test]
    fn s24_unreadable_source_ranges_are_not_no_restriction() {
        let ranges = |ranges: &[&str]| {
            let known = with_spec(&json!({"clusterIP": "10.96.0.1", "loadBalancerSourceRanges": ranges}));
            service(&known).source_ranges.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(ranges(&["10.0.0.0/99"]), ["0.0.0.0/32"]);
        assert_eq!(ranges(&["fd00::/999", " 010.0.0.0/8 "]), ["10.0.0.0/8", "::/128"]);
        assert_eq!(ranges(&["nonsense", "192.0.2.0/24"]), ["192.0.2.0/24"]);
        assert_eq!(ranges(&["nonsense", "0.0.0.0/0"]), [""; 0]);
        assert_eq!(ranges(&[]), [""; 0]);
    }

    #[test]
    fn annotations_choose_how_connections_are_spread() {
        let read = |key: &str, value: &str| {
            let metadata = json!({"namespace": "shop", "name": "web", "annotations": {key: value}});
            let known = read::<Watched>(json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.1"}}));
            let found = (service(&known).load_balancing, service(&known).slow_start_seconds);
            (found, known.problems.iter().map(|problem| problem.reason).collect::<Vec<_>>())
        };
        let choice = |value: &str| read("quilla.dev/load-balancing", value);
        assert_eq!(choice("maglev"), ((LoadBalancing::Maglev, 0), vec![]));
        assert_eq!(choice("random"), ((LoadBalancing::Random, 0), vec![]));
        assert_eq!(choice("least-connections"), ((LoadBalancing::LeastConnections, 0), vec![]));
        assert_eq!(choice("Maglev"), ((LoadBalancing::Random, 0), vec![Reason::Malformed]));

        for (text, seconds) in [("30s", 30), ("5m", 300), ("1h", 3600), ("24h", 86_400), ("0s", 0)] {
            let expected = ((LoadBalancing::Random, seconds), vec![]);
            assert_eq!(read("quilla.dev/slow-start", text), expected, "{text}");
        }
        for text in ["30", "s", "", "-5s", "1.5s", "25h", "99999999999s", "5000000000m", "5\u{b5}", "5d"] {
            let expected = ((LoadBalancing::Random, 0), vec![Reason::Malformed]);
            assert_eq!(read("quilla.dev/slow-start", text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_wrong_annotation_is_told_what_is_allowed_and_what_counts() {
        let annotations = json!({"quilla.dev/load-balancing": "Maglev", "quilla.dev/slow-start": "30"});
        let metadata = json!({"namespace": "shop", "name": "web", "annotations": annotations});
        let known = read::<Watched>(json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.1"}}));
        let details: Vec<_> = known.problems.iter().map(|problem| problem.detail.as_str()).collect();
        let expected = [
            "quilla.dev/load-balancing \"Maglev\": one of random, maglev, least-connections; random is used",
            "quilla.dev/slow-start \"30\": a whole number with s, m or h, such as 30s, up to 24h; \
             there is no slow start",
        ];
        assert_eq!(details, expected);
    }
}
