use std::sync::Arc;

use quilla_abi::service::flag;
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, ObjectName, Problem, Protocol, Reason, Service,
    ServicePort, Snapshot, TrafficPolicy,
};

use crate::desired::{BackendSet, Desired, Frontend};
use crate::facts::NodeFacts;

fn service(name: &str, cluster_ips: &[&str], ports: &[(&str, u16, Protocol)]) -> Service {
    let port = |&(name, port, protocol): &(&str, u16, Protocol)| ServicePort {
        name: name.into(),
        port,
        protocol,
        node_port: None,
    };
    Service {
        cluster_ips: cluster_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: ports.iter().map(port).collect(),
        ..Service::new(ObjectName::new("shop", name))
    }
}

fn endpoint(address: &str) -> Endpoint {
    let address = address.parse().unwrap();
    Endpoint { address, ready: true, serving: true, terminating: false, node: None, pod: None, hints: None }
}

fn slice(
    name: &str,
    service: &str,
    family: Family,
    ports: &[(&str, u16)],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let port =
        |&(name, port): &(&str, u16)| EndpointPort { name: name.into(), port, protocol: Protocol::Tcp };
    EndpointSlice {
        name: ObjectName::new("shop", name),
        service: ObjectName::new("shop", service),
        family,
        ports: ports.iter().map(port).collect(),
        endpoints,
        weight: 1,
    }
}

fn planned(services: Vec<Service>, slices: Vec<EndpointSlice>) -> (Desired, Vec<Problem>) {
    planned_for(&NodeFacts::new("here"), services, slices)
}

fn planned_for(
    facts: &NodeFacts,
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
) -> (Desired, Vec<Problem>) {
    let mut snapshot = Snapshot::default();
    for service in services {
        snapshot.services.insert(service.name.clone(), Arc::new(service));
    }
    for slice in slices {
        let of_service = snapshot.slices.or_default(slice.service.clone());
        of_service.insert(slice.name.name.clone(), Arc::new(slice));
    }
    crate::plan(&snapshot, facts)
}

fn frontend<'a>(desired: &'a Desired, address: &str, port: u16) -> &'a Frontend {
    let address = address.parse::<std::net::IpAddr>().unwrap();
    let found = desired.frontends.iter().find(|(key, _)| key.address == address && key.port == port);
    found.unwrap_or_else(|| panic!("{address} {port} in {:?}", desired.frontends)).1
}

fn set<'a>(desired: &'a Desired, address: &str, port: u16) -> &'a BackendSet {
    &desired.sets[&frontend(desired, address, port).set]
}

fn backends(set: &BackendSet) -> Vec<String> {
    set.members.iter().map(|member| format!("{} {}", member.backend.address, member.backend.port)).collect()
}

fn reasons(problems: &[Problem]) -> Vec<Reason> {
    problems.iter().map(|problem| problem.reason).collect()
}

#[test]
fn s2_each_family_and_port_has_its_own_set() {
    let (desired, problems) = planned(
        vec![service(
            "web",
            &["10.96.0.1", "fd00:96::1"],
            &[("http", 80, Protocol::Tcp), ("admin", 81, Protocol::Tcp)],
        )],
        vec![
            slice("web-4", "web", Family::V4, &[("http", 8080), ("admin", 9090)], vec![endpoint("10.0.0.1")]),
            slice("web-6", "web", Family::V6, &[("http", 8080)], vec![endpoint("fd00::1")]),
        ],
    );
    assert_eq!(problems, []);
    assert_eq!(backends(set(&desired, "10.96.0.1", 80)), ["10.0.0.1 8080"]);
    assert_eq!(backends(set(&desired, "10.96.0.1", 81)), ["10.0.0.1 9090"]);
    assert_eq!(backends(set(&desired, "fd00:96::1", 80)), ["fd00::1 8080"]);
    assert_eq!(
        backends(set(&desired, "fd00:96::1", 81)),
        [""; 0],
        "a frontend without endpoints exists: it rejects"
    );
}

#[test]
fn s5_of_an_address_in_two_slices_the_one_that_stays_counts() {
    let going = Endpoint { ready: false, terminating: true, ..endpoint("10.0.0.1") };
    let (desired, problems) = planned(
        vec![service("web", &["10.96.0.1"], &[("", 80, Protocol::Tcp)])],
        vec![
            slice("a", "web", Family::V4, &[("", 8080)], vec![going]),
            slice("b", "web", Family::V4, &[("", 8080)], vec![endpoint("10.0.0.1"), endpoint("10.0.0.2")]),
        ],
    );
    assert_eq!(problems, []);
    assert_eq!(backends(set(&desired, "10.96.0.1", 80)), ["10.0.0.1 8080", "10.0.0.2 8080"]);
}

#[test]
fn an_unready_endpoint_keeps_its_backend_but_gets_no_new_connections() {
    let unready = Endpoint { ready: false, ..endpoint("10.0.0.2") };
    let (desired, _) = planned(
        vec![service("web", &["10.96.0.1"], &[("", 80, Protocol::Tcp)])],
        vec![slice("a", "web", Family::V4, &[("", 8080)], vec![endpoint("10.0.0.1"), unready])],
    );
    assert_eq!(backends(set(&desired, "10.96.0.1", 80)), ["10.0.0.1 8080"]);
    assert_eq!(desired.backends.len(), 2);
}

#[test]
fn s21_a_local_policy_hides_endpoints_elsewhere_without_rejecting() {
    let local_for = |facts: &NodeFacts, endpoints: Vec<Endpoint>| {
        let mut web = service("web", &["10.96.0.1"], &[("", 80, Protocol::Tcp)]);
        web.internal_policy = TrafficPolicy::Local;
        planned_for(facts, vec![web], vec![slice("a", "web", Family::V4, &[("", 8080)], endpoints)]).0
    };
    let local = |endpoints| local_for(&NodeFacts::new("here"), endpoints);
    let elsewhere = Endpoint { node: Some("there".into()), ..endpoint("10.0.0.1") };
    let here = Endpoint { node: Some("here".into()), ..endpoint("10.0.0.2") };

    let both = local(vec![elsewhere.clone(), here]);
    assert_eq!(backends(set(&both, "10.96.0.1", 80)), ["10.0.0.2 8080"]);
    let hidden = local(vec![elsewhere.clone()]);
    assert_eq!(set(&hidden, "10.96.0.1", 80).flags, flag::DROP_WHEN_EMPTY);
    let outspoken = NodeFacts { reject_without_local: true, ..NodeFacts::new("here") };
    let said = local_for(&outspoken, vec![elsewhere]);
    assert_eq!(set(&said, "10.96.0.1", 80).flags, 0, "the operator wants clients to be told");
    assert_eq!(set(&local(vec![]), "10.96.0.1", 80).flags, 0, "S20: with no endpoint anywhere it rejects");
}

#[test]
fn bad_parts_are_skipped_and_named_and_the_rest_works() {
    let bad = ["127.0.0.1", "224.0.0.1", "169.254.0.1", "0.0.0.0"].map(endpoint);
    let ports = [("", 80, Protocol::Tcp), ("again", 80, Protocol::Tcp), ("sctp", 81, Protocol::Sctp)];
    let (desired, problems) = planned(
        vec![
            service("web", &["10.96.0.1"], &ports),
            service("zed", &["10.96.0.1", "127.0.0.9"], &ports[..1]),
        ],
        vec![
            slice("a", "web", Family::V4, &[("", 8080)], [&bad[..], &[endpoint("10.0.0.1")]].concat()),
            slice("b", "web", Family::V6, &[("", 8080)], vec![endpoint("10.0.0.9")]),
        ],
    );
    assert_eq!(backends(set(&desired, "10.96.0.1", 80)), ["10.0.0.1 8080"]);
    assert_eq!(
        &*frontend(&desired, "10.96.0.1", 80).set.owner.name,
        "web",
        "the first by name keeps the address"
    );
    assert_eq!(desired.frontends.len(), 1);
    let mut found = reasons(&problems);
    found.sort_unstable();
    let unusable = [Reason::UnusableAddress; 6]; // four endpoints, one of the wrong family, one clusterIP
    let others = [Reason::Duplicate, Reason::Conflict, Reason::Unsupported];
    assert_eq!(found, [&unusable[..], &others].concat());
    let details: Vec<_> = problems.iter().map(|problem| problem.detail.as_str()).collect();
    assert!(details.contains(&"port 81 SCTP is not served"), "{details:?}");
    assert!(details.contains(&"port 80 TCP"), "{details:?}: an Event calls it skipped");
}

#[test]
fn a_port_that_changes_protocol_is_another_frontend() {
    let web = |protocol| service("web", &["10.96.0.1"], &[("", 53, protocol)]);
    let (tcp, _) = planned(vec![web(Protocol::Tcp)], vec![]);
    let (udp, _) = planned(vec![web(Protocol::Udp)], vec![]);
    assert_eq!(tcp.frontends.keys().map(|key| key.protocol).collect::<Vec<_>>(), [6]);
    assert_eq!(udp.frontends.keys().map(|key| key.protocol).collect::<Vec<_>>(), [17]);
}
