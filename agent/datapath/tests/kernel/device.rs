//! The overlay device, its addresses, and the routes through it.

use std::net::IpAddr;
use std::time::Duration;

use quilla_datapath::netlink::{PROTOCOL, RouteChanges};
use quilla_datapath::{Device, DeviceChanges, Netlink, Overlay, PodRoute, netns, sysctl};

use crate::support::Namespace;

fn addresses(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|address| address.parse().expect("an address")).collect()
}

fn overlay(node: u8) -> Overlay {
    Overlay {
        name: Overlay::NAME.to_owned(),
        port: 8472,
        mtu: 1450,
        mac: [2, 0, 0, 0, 0, node],
        gateways: addresses(&[&format!("10.{node}.0.1"), &format!("fd0{node}::1")]),
    }
}

fn route(destination: &str, source: &str) -> PodRoute {
    PodRoute {
        destination: destination.parse().expect("a prefix"),
        source: Some(source.parse().expect("an address")),
        by: None,
    }
}

fn changes(written: usize, removed: usize) -> RouteChanges {
    RouteChanges { written, removed, ..RouteChanges::default() }
}

fn ensure(namespace: &Namespace, overlay: &Overlay) -> Device {
    namespace.run(|| Netlink::open()?.ensure_overlay(overlay)).expect("overlay device")
}

#[test]
fn the_device_is_what_was_asked_for() {
    let namespace = Namespace::new();
    let device = ensure(&namespace, &overlay(1));
    assert_eq!((device.mtu, device.mac, device.up), (1450, Some([2, 0, 0, 0, 0, 1]), true));
    let mut found: Vec<_> = device.addresses.iter().map(ToString::to_string).collect();
    found.sort();
    assert_eq!(found, ["10.1.0.1/32", "fd01::1/128"], "and no link-local address");
    let shown = namespace.ip("-d link show quilla_vxlan");
    for property in ["NOARP", "vxlan external", "dstport 8472", "nolearning", "udp6zerocsumrx"] {
        assert!(shown.contains(property), "{property}: {shown}");
    }
}

#[test]
fn ensuring_again_changes_only_what_differs() {
    let namespace = Namespace::new();
    let first = ensure(&namespace, &overlay(1));
    assert_eq!(ensure(&namespace, &overlay(1)), first);

    namespace.ip("link set quilla_vxlan down mtu 1300 address 02:00:00:00:00:99");
    namespace.ip("addr add 10.77.0.1/32 dev quilla_vxlan");
    let repaired = ensure(&namespace, &overlay(1));
    assert_eq!(repaired.ifindex, first.ifindex);
    assert_eq!((repaired.mtu, repaired.mac, repaired.up), (first.mtu, first.mac, true));
    assert_eq!(repaired.addresses.len(), 2, "{:?}", repaired.addresses);

    let moved = ensure(&namespace, &Overlay { port: 4789, ..overlay(1) });
    assert_ne!(moved.ifindex, first.ifindex, "a port cannot be changed: made anew");

    namespace.ip("link del quilla_vxlan");
    namespace.ip("link add quilla_vxlan type veth peer name other");
    assert_eq!(ensure(&namespace, &overlay(1)).mtu, 1450);
    namespace.run(|| Netlink::open()?.remove_device("quilla_vxlan")).expect("remove");
    namespace.run(|| Netlink::open()?.remove_device("quilla_vxlan")).expect("remove again");
}

#[test]
fn routes_are_exactly_the_wanted_ones_and_others_are_left_alone() {
    let namespace = Namespace::new();
    let device = ensure(&namespace, &overlay(1));
    namespace.ip("route add 10.200.0.0/16 dev quilla_vxlan");
    let sync = |wanted: &[PodRoute]| {
        namespace.run(|| Netlink::open()?.sync_routes(device.ifindex, wanted)).expect("routes")
    };
    let wanted =
        [route("10.2.0.0/24", "10.1.0.1"), route("10.3.0.0/24", "10.1.0.1"), route("fd02::/64", "fd01::1")];
    assert_eq!(sync(&wanted), changes(3, 0));
    assert_eq!(sync(&wanted), RouteChanges::default());
    namespace.ip("route del 10.2.0.0/24");
    assert_eq!(sync(&wanted[..2]), changes(1, 1));

    let ours = |family: &str| namespace.ip(&format!("{family} route show proto {PROTOCOL}"));
    assert_eq!(ours("-4").lines().count(), 2);
    assert!(
        ours("-4").lines().all(|line| line.contains("dev quilla_vxlan scope link src 10.1.0.1")),
        "{}",
        ours("-4")
    );
    assert_eq!(ours("-6"), "");
    assert!(namespace.ip("route show 10.200.0.0/16").contains("quilla_vxlan"));

    // Another source address: replaced, not doubled.
    namespace.ip("addr add 10.1.0.2/32 dev quilla_vxlan");
    assert_eq!(sync(&[route("10.2.0.0/24", "10.1.0.2")]), changes(1, 1));
    assert!(ours("-4").contains("10.1.0.2"), "{}", ours("-4"));
}

/// Routes by the address of a node: a neighbour's, one behind a router, one that nothing leads to. They change place with those
/// through the device; whoever else has a route to the same Pods keeps it.
#[test]
fn routes_go_by_the_nodes_addresses() {
    let nodes = [Namespace::new(), Namespace::new()];
    nodes[0].join(
        &nodes[1],
        "under",
        &addresses(&["192.0.2.1", "2001:db8::1"]),
        &addresses(&["192.0.2.2", "2001:db8::2"]),
    );
    let device = ensure(&nodes[0], &overlay(1));
    nodes[0].ip("route add 198.51.100.0/24 via 192.0.2.2");
    let by = |route: PodRoute, node: &str| PodRoute { by: Some(node.parse().expect("an address")), ..route };
    let wanted = [
        by(route("10.2.0.0/24", "10.1.0.1"), "192.0.2.2"),
        by(route("10.3.0.0/24", "10.1.0.1"), "198.51.100.9"),
        by(route("10.4.0.0/24", "10.1.0.1"), "203.0.113.9"),
        by(route("fd02::/64", "fd01::1"), "2001:db8::2"),
    ];
    let plain: Vec<_> = wanted.iter().map(|route| PodRoute { by: None, ..*route }).collect();
    let sync = |wanted: &[PodRoute]| {
        nodes[0].run(|| Netlink::open()?.sync_routes(device.ifindex, wanted)).expect("routes")
    };
    let show = |family: &str| nodes[0].ip(&format!("{family} route show proto {PROTOCOL}"));
    for _ in 0..2 {
        let other = if show("-4").is_empty() { 4 } else { 3 };
        assert_eq!(sync(&plain), changes(other, 0));
        assert_eq!(sync(&wanted), changes(3, 0), "the last one goes by the device as before");
        assert_eq!(sync(&wanted), changes(0, 0));
        let (v4, v6) = (show("-4"), show("-6"));
        for line in
            ["10.2.0.0/24 via 192.0.2.2 dev under", "10.3.0.0/24 via 192.0.2.2 dev under", "10.4.0.0/24 dev"]
        {
            assert!(v4.contains(line), "{line}: {v4}");
        }
        assert!(v6.contains("fd02::/64 via 2001:db8::2 dev under src fd01::1"), "{v6}");
        assert_eq!((v4.lines().count(), v6.lines().count()), (3, 1));
    }
    nodes[0].ip("route flush proto 81");
    nodes[0].ip("route add 10.2.0.0/24 via 192.0.2.2 proto bird");
    let taken = RouteChanges { taken: ["10.2.0.0/24".parse().expect("a prefix")].into(), ..changes(0, 0) };
    let has = |done: &_| nodes[0].run(|| Netlink::open()?.has_routes(device.ifindex, &wanted, done));
    assert!(!has(&taken).expect("routes"));
    assert_eq!(sync(&wanted), RouteChanges { written: 2, ..taken.clone() });
    assert!(has(&taken).expect("routes") && !has(&changes(0, 0)).expect("routes"));
    assert!(nodes[0].ip("route show 10.2.0.0/24").contains("proto bird"));
    assert_eq!(sync(&[]).removed, 3);
    assert!(nodes[0].ip("route show 10.2.0.0/24").contains("proto bird"), "not ours, not touched");
}

/// Two nodes reach each other's gateways over the device, both families, full-sized packets included. The tunnel and
/// the inner address come from a route and a neighbour entry here, where in a cluster the programs write them.
#[test]
fn packets_cross_between_two_nodes() {
    let nodes = [Namespace::new(), Namespace::new()];
    nodes[0].join(&nodes[1], "under", &addresses(&["192.0.2.1"]), &addresses(&["192.0.2.2"]));
    for (node, near, far) in [(&nodes[0], 1, 2), (&nodes[1], 2, 1)] {
        ensure(node, &overlay(near));
        let tunnel = format!("encap ip id 42 dst 192.0.2.{far} dev quilla_vxlan");
        node.ip(&format!("route add 10.{far}.0.0/24 {tunnel} src 10.{near}.0.1"));
        node.ip(&format!("-6 route add fd0{far}::/64 {tunnel} src fd0{near}::1"));
        for gateway in [format!("10.{far}.0.1"), format!("fd0{far}::1")] {
            let neighbour = format!("lladdr 02:00:00:00:00:0{far} dev quilla_vxlan nud permanent");
            node.ip(&format!("neigh replace {gateway} {neighbour}"));
        }
    }
    nodes[0].command("ping", "-c 3 -i 0.01 -W 5 -M do -s 1422 10.2.0.1");
    nodes[0].command("ping", "-c 3 -i 0.01 -W 5 -M do -s 1402 fd02::1");
    nodes[1].command("ping", "-c 3 -i 0.01 -W 5 10.1.0.1");
}

/// The host's stack finds an Ethernet address for every Pod behind the device at once: it asks nobody.
#[test]
fn no_neighbour_is_looked_for() {
    let namespace = Namespace::new();
    let device = ensure(&namespace, &overlay(1));
    let wanted = [route("10.2.0.0/24", "10.1.0.1"), route("fd02::/64", "fd01::1")];
    namespace.run(|| Netlink::open()?.sync_routes(device.ifindex, &wanted)).expect("routes");
    for target in ["10.2.0.7:9", "[fd02::7]:9"] {
        namespace.run(|| {
            let any = if target.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = std::net::UdpSocket::bind(any).expect("bind");
            socket.connect(target).expect("connect");
            socket.send(b"x").expect("send");
            let from = socket.local_addr().expect("address").ip().to_string();
            assert!(from == "10.1.0.1" || from == "fd01::1", "{from}");
        });
    }
    let neighbours = namespace.ip("neigh show nud all dev quilla_vxlan");
    assert!(!neighbours.contains("INCOMPLETE") && !neighbours.contains("FAILED"), "{neighbours}");
}

#[test]
fn facts_of_the_uplink_are_found_by_its_default_route() {
    let nodes = [Namespace::new(), Namespace::new()];
    nodes[0].join(
        &nodes[1],
        "under.7",
        &addresses(&["192.0.2.1", "2001:db8::1"]),
        &addresses(&["192.0.2.2"]),
    );
    let uplink = || nodes[0].run(|| Netlink::open()?.default_device()).expect("look up");
    assert_eq!(uplink(), None);
    nodes[0].ip("route add default via 192.0.2.2");
    let device = uplink().expect("a default route");
    assert_eq!((device.name.as_str(), device.mtu, device.up), ("under.7", 1500, true));
    assert!(device.addresses.contains(&"192.0.2.1/24".parse().expect("a prefix")), "{:?}", device.addresses);
    assert!(
        device.addresses.contains(&"2001:db8::1/64".parse().expect("a prefix")),
        "{:?}",
        device.addresses
    );
    assert_eq!(nodes[0].run(|| Netlink::open()?.device("nowhere")).expect("look up"), None);
}

#[test]
fn the_addresses_of_all_devices_are_found() {
    let namespace = Namespace::new();
    namespace.ip("link add second type veth peer name far");
    namespace.ip("addr add 192.0.2.9/24 dev second");
    namespace.ip("addr add 198.51.100.7/32 dev lo");
    let found = namespace.run(|| Netlink::open()?.all_addresses()).expect("addresses");
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["127.0.0.1", "192.0.2.9", "198.51.100.7", "::1"]);
}

#[test]
fn a_change_of_a_device_is_told() {
    let namespace = Namespace::new();
    let mut changes = namespace.run(DeviceChanges::open).expect("listen");
    let ignored = |name: &str| name.starts_with("pod");
    let mut changed = |limit| changes.wait(limit, ignored).expect("an open socket");
    assert!(!changed(Duration::ZERO));
    namespace.ip("link set lo mtu 1400");
    assert!(changed(Duration::from_secs(10)));
    namespace.ip("addr add 10.9.9.9/32 dev lo");
    assert!(changed(Duration::from_secs(10)));
    namespace.ip("link add pod type veth peer name pod-end");
    namespace.ip("link set pod mtu 1400");
    namespace.ip("link del pod");
    assert!(!changed(Duration::from_millis(100)));
}

#[test]
fn forwarding_keeps_an_uplink_that_learns_its_routes() {
    let nodes = [Namespace::new(), Namespace::new()];
    nodes[0].join(&nodes[1], "under.7", &[], &[]);
    let setting = |path: &str| {
        nodes[0]
            .run(|| std::fs::read_to_string(format!("/proc/sys/net/{path}")))
            .expect(path)
            .trim()
            .to_owned()
    };
    nodes[0].run(|| sysctl::enable_forwarding("under.7")).expect("forwarding");
    assert_eq!(setting("ipv4/ip_forward"), "1");
    assert_eq!(setting("ipv6/conf/all/forwarding"), "1");
    assert_eq!(setting("ipv6/conf/under.7/accept_ra"), "2");
    for (everywhere, own, expected) in
        [("0", "0", "0"), ("0", "1", "2"), ("0", "2", "2"), ("1", "0", "2"), ("1", "2", "2"), ("2", "1", "1")]
    {
        for (place, value) in [("all", everywhere), ("under.7", own)] {
            let path = format!("/proc/sys/net/ipv4/conf/{place}/rp_filter");
            nodes[0].run(|| std::fs::write(path, value)).expect("write");
        }
        nodes[0].run(|| sysctl::relax_reverse_path("under.7")).expect("relax");
        assert_eq!(setting("ipv4/conf/under.7/rp_filter"), expected);
    }
}

#[test]
fn work_in_a_namespace_leaves_the_caller_where_it_was() {
    let (first, second) = (Namespace::new(), Namespace::new());
    let here = netns::cookie().expect("cookie");
    let there = netns::in_netns(&first.path(), netns::cookie).expect("enter").expect("cookie");
    assert_ne!(here, there);
    assert_ne!(there, second.run(netns::cookie).expect("cookie"));
    assert_eq!(netns::cookie().expect("cookie"), here);
    let error = netns::in_netns(&first.path(), || panic!("in a test")).expect_err("a panic");
    assert!(error.to_string().ends_with("panicked"), "{error}");
}
