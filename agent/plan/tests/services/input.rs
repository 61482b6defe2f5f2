//! What nobody should write: the smallest part of it is left out and named, the rest works.

use quilla_model::{EndpointSlice, Family, ObjectName, Reason, Service};

use crate::cluster::{
    Cluster, INSIDE, OUTSIDE, cluster_ip, endpoint, ips, load_balancer, members, node_port, slice, two,
};

/// Endpoints that no Pod can have are left out, one problem for each slice and fault.
#[test]
fn endpoints_at_impossible_addresses_are_left_out() {
    for (address, fault) in [
        ("127.0.0.1", "loopback address"),
        ("0.0.0.0", "unspecified address"),
        ("169.254.169.254", "link-local address"),
        ("224.0.0.1", "multicast or broadcast address"),
        ("255.255.255.255", "multicast or broadcast address"),
        ("240.0.0.1", "reserved address"),
        ("10.96.0.1", "address of a Service"),
        ("10.96.255.254", "address of a Service"),
        ("fd00:ec2::254", "metadata address"),
        ("fe80::1", "link-local address"),
        ("::1", "loopback address"),
        ("fd00:96::1", "address of a Service"),
    ] {
        let bad = endpoint(address, "rs", "");
        let family = Family::of(bad.address);
        let good = if family == Family::V4 { "10.244.2.2" } else { "fd00:244:2::2" };
        let web = node_port("web", &["10.96.0.1", "fd00:96::1"]);
        let cluster = Cluster::new().with(web).endpoints("web", &[bad, endpoint(good, "rs", "")]);
        let planned = cluster.plan();
        let expected =
            format!("EndpointSlice shop/web-{family:?}: unusable_address: endpoint {address}: {fault}");
        assert_eq!(planned.complaints(), [expected]);
        let at = if family == Family::V4 { "192.0.2.1:30080" } else { "[2001:db8::1]:30080" };
        assert_eq!(planned.backends(at, OUTSIDE).unwrap().len(), 1, "{address}");
    }
}

/// An address of a node is a Pod in its network namespace, and works.
#[test]
fn endpoints_at_addresses_of_nodes_work() {
    let hosts = [endpoint("192.0.2.1", "rsl", ""), endpoint("192.0.2.2", "rs", "")];
    let planned = Cluster::new().with(cluster_ip("web", &["10.96.0.1"])).endpoints("web", &hosts).plan();
    assert!(planned.problems.is_empty());
    assert_eq!(planned.backends("10.96.0.1:80", INSIDE).unwrap().len(), 2);
}

/// Addresses at which no client can find anything.
#[test]
fn virtual_addresses_that_cannot_be_are_left_out() {
    let web = Service {
        external_ips: ips(&["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "203.0.113.2"]),
        ..load_balancer("web", &["10.96.0.1"], &["255.255.255.255", "203.0.113.1", "2001:db8::99"])
    };
    let planned = Cluster::new().with(web).endpoints("web", &two()).plan();
    assert_eq!(planned.listed(OUTSIDE), ["192.0.2.1:30080 tcp", "203.0.113.1:80 tcp", "203.0.113.2:80 tcp"]);
    assert_eq!(planned.problems.len(), 6);
    assert!(planned.problems.iter().all(|problem| problem.reason == Reason::UnusableAddress));
    let foreign = "Service shop/web: unusable_address: load balancer address 2001:db8::99: \
                   the Service has no clusterIP of the family";
    assert!(planned.complaints().contains(&foreign.to_owned()), "{:?}", planned.complaints());
}

/// A slice of 1,000 endpoints, all good or all bad: the good ones work, the bad ones are one problem.
#[test]
fn slices_of_a_thousand_endpoints() {
    let address = |prefix: &str, number: u32| format!("{prefix}.{}.{}", number / 250, number % 250 + 1);
    let thousand =
        |prefix: &str| (0..1000).map(|number| endpoint(&address(prefix, number), "rs", "")).collect();
    let bad =
        EndpointSlice { name: ObjectName::new("shop", "bad"), ..slice("web", Family::V4, thousand("127.1")) };
    let cluster = Cluster::new().with(node_port("web", &["10.96.0.1"])).slice(bad);
    let planned = cluster.slice(slice("web", Family::V4, thousand("10.250"))).plan();
    assert_eq!(
        planned.complaints(),
        ["EndpointSlice shop/bad: unusable_address: endpoint 127.1.0.1 and 999 more: loopback address"]
    );
    let set = planned.set("192.0.2.1:30080", OUTSIDE);
    assert_eq!(set.members.len(), 1000);
    assert_eq!(set.slots(true, planned.desired.maglev_density).len(), 131_071);
}

/// S5: an endpoint in several slices is one backend, and the state that counts is the one that stays.
#[test]
fn s5_an_endpoint_in_many_slices_is_one() {
    let copy = |name: &str, letters: &str| EndpointSlice {
        name: ObjectName::new("shop", name),
        ..slice("web", Family::V4, vec![endpoint("10.244.1.2", letters, "")])
    };
    let cluster = Cluster::new().with(cluster_ip("web", &["10.96.0.1"]));
    let cluster = cluster.slice(copy("a", "st")).slice(copy("b", "rs")).slice(copy("c", "st"));
    let other = EndpointSlice {
        name: ObjectName::new("shop", "other"),
        ..slice("web", Family::V4, vec![endpoint("10.244.2.2", "rs", "")])
    };
    let planned = cluster.slice(other).plan();
    assert_eq!(members(planned.set("10.96.0.1:80", INSIDE)), ["10.244.1.2:8080", "10.244.2.2:8080"]);
    assert!(planned.problems.is_empty());
}

/// Slices without a Service, of the other family, without a port that the Service has: no backends, no problem.
#[test]
fn slices_that_say_nothing_are_nothing() {
    let cluster = Cluster::new().with(cluster_ip("web", &["10.96.0.1"])).endpoints("nobody", &two());
    let six = [endpoint("fd00:244:1::2", "rs", "")];
    let portless = EndpointSlice { ports: vec![], ..slice("web", Family::V4, two().into()) };
    let planned = cluster.endpoints("web", &six).slice(portless).plan();
    assert!(planned.problems.is_empty());
    assert!(planned.desired.backends.is_empty());
    assert_eq!(planned.backends("10.96.0.1:80", INSIDE), Some(vec![]), "S20: it rejects");
}
