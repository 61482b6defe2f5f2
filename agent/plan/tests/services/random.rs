//! Arbitrary models: nothing panics, and what is planned holds together.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use quilla_abi::service::flag;
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Hints, LoadBalancing, ObjectName, Protocol, Service,
    ServicePort, ServiceType, TrafficPolicy,
};
use quilla_plan::{HostPort, LocalEndpoint, plan};

use crate::cluster::{Cluster, OUTSIDE};

/// Few, so that objects collide; good and bad.
fn addresses() -> impl Strategy<Value = IpAddr> {
    let texts = [
        "10.96.0.1",
        "10.96.0.2",
        "10.244.1.2",
        "10.244.2.2",
        "192.0.2.1",
        "192.0.2.2",
        "203.0.113.1",
        "127.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "255.255.255.255",
        "fd00:96::1",
        "fd00:244:1::2",
        "2001:db8::1",
        "::",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
    ];
    prop_oneof![
        6 => (0..texts.len()).prop_map(move |index| texts[index].parse().expect("an address")),
        1 => any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        1 => any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ]
}

fn protocols() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)]
}

fn numbers() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(80), Just(81), Just(8472), Just(30_080), any::<u16>()]
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), Just("a".to_owned()), Just("b".to_owned())]
}

fn policies() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

fn services() -> impl Strategy<Value = Service> {
    let port = (names(), numbers(), protocols(), option::of(numbers())).prop_map(
        |(name, port, protocol, node_port)| ServicePort { name: name.into(), port, protocol, node_port },
    );
    let range =
        (addresses(), 0..=32u8).prop_map(|(address, length)| IpNet::new(address, length).expect("a prefix"));
    let kind = prop_oneof![
        Just(ServiceType::ClusterIp),
        Just(ServiceType::NodePort),
        Just(ServiceType::LoadBalancer)
    ];
    let choice = prop_oneof![
        Just(LoadBalancing::Random),
        Just(LoadBalancing::Maglev),
        Just(LoadBalancing::LeastConnections)
    ];
    let lists = (
        vec(addresses(), 0..3),
        vec(port, 0..4),
        vec(addresses(), 0..3),
        vec(addresses(), 0..3),
        vec(range, 0..3),
    );
    let rest = (kind, policies(), policies(), choice, option::of(any::<u32>()), option::of(numbers()));
    (0..5u8, lists, rest).prop_map(|(name, lists, rest)| {
        let (cluster_ips, ports, external_ips, load_balancer_ips, source_ranges) = lists;
        let (
            kind,
            internal_policy,
            external_policy,
            load_balancing,
            affinity_seconds,
            health_check_node_port,
        ) = rest;
        Service {
            kind,
            cluster_ips,
            ports,
            internal_policy,
            external_policy,
            affinity_seconds,
            external_ips,
            load_balancer_ips,
            source_ranges,
            health_check_node_port,
            load_balancing,
            ..Service::new(ObjectName::new("shop", format!("service-{name}")))
        }
    })
}

fn slices() -> impl Strategy<Value = EndpointSlice> {
    let node = prop_oneof![Just(None), Just(Some("here".into())), Just(Some("there".into()))];
    let hinted = || vec(prop_oneof![Just("here".into()), Just("z1".into()), Just("z2".into())], 0..3);
    let hints = option::of((hinted(), hinted()).prop_map(|(nodes, zones)| Arc::new(Hints { nodes, zones })));
    let endpoint = (addresses(), any::<[bool; 3]>(), node, hints).prop_map(
        |(address, [ready, serving, terminating], node, hints)| Endpoint {
            address,
            ready,
            serving,
            terminating,
            node,
            pod: None,
            hints,
        },
    );
    let port = (names(), numbers(), protocols()).prop_map(|(name, port, protocol)| EndpointPort {
        name: name.into(),
        port,
        protocol,
    });
    (0..6u8, 0..4u8, any::<bool>(), vec(port, 0..4), vec(endpoint, 0..6), any::<u8>()).prop_map(
        |(service, name, v4, ports, endpoints, weight)| EndpointSlice {
            name: ObjectName::new("shop", format!("slice-{service}-{name}")),
            service: ObjectName::new("shop", format!("service-{service}")),
            family: if v4 { Family::V4 } else { Family::V6 },
            ports,
            endpoints,
            weight,
        },
    )
}

fn pods() -> impl Strategy<Value = LocalEndpoint> {
    let port = (numbers(), numbers(), protocols(), option::of(addresses())).prop_map(
        |(host_port, container_port, protocol, host_ip)| HostPort {
            host_port,
            container_port,
            protocol,
            host_ip,
        },
    );
    (1..5u8, vec(port, 0..3)).prop_map(|(number, host_ports)| LocalEndpoint {
        pod: ObjectName::new("shop", format!("pod-{number}")),
        ifindex: u32::from(number),
        pod_mac: [2; 6],
        host_mac: [4; 6],
        ipv4: Some([10, 244, 1, number].into()),
        ipv6: (number > 2).then(|| Ipv6Addr::from_bits(u128::from(number) | 0xfd << 120)),
        host_ports,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the API says: no panic, every frontend has its set, every member of a set is a backend, weights have no
    /// common divisor, the table fits the set; and the same cluster gives the same plan.
    #[test]
    fn a_plan_holds_together(services in vec(services(), 0..5), slices in vec(slices(), 0..8), pods in vec(pods(), 0..3)) {
        let mut cluster = Cluster::new();
        for service in services {
            cluster = cluster.with(service);
        }
        for slice in slices {
            cluster = cluster.slice(slice);
        }
        cluster.facts.endpoints = pods;
        let (desired, problems) = plan(&cluster.snapshot, &cluster.facts);
        for (key, frontend) in desired.frontends.iter() {
            prop_assert!(desired.sets.contains_key(&frontend.set), "{key:?}");
            prop_assert!(key.port != 0 && (key.protocol == 6 || key.protocol == 17), "{key:?}");
            prop_assert!(!key.address.is_unspecified() && !key.address.is_multicast(), "{key:?}");
            prop_assert!(!(key.address.is_loopback() && key.scope == OUTSIDE), "{key:?}");
        }
        for (key, set) in desired.sets.iter() {
            prop_assert!(desired.frontends.values().any(|frontend| frontend.set == *key), "{key:?}");
            prop_assert!(set.members.is_sorted_by(|a, b| a.backend < b.backend), "{key:?}");
            prop_assert!(set.members.iter().all(|member| desired.backends.contains_key(&member.backend)));
            prop_assert!(set.members.iter().all(|member| member.weight > 0));
            prop_assert_eq!(key.maglev, set.flags & flag::MAGLEV != 0);
            let slots = set.slots(key.maglev, desired.maglev_density);
            prop_assert!(slots.iter().all(|slot| (*slot as usize) < set.members.len()));
            prop_assert_eq!(slots.is_empty(), set.members.is_empty());
        }
        prop_assert_eq!(plan(&cluster.snapshot, &cluster.facts), (desired, problems));
    }

    /// A Service is planned alone: what others do changes who has an address, and nothing else.
    #[test]
    fn others_change_nothing_but_the_owner(one in services(), others in vec(services(), 0..4), slices in vec(slices(), 0..6)) {
        let mut cluster = Cluster::new();
        for slice in slices {
            cluster = cluster.slice(slice);
        }
        cluster = cluster.with(one.clone());
        let (alone, _) = plan(&cluster.snapshot, &cluster.facts);
        for other in others.into_iter().filter(|other| other.name != one.name) {
            cluster.snapshot.services.insert(other.name.clone(), Arc::new(other));
        }
        let (together, _) = plan(&cluster.snapshot, &cluster.facts);
        for (key, frontend) in alone.frontends.iter() {
            let now = &together.frontends[key];
            prop_assert!(now == frontend || now.set.owner != frontend.set.owner, "{key:?}");
            if now == frontend {
                prop_assert_eq!(&together.sets[&now.set], &alone.sets[&frontend.set]);
            }
        }
    }
}
