//! At which addresses a Service is found, by whom, and with which set (S1-S4, S13, S22-S27).

use quilla_abi::config;
use quilla_abi::service::flag;
use quilla_model::{
    EndpointPort, EndpointSlice, Family, LoadBalancing, ObjectName, Protocol, Service, TrafficPolicy,
};
use quilla_plan::facts::NodePortAddresses;
use quilla_plan::{FrontendKind, Target};

use crate::cluster::{
    Cluster, INSIDE, OUTSIDE, cluster_ip, endpoint, ip, ips, load_balancer, members, node_port, port, slice,
    two,
};

const NONE: [&str; 0] = [];

/// S2, S31: inside only, and the address is known as a Service's.
#[test]
fn a_cluster_ip_is_for_clients_inside() {
    let planned = Cluster::new().with(cluster_ip("web", &["10.96.0.1"])).endpoints("web", &two()).plan();
    assert_eq!(planned.listed(INSIDE), ["10.96.0.1:80 tcp"]);
    assert_eq!(planned.listed(OUTSIDE), NONE);
    assert_eq!((planned.markers(INSIDE), planned.markers(OUTSIDE)), (vec!["10.96.0.1".into()], vec![]));
    assert_eq!((planned.desired.config.frontend_port_min, planned.desired.config.frontend_port_max), (1, 0));
}

/// What only clients inside can reach makes nothing look at packets from outside, wherever it is.
#[test]
fn ports_for_clients_inside_are_not_ports_for_clients_outside() {
    let planned = Cluster::new().with(cluster_ip("odd", &["192.0.2.1"])).plan();
    assert_eq!(planned.listed(INSIDE), ["192.0.2.1:80 tcp"]);
    assert_eq!((planned.desired.config.frontend_port_min, planned.desired.config.frontend_port_max), (1, 0));
}

/// S2: the five shapes of families. A node port is there in the families of the Service.
#[test]
fn s2_a_service_is_served_in_its_families() {
    let (v4, v6) = ("10.96.0.1", "fd00:96::1");
    let both = [
        "10.96.0.1:80 tcp",
        "127.0.0.1:30080 tcp",
        "192.0.2.1:30080 tcp",
        "[2001:db8::1]:30080 tcp",
        "[fd00:96::1]:80 tcp",
    ];
    for (shape, expected) in [
        (&[v4][..], &both[..3]),
        (&[v6], &both[3..]),
        (&[v4, v6], &both),
        (&[v6, v4], &both),
        (&[v4, v4, v6], &both),
    ] {
        let endpoints = [endpoint("10.244.1.2", "rsl", ""), endpoint("fd00:244:1::2", "rsl", "")];
        let planned = Cluster::new().with(node_port("web", shape)).endpoints("web", &endpoints).plan();
        assert_eq!(planned.listed(INSIDE), expected, "{shape:?}");
        for at in ["192.0.2.1:30080", "[2001:db8::1]:30080"] {
            let own = planned.backends(at, OUTSIDE);
            let wanted = if at.starts_with('[') { "[fd00:244:1::2]:8080" } else { "10.244.1.2:8080" };
            let served = expected.iter().any(|frontend| frontend.starts_with(at));
            assert_eq!(own, served.then(|| vec![wanted.to_owned()]), "{shape:?} {at}");
        }
    }
}

/// S23: a node port is at the node's own addresses, for clients outside by Maglev; the node finds it at localhost, too.
#[test]
fn s23_s26_a_node_port_is_at_addresses_of_the_node() {
    let web = Service { external_policy: TrafficPolicy::Local, ..node_port("web", &["10.96.0.1"]) };
    let mut cluster = Cluster::new().with(web).endpoints("web", &two());
    let planned = cluster.plan();
    assert_eq!(planned.listed(OUTSIDE), ["192.0.2.1:30080 tcp"]);
    assert_eq!(planned.backends("192.0.2.1:30080", OUTSIDE).unwrap(), ["10.244.1.2:8080"], "S25");
    for at in ["192.0.2.1:30080", "127.0.0.1:30080"] {
        assert_eq!(planned.backends(at, INSIDE).unwrap().len(), 2, "S26: {at}");
    }
    assert_eq!(planned.set("192.0.2.1:30080", OUTSIDE).flags, flag::MAGLEV);
    assert_eq!(planned.set("192.0.2.1:30080", INSIDE).flags, 0);
    let shared = planned.frontend("192.0.2.1:30080", INSIDE).unwrap().set.clone();
    assert_eq!(shared, planned.frontend("10.96.0.1:80", INSIDE).unwrap().set, "the same backends, one set");
    let config = planned.desired.config;
    assert_eq!((config.frontend_port_min, config.frontend_port_max), (30_080, 30_080));
    assert_eq!(planned.markers(OUTSIDE), NONE, "the node's other ports are its own");

    cluster.facts.node_port_addresses = NodePortAddresses::Within(vec!["198.51.100.0/24".parse().unwrap()]);
    let chosen = cluster.plan();
    assert_eq!(chosen.listed(OUTSIDE), ["198.51.100.1:30080 tcp"]);
    assert_eq!(chosen.frontend("127.0.0.1:30080", INSIDE), None);
}

/// S3, S4, S22, E8: addresses of load balancers and external addresses are for both, and never leak.
#[test]
fn s3_s4_virtual_addresses_are_for_everybody_and_are_routed_to_services() {
    let web = Service {
        external_ips: ips(&["198.51.100.77", "192.0.2.1", "198.51.100.1", "192.0.2.2", "10.244.2.9"]),
        ..load_balancer("web", &["10.96.0.1"], &["203.0.113.1"])
    };
    let planned = Cluster::new().with(web).endpoints("web", &two()).plan();
    for at in ["203.0.113.1:80", "198.51.100.77:80", "192.0.2.1:80", "192.0.2.2:80", "10.244.2.9:80"] {
        for scope in [INSIDE, OUTSIDE] {
            assert_eq!(planned.backends(at, scope).unwrap().len(), 2, "{at}");
        }
    }
    assert_eq!(planned.frontend("203.0.113.1:80", OUTSIDE).unwrap().kind, FrontendKind::LoadBalancer);
    let own = ["198.51.100.77", "203.0.113.1"];
    assert_eq!(planned.markers(OUTSIDE), own, "other ports of a node or a Pod are not the Service's");
    assert_eq!(planned.markers(INSIDE), ["10.96.0.1", own[0], own[1]]);
    for address in own {
        assert_eq!(planned.desired.routes[&ip(address).into()], Target::Services, "{address}");
    }
    assert!(!planned.desired.routes.contains_key(&ip("10.96.0.1").into()), "its CIDR has a route");
    assert!(!planned.desired.routes.contains_key(&ip("192.0.2.2").into()), "a node stays reachable");
    let config = planned.desired.config;
    assert_eq!(
        (config.frontend_port_min, config.frontend_port_max),
        (80, 30_080),
        "192.0.2.1 port 80 is ours"
    );
}

/// S27: an address without a node port, one port number for two protocols, one address for two Services.
#[test]
fn s27_ports_may_be_shared_and_node_ports_left_out() {
    let dns = Service {
        ports: vec![port("", 53, Protocol::Udp, None), port("", 53, Protocol::Tcp, None)],
        ..load_balancer("dns", &["10.96.0.2"], &["203.0.113.1"])
    };
    let cluster = Cluster::new().with(load_balancer("web", &["10.96.0.1"], &["203.0.113.1"])).with(dns);
    let planned = cluster.endpoints("dns", &two()).plan();
    assert_eq!(planned.complaints(), NONE);
    let expected = ["192.0.2.1:30080 tcp", "203.0.113.1:53 tcp", "203.0.113.1:53 udp", "203.0.113.1:80 tcp"];
    assert_eq!(planned.listed(OUTSIDE), expected);
    let udp = planned.frontend_of("203.0.113.1:53", Protocol::Udp, OUTSIDE).unwrap();
    assert_eq!(members(&planned.desired.sets[&udp.set])[0], "10.244.1.2:5353");
    assert_eq!(planned.backends("203.0.113.1:53", OUTSIDE).unwrap()[0], "10.244.1.2:8080");
}

/// S24: source ranges guard the addresses of load balancers, and nothing else.
#[test]
fn s24_source_ranges_guard_load_balancer_addresses_only() {
    let guarded = |ranges: &[&str]| {
        let web = Service {
            source_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            external_ips: ips(&["198.51.100.77"]),
            ..load_balancer("web", &["10.96.0.1", "fd00:96::1"], &["203.0.113.1", "2001:db8:f::1"])
        };
        Cluster::new().with(web).endpoints("web", &two()).plan()
    };
    let flags =
        |planned: &crate::cluster::Planned, at: &str, scope| planned.frontend(at, scope).unwrap().flags;

    let planned = guarded(&["203.0.113.128/25", "198.51.100.130/25"]);
    for scope in [INSIDE, OUTSIDE] {
        assert_eq!(flags(&planned, "203.0.113.1:80", scope), flag::SOURCE_RANGES);
        let ranges = &planned.set("203.0.113.1:80", scope).source_ranges;
        assert_eq!(
            ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["198.51.100.128/25", "203.0.113.128/25"]
        );
        for open in ["198.51.100.77:80", "192.0.2.1:30080", "[2001:db8:f::1]:80"] {
            assert_eq!(flags(&planned, open, scope), 0, "{open}");
        }
    }
    assert_eq!(flags(&planned, "10.96.0.1:80", INSIDE), 0);

    let with_node = guarded(&["192.0.2.0/24"]);
    let both = flag::SOURCE_RANGES | flag::NODE_ALLOWED;
    assert_eq!(flags(&with_node, "203.0.113.1:80", INSIDE), both, "a range with an address of the node");
    let open = guarded(&["203.0.113.128/25", "0.0.0.0/0", "2001:db8::/32"]);
    assert_eq!(flags(&open, "203.0.113.1:80", OUTSIDE), 0, "S2: everything is no restriction");
    assert_eq!(flags(&open, "[2001:db8:f::1]:80", OUTSIDE), both);
}

/// S20, S21: nobody at all rejects; somebody elsewhere drops, or rejects where the operator chose so.
#[test]
fn s20_s21_an_empty_set_rejects_or_drops() {
    let flags = |letters: &str, reject_without_local| {
        let web = Service { external_policy: TrafficPolicy::Local, ..node_port("web", &["10.96.0.1"]) };
        let mut cluster = Cluster::new().with(web).endpoints("web", &[endpoint("10.244.2.2", letters, "")]);
        cluster.facts.reject_without_local = reject_without_local;
        let planned = cluster.plan();
        let (outside, inside) =
            (planned.set("192.0.2.1:30080", OUTSIDE), planned.set("10.96.0.1:80", INSIDE));
        assert_eq!((outside.members.len(), inside.flags), (0, 0));
        outside.flags
    };
    assert_eq!(flags("", false), flag::MAGLEV);
    assert_eq!(flags("rs", false), flag::MAGLEV | flag::DROP_WHEN_EMPTY);
    assert_eq!(flags("rs", true), flag::MAGLEV);
}

/// S6: a named port may be another number in another slice.
#[test]
fn s6_a_named_port_resolves_by_slice() {
    let web =
        Service { ports: vec![port("http", 80, Protocol::Tcp, None)], ..cluster_ip("web", &["10.96.0.1"]) };
    let part = |name: &str, number, address| EndpointSlice {
        name: ObjectName::new("shop", name),
        ports: vec![EndpointPort { name: "http".into(), port: number, protocol: Protocol::Tcp }],
        ..slice("web", Family::V4, vec![endpoint(address, "rs", "")])
    };
    let cluster = Cluster::new().with(web).slice(part("a", 8080, "10.244.1.2"));
    let planned = cluster.slice(part("b", 9090, "10.244.2.2")).plan();
    assert_eq!(planned.backends("10.96.0.1:80", INSIDE).unwrap(), ["10.244.1.2:8080", "10.244.2.2:9090"]);
}

/// The annotations: how clients inside are spread, weights, slow start, affinity.
#[test]
fn the_choice_of_load_balancing_is_the_sets() {
    let planned = |load_balancing, weight| {
        let web = Service {
            load_balancing,
            slow_start_seconds: 30,
            affinity_seconds: Some(600),
            ..node_port("web", &["10.96.0.1"])
        };
        let heavy = EndpointSlice {
            name: ObjectName::new("shop", "heavy"),
            weight,
            ..slice("web", Family::V4, vec![endpoint("10.244.2.9", "rs", "")])
        };
        Cluster::new().with(web).endpoints("web", &two()).slice(heavy).plan()
    };
    for (choice, inside) in [
        (LoadBalancing::Random, 0),
        (LoadBalancing::LeastConnections, flag::LEAST_CONNECTIONS),
        (LoadBalancing::Maglev, flag::MAGLEV),
    ] {
        let planned = planned(choice, 3);
        assert_eq!(planned.set("10.96.0.1:80", INSIDE).flags, inside, "{choice:?}");
        assert_eq!(planned.set("192.0.2.1:30080", OUTSIDE).flags, flag::MAGLEV, "{choice:?}: always outside");
        let set = planned.set("10.96.0.1:80", INSIDE);
        let slow_start = if inside == flag::MAGLEV { 0 } else { 30 };
        assert_eq!((set.affinity_seconds, set.slow_start_seconds), (600, slow_start));
        assert_eq!(set.members.iter().map(|member| member.weight).collect::<Vec<_>>(), [1, 1, 3]);
    }
    let without = planned(LoadBalancing::Random, 0);
    assert_eq!(without.backends("10.96.0.1:80", INSIDE).unwrap().len(), 2, "weight 0: no new connections");
    assert_eq!(without.desired.backends.len(), 3, "but flows that have it keep it");
}

/// E14: the answers of a backend that is the node itself are looked for only if a client outside may have asked.
#[test]
fn node_backends_are_announced_when_clients_outside_can_reach_them() {
    let flags = |service, address| {
        let planned = Cluster::new().with(service).endpoints("web", &[endpoint(address, "rsl", "")]).plan();
        planned.desired.config.flags & config::flag::NODE_BACKENDS
    };
    assert_eq!(flags(cluster_ip("web", &["10.96.0.1"]), "192.0.2.1"), 0);
    assert_eq!(flags(node_port("web", &["10.96.0.1"]), "192.0.2.2"), 0, "another node");
    assert_eq!(flags(node_port("web", &["10.96.0.1"]), "192.0.2.1"), config::flag::NODE_BACKENDS);
}
