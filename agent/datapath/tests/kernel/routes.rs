//! Routes to other nodes' Pods by next hops as fabrics have them, and beside those of routing daemons.

use std::fs::{self, File};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use quilla_datapath::netlink::{PROTOCOL, RouteChanges};
use quilla_datapath::{Device, Netlink, Overlay, PodRoute};

use crate::support::{Namespace, eventually};

/// A node with an overlay device, and `under` to another one.
struct Node {
    namespace: Namespace,
    _other: Namespace,
    overlay: Device,
}

impl Node {
    fn new() -> Self {
        let (namespace, other) = (Namespace::new(), Namespace::new());
        let ends = [["192.0.2.1", "2001:db8::1"], ["192.0.2.2", "2001:db8::2"]];
        let [near, far] = ends.map(|end| end.map(|address| address.parse().expect("an address")));
        namespace.join(&other, "under", &near, &far);
        let overlay = Overlay {
            name: Overlay::NAME.to_owned(),
            port: 8472,
            mtu: 1450,
            mac: [2, 0, 0, 0, 0, 1],
            gateways: ["10.1.0.1", "fd01::1"].map(|address| address.parse().expect("an address")).into(),
        };
        let overlay = namespace.run(|| Netlink::open()?.ensure_overlay(&overlay)).expect("overlay device");
        Self { namespace, _other: other, overlay }
    }

    fn ip(&self, arguments: &str) -> String {
        self.namespace.ip(arguments)
    }

    fn sync(&self, wanted: &[PodRoute]) -> RouteChanges {
        let sync = || Netlink::open()?.sync_routes(self.overlay.ifindex, wanted);
        self.namespace.run(sync).expect("no route ends the others")
    }

    fn has(&self, wanted: &[PodRoute], done: &RouteChanges) -> bool {
        let has = || Netlink::open()?.has_routes(self.overlay.ifindex, wanted, done);
        self.namespace.run(has).expect("routes")
    }

    /// Our routes to a range.
    fn ours(&self, destination: &str) -> String {
        let family = if destination.contains(':') { "-6" } else { "-4" };
        self.ip(&format!("{family} route show {destination} proto {PROTOCOL}"))
    }
}

fn route(destination: &str, by: &str) -> PodRoute {
    let destination: ipnet::IpNet = destination.parse().expect("a prefix");
    let source = if destination.addr().is_ipv4() { "10.1.0.1" } else { "fd01::1" };
    PodRoute { destination, source: source.parse().ok(), by: by.parse().ok() }
}

/// Next hops that are in no network of the node: a gateway said to be on the link, and one of the other family. Who
/// does not send to the node at all leaves it to the overlay.
#[test]
fn routes_go_by_whatever_next_hop_the_host_has() {
    let node = Node::new();
    for way in [
        "route add 198.51.100.1 via 172.31.1.1 dev under onlink",
        "route add 198.51.100.2 via inet6 fe80::7 dev under",
        "route add prohibit 198.51.100.3",
        "route add blackhole 198.51.100.4",
        "route add unreachable 198.51.100.5",
        "-6 route add 2001:db8:1::1 via 2001:db8:2::1 dev under onlink",
        "-6 route add prohibit 2001:db8:1::2",
        "-6 route add blackhole 2001:db8:1::3",
    ] {
        node.ip(way);
    }
    let wanted = [
        route("10.2.0.0/24", "198.51.100.1"),
        route("10.3.0.0/24", "198.51.100.2"),
        route("10.4.0.0/24", "198.51.100.3"),
        route("10.5.0.0/24", "198.51.100.4"),
        route("10.6.0.0/24", "198.51.100.5"),
        route("fd02::/64", "2001:db8:1::1"),
        route("fd03::/64", "2001:db8:1::2"),
        route("fd04::/64", "2001:db8:1::3"),
    ];
    let done = node.sync(&wanted);
    assert_eq!((done.written, &done.refused[..]), (wanted.len(), &[][..]));
    for (destination, way) in [
        ("10.2.0.0/24", "via 172.31.1.1 dev under src 10.1.0.1 onlink"),
        ("10.3.0.0/24", "via inet6 fe80::7 dev under src 10.1.0.1"),
        ("10.4.0.0/24", "dev quilla_vxlan"),
        ("10.5.0.0/24", "dev quilla_vxlan"),
        ("10.6.0.0/24", "dev quilla_vxlan"),
        ("fd02::/64", "via 2001:db8:2::1 dev under src fd01::1"),
        ("fd03::/64", "dev quilla_vxlan"),
        ("fd04::/64", "dev quilla_vxlan"),
    ] {
        assert!(node.ours(destination).contains(way), "{destination} {way}: {}", node.ours(destination));
    }
    assert_eq!(node.sync(&wanted), RouteChanges::default());
    assert!(node.has(&wanted, &done));
}

/// A next hop that the kernel does not take concerns one route. It leads through the overlay until there is another.
#[test]
fn a_route_that_cannot_be_written_leads_through_the_overlay() {
    let node = Node::new();
    node.ip("route add 198.51.100.0/24 via 192.0.2.2");
    node.ip("-6 route add 2001:db8:1::/64 via 2001:db8::2");
    // The gateways are addresses of the node itself, or elsewhere, by now; the routes stand.
    node.ip("addr add 192.0.2.2/32 dev under");
    node.ip("-6 route add 2001:db8::2 dev quilla_vxlan");
    let wanted = [
        route("10.2.0.0/24", "198.51.100.1"),
        route("10.3.0.0/24", "192.0.2.9"),
        route("fd02::/64", "2001:db8:1::1"),
    ];
    let done = node.sync(&wanted);
    let refused: Vec<_> = done.refused.iter().map(|refused| refused.destination.to_string()).collect();
    assert_eq!((done.written, &refused[..]), (3, &["10.2.0.0/24".to_owned(), "fd02::/64".to_owned()][..]));
    assert!(done.refused.iter().all(|refused| refused.reason.contains("os error")), "{done:?}");
    assert!(node.ours("10.3.0.0/24").contains("via 192.0.2.9 dev under"), "{}", node.ours("10.3.0.0/24"));
    for destination in ["10.2.0.0/24", "fd02::/64"] {
        assert!(node.ours(destination).contains("dev quilla_vxlan"), "{}", node.ours(destination));
    }
    assert!(node.has(&wanted, &done), "nothing else would come of it");
    assert!(!node.has(&wanted, &RouteChanges::default()));
    let again = node.sync(&wanted);
    assert_eq!((again.written, &again.refused), (0, &done.refused));

    node.ip("route replace 198.51.100.0/24 via 192.0.2.3");
    node.ip("-6 route del 2001:db8::2 dev quilla_vxlan");
    assert!(!node.has(&wanted, &done), "another next hop");
    assert_eq!(node.sync(&wanted), RouteChanges { written: 2, ..RouteChanges::default() });
    assert!(node.ours("10.2.0.0/24").contains("via 192.0.2.3 dev under"), "{}", node.ours("10.2.0.0/24"));
    assert!(node.ours("fd02::/64").contains("via 2001:db8::2 dev under"), "{}", node.ours("fd02::/64"));
}

/// Whoever else announces the same Pods in the main table, with whatever metric, has them; before ours was written or
/// after. Other tables and other ranges are nothing of that.
#[test]
fn routes_of_others_stay_whatever_their_metric() {
    let node = Node::new();
    let wanted = [
        route("10.2.0.0/24", ""),
        route("10.3.0.0/24", "192.0.2.2"),
        route("10.4.0.0/24", ""),
        route("fd02::/64", ""),
        route("fd03::/64", "2001:db8::2"),
    ];
    node.ip("route add 10.2.0.0/24 via 192.0.2.7 proto bird metric 32");
    node.ip("route add 10.4.0.0/24 via 192.0.2.7 proto bird table 100");
    node.ip("route add 10.4.0.0/16 via 192.0.2.7 proto bird");
    node.ip("-6 route add fd02::/64 via 2001:db8::7 proto bgp metric 20");
    let taken = |list: &[&str]| list.iter().map(|range| range.parse().expect("a prefix")).collect();
    let done = node.sync(&wanted);
    assert_eq!(
        done,
        RouteChanges { written: 3, taken: taken(&["10.2.0.0/24", "fd02::/64"]), ..done.clone() }
    );
    assert!(node.has(&wanted, &done));

    node.ip("route add 10.3.0.0/24 via 192.0.2.7 proto bgp metric 20");
    node.ip("-6 route add fd03::/64 via 2001:db8::7 proto bird metric 32");
    assert!(!node.has(&wanted, &done));
    let all = ["10.2.0.0/24", "10.3.0.0/24", "fd02::/64", "fd03::/64"];
    let done = node.sync(&wanted);
    assert_eq!(done, RouteChanges { removed: 2, taken: taken(&all), ..RouteChanges::default() });
    for destination in all {
        let family = if destination.contains(':') { "-6" } else { "-4" };
        let there = node.ip(&format!("{family} route show {destination}"));
        assert!(there.lines().count() == 1 && there.contains("metric"), "{there}");
    }

    node.ip("route flush proto bgp");
    node.ip("-6 route flush proto bgp");
    let done = node.sync(&wanted);
    assert_eq!(
        done,
        RouteChanges { written: 2, taken: taken(&["10.2.0.0/24", "fd03::/64"]), ..done.clone() }
    );
    assert!(node.ours("10.3.0.0/24").contains("via 192.0.2.2"), "{}", node.ours("10.3.0.0/24"));
}

/// What the kernel tells of routes, as `ip monitor` says it.
struct Monitor {
    process: Child,
    file: tempfile::NamedTempFile,
}

impl Monitor {
    fn start(node: &Node) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let output: File = file.reopen().expect("the file");
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "ip", "monitor", "route"]).stdin(Stdio::null()).stdout(output);
        let process = node.namespace.run(|| command.spawn()).expect("ip monitor");
        Self { process, file }
    }

    /// All that was told before a route was added and seen.
    fn until_now(&self, node: &Node) -> String {
        let text = || fs::read_to_string(self.file.path()).expect("the file");
        eventually("a marker is told", &true, || {
            node.ip("route replace 203.0.113.0/24 dev under");
            text().contains("203.0.113.0/24")
        });
        node.ip("route add 203.0.114.0/24 dev under");
        eventually("the last route is told", &true, || text().contains("203.0.114.0/24"));
        text()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A route that becomes another one is there all the while.
#[test]
fn a_changed_route_is_never_away() {
    let node = Node::new();
    let by = |by: [&str; 2]| [route("10.2.0.0/24", by[0]), route("fd02::/64", by[1])];
    let ways = [["", ""], ["192.0.2.2", "2001:db8::2"], ["192.0.2.3", "2001:db8::3"], ["", ""]];
    node.sync(&by(ways[0]));
    let monitor = Monitor::start(&node);
    eventually("the monitor listens", &true, || {
        node.ip("route replace 203.0.112.0/24 dev under");
        node.ip("route del 203.0.112.0/24 dev under");
        !fs::read_to_string(monitor.file.path()).expect("the file").is_empty()
    });
    for way in &ways[1..] {
        assert_eq!(node.sync(&by(*way)).written, 2);
        for destination in ["10.2.0.0/24", "fd02::/64"] {
            assert_eq!(node.ours(destination).lines().count(), 1, "{}", node.ours(destination));
        }
    }
    let told = monitor.until_now(&node);
    let of_ours = |line: &&str| line.contains("10.2.0.0/24") || line.contains("fd02::/64");
    assert_eq!(told.lines().filter(of_ours).count(), 6, "{told}");
    assert!(!told.lines().filter(of_ours).any(|line| line.starts_with("Deleted")), "{told}");
}

/// A route whose parts do not fit is the only one that is not there.
#[test]
fn a_source_of_the_other_family_is_refused() {
    let node = Node::new();
    let source: Option<IpAddr> = "fd01::1".parse().ok();
    let done = node.sync(&[PodRoute { source, ..route("10.2.0.0/24", "") }, route("10.3.0.0/24", "")]);
    let [refused] = &done.refused[..] else { panic!("{done:?}") };
    assert_eq!((refused.destination.to_string(), done.written), ("10.2.0.0/24".into(), 1));
    assert_eq!(refused.reason, "the source fd01::1 does not fit the route to 10.2.0.0/24");
}
