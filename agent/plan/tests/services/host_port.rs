//! Host ports of this node's Pods (CNI-33).

use std::net::IpAddr;

use quilla_model::{ObjectName, Protocol, Reason};
use quilla_plan::{FrontendKind, HostPort, LocalEndpoint};

use crate::cluster::{Cluster, INSIDE, OUTSIDE, Planned, ip};

fn planned(ports: &[(u16, u16, Protocol, Option<&str>)]) -> Planned {
    let port = |&(host_port, container_port, protocol, host_ip): &(u16, u16, Protocol, Option<&str>)| {
        HostPort { host_port, container_port, protocol, host_ip: host_ip.map(ip) }
    };
    let mut cluster = Cluster::new();
    cluster.facts.endpoints = vec![LocalEndpoint {
        pod: ObjectName::new("shop", "web"),
        ifindex: 7,
        pod_mac: [2; 6],
        host_mac: [4; 6],
        ipv4: Some([10, 244, 1, 7].into()),
        ipv6: match ip("fd00:244:1::7") {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        },
        host_ports: ports.iter().map(port).collect(),
    }];
    cluster.plan()
}

/// CNI-33: at every address of the node, in the family of the address; the node finds it at localhost.
#[test]
fn cni_33_a_host_port_is_at_every_address_of_the_node() {
    let planned = planned(&[(8080, 80, Protocol::Tcp, None)]);
    assert!(planned.problems.is_empty());
    let outside: Vec<_> = planned.listed(OUTSIDE);
    for at in ["192.0.2.1:8080 tcp", "198.51.100.1:8080 tcp", "[2001:db8::1]:8080 tcp"] {
        assert!(outside.iter().any(|listed| listed == at), "{at} in {outside:?}");
    }
    assert_eq!(planned.backends("198.51.100.1:8080", OUTSIDE).unwrap(), ["10.244.1.7:80"]);
    assert_eq!(planned.backends("[2001:db8::1]:8080", INSIDE).unwrap(), ["[fd00:244:1::7]:80"]);
    assert_eq!(planned.backends("127.0.0.1:8080", INSIDE).unwrap(), ["10.244.1.7:80"]);
    assert_eq!(planned.frontend("192.0.2.1:8080", OUTSIDE).unwrap().kind, FrontendKind::HostPort);
    assert_eq!(planned.desired.config.frontend_port_max, 8080);
    assert!(planned.desired.markers.is_empty());
}

/// CNI-33: `hostIP` chooses one address; all zero is all of them; one that is not the node's would take somebody's.
#[test]
fn cni_33_a_host_ip_is_one_of_the_node_s() {
    let one = planned(&[(8080, 80, Protocol::Udp, Some("198.51.100.1"))]);
    assert_eq!(one.listed(OUTSIDE), ["198.51.100.1:8080 udp"]);
    assert_eq!(one.listed(INSIDE), ["198.51.100.1:8080 udp"]);
    let local = planned(&[(8080, 80, Protocol::Tcp, Some("127.0.0.1"))]);
    assert_eq!((local.listed(OUTSIDE).len(), local.listed(INSIDE)), (0, vec!["127.0.0.1:8080 tcp".into()]));
    let all = planned(&[(8080, 80, Protocol::Tcp, Some("0.0.0.0"))]);
    assert_eq!(all.listed(OUTSIDE), planned(&[(8080, 80, Protocol::Tcp, None)]).listed(OUTSIDE));
    let foreign = planned(&[(8080, 80, Protocol::Tcp, Some("8.8.8.8")), (8081, 80, Protocol::Tcp, None)]);
    assert_eq!(
        foreign.problems.iter().map(|problem| problem.reason).collect::<Vec<_>>(),
        [Reason::UnusableAddress]
    );
    assert_eq!(foreign.backends("192.0.2.1:8081", OUTSIDE).unwrap().len(), 1);
}

#[test]
fn bad_host_ports_are_named_and_the_others_work() {
    let planned = planned(&[
        (0, 80, Protocol::Tcp, None),
        (8080, 0, Protocol::Tcp, None),
        (8082, 80, Protocol::Sctp, None),
        (8083, 80, Protocol::Udp, None),
    ]);
    let mut reasons: Vec<_> = planned.problems.iter().map(|problem| problem.reason).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, [Reason::Malformed, Reason::Malformed, Reason::Unsupported]);
    let details: Vec<_> = planned.problems.iter().map(|problem| problem.detail.as_str()).collect();
    assert!(details.contains(&"hostPort 8082 SCTP is not served"), "{details:?}");
    assert!(details.contains(&"hostPort 8080 TCP: leads to port 0"), "{details:?}");
    assert!(planned.listed(OUTSIDE).iter().all(|listed| listed.ends_with("8083 udp")));
}
