//! Which backends flows may stay with (S45), whoever gets new connections.

use std::sync::Arc;

use quilla_model::{Family, ObjectName, Protocol, Service};

use crate::cluster::{Cluster, cluster_ip, endpoint, port, slice};

/// Those of a protocol, sorted.
fn existing(cluster: &Cluster, protocol: Protocol) -> Vec<String> {
    let planned = cluster.plan();
    let of_protocol = |key: &&quilla_plan::BackendKey| key.protocol == protocol.number();
    let keys = planned.desired.backends.keys().filter(of_protocol);
    let mut found: Vec<_> = keys.map(|key| format!("{} {}", key.address, key.port)).collect();
    found.sort_unstable();
    found
}

fn both(name: &str) -> Service {
    Service {
        ports: vec![port("", 80, Protocol::Tcp, None), port("", 53, Protocol::Udp, None)],
        ..cluster_ip(name, &["10.96.0.1", "fd00:96::1"])
    }
}

/// As kube-proxy has it: while some endpoint serves, datagrams stay only with those that do, terminating or not; streams
/// stay wherever they are.
#[test]
fn s45_datagrams_leave_an_endpoint_that_does_not_serve_for_one_that_does() {
    let states = [("10.244.1.2", "rs"), ("10.244.1.3", ""), ("10.244.1.4", "st"), ("10.244.1.5", "t")];
    let endpoints = states.map(|(address, letters)| endpoint(address, letters, ""));
    let cluster = Cluster::new().with(both("web")).endpoints("web", &endpoints);
    assert_eq!(existing(&cluster, Protocol::Udp), ["10.244.1.2 5353", "10.244.1.4 5353"]);
    assert_eq!(existing(&cluster, Protocol::Tcp).len(), 4);

    let nobody = Cluster::new().with(both("web")).endpoints("web", &[endpoints[1].clone()]);
    assert_eq!(existing(&nobody, Protocol::Udp), ["10.244.1.3 5353"], "there is no better one");
    let other_family = nobody.endpoints("web", &[endpoints[1].clone(), endpoint("fd00::1", "rs", "")]);
    assert_eq!(existing(&other_family, Protocol::Udp), ["10.244.1.3 5353", "fd00::1 5353"]);
}

#[test]
fn s45_what_another_service_serves_stays_whatever_one_says() {
    let unready = [endpoint("10.244.1.2", "", ""), endpoint("10.244.1.3", "rs", "")];
    let cluster = Cluster::new().with(both("one")).endpoints("one", &unready);
    let other = Service { cluster_ips: vec!["10.96.0.2".parse().expect("an address")], ..both("two") };
    let cluster = cluster.with(other).endpoints("two", &[endpoint("10.244.1.2", "rs", "")]);
    assert_eq!(existing(&cluster, Protocol::Udp), ["10.244.1.2 5353", "10.244.1.3 5353"]);
}

/// What slices list exists under every name; what a Service does not have costs no number.
#[test]
fn s45_endpoints_exist_whatever_their_ports_are_called() {
    let endpoints = vec![endpoint("10.244.1.2", "rs", ""), endpoint("127.0.0.1", "rs", "")];
    let mut listed = slice("web", Family::V4, endpoints);
    for (port, name) in listed.ports.iter_mut().zip(["http", "dns"]) {
        port.name = name.into();
    }
    let mut sctp = listed.ports[0].clone();
    sctp.protocol = Protocol::Sctp;
    let mut zero = listed.ports[0].clone();
    zero.port = 0;
    listed.ports.extend([sctp, zero]);
    let six = slice("web", Family::V6, vec![endpoint("fd00::1", "rs", "")]);
    let mut cluster = Cluster::new().with(cluster_ip("web", &["10.96.0.1"])).slice(listed).slice(six);
    let planned = cluster.plan();
    assert_eq!(planned.set("10.96.0.1:80", crate::cluster::INSIDE).members, [], "rows go by names");
    assert_eq!(existing(&cluster, Protocol::Tcp), ["10.244.1.2 8080"]);
    assert_eq!(planned.desired.backends.len(), 1, "it has no UDP and no IPv6");
    let headless = Service::new(ObjectName::new("shop", "web"));
    cluster.snapshot.services.insert(headless.name.clone(), Arc::new(headless));
    assert!(cluster.plan().desired.backends.is_empty());
}
