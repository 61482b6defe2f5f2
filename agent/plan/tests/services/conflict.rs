//! Two objects that claim one address and port: the more entitled kind has it, then the first by name; the other is told
//! and keeps the rest.

use quilla_model::{ObjectName, Protocol, Reason, Service, TrafficPolicy};
use quilla_plan::{HostPort, LocalEndpoint, ServiceFacts, plan_service};

use crate::cluster::{
    Cluster, INSIDE, OUTSIDE, Planned, cluster_ip, endpoint, ips, load_balancer, node_port, port, two,
};

const NONE: [&str; 0] = [];

fn owner(planned: &Planned, at: &str, scope: u8) -> String {
    planned.frontend(at, scope).map_or_else(|| "nobody".to_owned(), |frontend| frontend.set.owner.to_string())
}

fn external(name: &str, cluster_ip_: &str, external_ips: &[&str]) -> Service {
    Service { external_ips: ips(external_ips), ..cluster_ip(name, &[cluster_ip_]) }
}

/// Overlapping external addresses: one problem for both scopes, and everything else of the loser works.
#[test]
fn the_first_by_name_keeps_an_external_address() {
    let (a, b) = (
        external("a", "10.96.0.1", &["203.0.113.1"]),
        external("b", "10.96.0.2", &["203.0.113.1", "203.0.113.2"]),
    );
    for services in [[a.clone(), b.clone()], [b, a]] {
        let [first, second] = services;
        let planned = Cluster::new().with(first).with(second).endpoints("b", &two()).plan();
        assert_eq!(owner(&planned, "203.0.113.1:80", OUTSIDE), "Service shop/a");
        assert_eq!(owner(&planned, "203.0.113.1:80", INSIDE), "Service shop/a");
        assert_eq!(planned.backends("203.0.113.2:80", OUTSIDE).unwrap().len(), 2);
        assert_eq!(planned.backends("10.96.0.2:80", INSIDE).unwrap().len(), 2);
        let expected =
            "Service shop/b: conflict: externalIP 203.0.113.1 port 80 TCP belongs to Service shop/a";
        assert_eq!(planned.complaints(), [expected]);
    }
}

/// CVE-2020-8554: nobody takes over a ClusterIP by calling it an external address, whatever the name.
#[test]
fn a_cluster_ip_is_never_lost_to_an_external_address() {
    let thief = external("a", "10.96.0.1", &["10.96.0.2"]);
    let planned = Cluster::new().with(thief).with(cluster_ip("b", &["10.96.0.2"])).plan();
    assert_eq!(owner(&planned, "10.96.0.2:80", INSIDE), "Service shop/b");
    assert!(planned.frontend("10.96.0.2:80", OUTSIDE).is_none(), "nor does it answer for it to the world");
    assert_eq!(planned.problems.len(), 1);
    assert_eq!(&*planned.problems[0].object.name, "a");
}

/// CVE-2020-8554: who asks a Pod may get a Service that says it has the Pod's address. That is told, for as long as it
/// is so; at addresses of nodes Services are as usual, and those of clouds for secrets are nobody's.
#[test]
fn a_service_at_an_address_of_a_pod_is_told() {
    let at = |addresses: &[&str]| {
        let web = Service { external_ips: ips(addresses), ..cluster_ip("web", &["10.96.0.1", "fd00:96::1"]) };
        Cluster::new().with(web).endpoints("web", &two()).plan()
    };
    assert_eq!(at(&["203.0.113.1", "192.0.2.1", "192.0.2.2"]).complaints(), NONE);
    let planned = at(&["10.244.1.2", "fd00:ec2::254"]);
    let expected = [
        "Service shop/web: conflict: address 10.244.1.2 is a Pod's, of 10.244.1.0/24: the Service has its ports there, and \
         no other",
        "Service shop/web: unusable_address: externalIP fd00:ec2::254: metadata address",
    ];
    let mut told = planned.complaints();
    told.sort();
    assert_eq!(told, expected);
    assert_eq!(owner(&planned, "10.244.1.2:80", OUTSIDE), "Service shop/web");
    assert!(planned.frontend("[fd00:ec2::254]:80", INSIDE).is_none());
}

/// Node port collisions: one problem, whatever the number of addresses; the ClusterIP of the loser works.
#[test]
fn the_first_by_name_keeps_a_node_port() {
    let planned = Cluster::new()
        .with(node_port("a", &["10.96.0.1", "fd00:96::1"]))
        .with(node_port("b", &["10.96.0.2", "fd00:96::2"]))
        .plan();
    for at in ["192.0.2.1:30080", "127.0.0.1:30080", "[2001:db8::1]:30080"] {
        assert_eq!(owner(&planned, at, INSIDE), "Service shop/a", "{at}");
    }
    assert_eq!(owner(&planned, "10.96.0.2:80", INSIDE), "Service shop/b");
    let expected = "Service shop/b: conflict: nodePort 30080 TCP belongs to Service shop/a";
    assert_eq!(planned.complaints(), [expected]);
}

/// Two ports of one Service with one node port, and one address listed twice.
#[test]
fn a_service_may_contradict_itself() {
    let web = Service {
        ports: vec![port("a", 80, Protocol::Tcp, Some(30_080)), port("b", 81, Protocol::Tcp, Some(30_080))],
        external_ips: ips(&["203.0.113.1", "203.0.113.1"]),
        ..load_balancer("web", &["10.96.0.1"], &["203.0.113.1"])
    };
    let planned = Cluster::new().with(web).plan();
    assert_eq!(&*planned.frontend("192.0.2.1:30080", OUTSIDE).unwrap().set.port_name, "a");
    let kind = planned.frontend("203.0.113.1:81", OUTSIDE).unwrap().kind;
    assert_eq!(kind, quilla_plan::FrontendKind::LoadBalancer, "the kind that is guarded");
    assert_eq!(
        planned.problems.iter().map(|problem| problem.reason).collect::<Vec<_>>(),
        [Reason::Duplicate]
    );
}

/// E19, E20: no Service takes the overlay's packets.
#[test]
fn the_port_of_the_overlay_is_not_for_services() {
    let evil = Service {
        ports: vec![port("", 8472, Protocol::Udp, None), port("tcp", 8472, Protocol::Tcp, None)],
        ..external("evil", "10.96.0.1", &["192.0.2.1"])
    };
    let planned = Cluster::new().with(evil).plan();
    assert_eq!(planned.listed(OUTSIDE), ["192.0.2.1:8472 tcp"]);
    assert_eq!(planned.listed(INSIDE), ["10.96.0.1:8472 tcp", "10.96.0.1:8472 udp", "192.0.2.1:8472 tcp"]);
    assert_eq!(planned.problems.iter().map(|problem| problem.reason).collect::<Vec<_>>(), [Reason::Conflict]);
}

/// A host port loses to a node port; two Pods with one host port are told apart by name.
#[test]
fn host_ports_come_last() {
    let pod = |name: &str, number: u8, host_port| LocalEndpoint {
        pod: ObjectName::new("shop", name),
        ifindex: u32::from(number),
        pod_mac: [2; 6],
        host_mac: [4; 6],
        ipv4: Some([10, 244, 1, number].into()),
        ipv6: None,
        host_ports: vec![HostPort { host_port, container_port: 80, protocol: Protocol::Tcp, host_ip: None }],
    };
    let mut cluster = Cluster::new().with(node_port("web", &["10.96.0.1"]));
    cluster.facts.endpoints = vec![pod("z", 7, 30_080), pod("y", 8, 8080), pod("x", 9, 8080)];
    let planned = cluster.plan();
    assert_eq!(owner(&planned, "192.0.2.1:30080", OUTSIDE), "Service shop/web");
    assert_eq!(owner(&planned, "198.51.100.1:30080", OUTSIDE), "Pod shop/z", "no node port there");
    assert_eq!(owner(&planned, "192.0.2.1:8080", OUTSIDE), "Pod shop/x");
    let expected = [
        "Pod shop/y: conflict: hostPort 8080 TCP belongs to Pod shop/x",
        "Pod shop/z: conflict: hostPort 30080 TCP belongs to Service shop/web",
    ];
    assert_eq!(planned.complaints(), expected);
}

/// S50: a plan depends on what is asked, not on what was asked before; a type that changes leaves nothing behind.
#[test]
fn a_service_that_changes_its_type_is_planned_like_a_new_one() {
    let balanced = load_balancer("web", &["10.96.0.1"], &["203.0.113.1"]);
    let cluster = Cluster::new().with(balanced.clone()).endpoints("web", &two());
    let facts = ServiceFacts::new(&cluster.snapshot, &cluster.facts);
    let plan = |service: &Service| plan_service(service, cluster.snapshot.slices_of(&service.name), &facts);
    let before = plan(&balanced);
    for kind in [quilla_model::ServiceType::ClusterIp, quilla_model::ServiceType::NodePort] {
        let changed = Service { kind, external_policy: TrafficPolicy::Local, ..balanced.clone() };
        let planned = plan(&changed);
        let addresses: Vec<_> = planned.frontends.keys().map(|key| key.address.to_string()).collect();
        assert!(!addresses.contains(&"203.0.113.1".to_owned()), "the status lags behind: {kind:?}");
        assert_eq!(planned.problems.len(), 0);
        assert_eq!(planned.frontends.len(), if kind == quilla_model::ServiceType::ClusterIp { 1 } else { 4 });
    }
    assert_eq!(plan(&balanced), before);
}

/// The endpoint of one Service may be the endpoint of another.
#[test]
fn services_share_backends() {
    let cluster = Cluster::new().with(cluster_ip("a", &["10.96.0.1"])).with(cluster_ip("b", &["10.96.0.2"]));
    let shared = [endpoint("10.244.1.2", "rsl", "")];
    let planned = cluster.endpoints("a", &shared).endpoints("b", &shared).plan();
    assert_eq!(planned.complaints(), NONE);
    assert_eq!(planned.desired.backends.len(), 1);
    assert_eq!(planned.desired.sets.len(), 2);
}
