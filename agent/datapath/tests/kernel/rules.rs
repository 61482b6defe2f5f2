//! Rules that end what the host itself sends to ranges of nobody's.

use std::collections::BTreeSet;

use ipnet::IpNet;
use quilla_datapath::{Netlink, sysctl};

use crate::support::Namespace;

/// A host with an address of each family on the device `under`.
fn on_a_link() -> Namespace {
    let namespace = Namespace::new();
    namespace.ip("link add under type veth peer name other");
    namespace.ip("addr add 192.0.2.1/24 dev under");
    namespace.ip("addr add 2001:db8::1/64 dev under nodad");
    namespace.ip("link set under up");
    namespace.ip("link set other up");
    namespace
}

/// E8: what the host itself sends to a range of nobody's ends at once; what it forwards is routed as before.
#[test]
fn e8_ranges_are_refused_to_the_host_alone_and_other_rules_are_left_alone() {
    let namespace = on_a_link();
    namespace.run(|| sysctl::enable_forwarding("under")).expect("forwarding");
    namespace.ip("route add default via 192.0.2.9");
    namespace.ip("-6 route add default via 2001:db8::9");
    namespace.ip("rule add to 10.96.0.0/16 iif lo table main priority 40000");
    let sync = |wanted: &[&str]| {
        let wanted = ranges(wanted);
        let changes = namespace.run(|| Netlink::open()?.sync_unreachable(&wanted)).expect("rules");
        assert!(changes.failed.is_empty(), "{changes:?}");
        (changes.written, changes.removed)
    };
    let send = |to: &str| {
        namespace.run(|| {
            let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = std::net::UdpSocket::bind(any).expect("bind");
            socket.connect(to).map_err(|error| error.kind())
        })
    };
    let [v4, v6] = ["10.96.0.10:9", "[fd00:96::a]:9"];
    assert_eq!([send(v4), send(v6)], [Ok(()), Ok(())], "by the default route");

    let both = ["10.96.0.0/16", "fd00:96::/112"];
    assert_eq!(sync(&both), (2, 0));
    assert_eq!(sync(&both), (0, 0));
    let refused = Err(std::io::ErrorKind::NetworkUnreachable);
    assert_eq!([send(v4), send(v6)], [refused, refused]);
    assert_eq!(send("10.97.0.1:9"), Ok(()), "beside it");
    for (family, to, from) in [("-4", "10.96.0.10", "192.0.2.7"), ("-6", "fd00:96::a", "2001:db8::7")] {
        let route = namespace.ip(&format!("{family} route get {to} from {from} iif under"));
        assert!(route.contains("via"), "{route}");
    }

    namespace.ip("rule del to 10.96.0.0/16 iif lo priority 32000");
    assert_eq!(sync(&both[..1]), (1, 1));
    assert_eq!([send(v4), send(v6)], [refused, Ok(())]);
    assert_eq!(sync(&[]), (0, 1));
    assert!(namespace.ip("rule show").contains("40000"), "a rule of somebody else");
}

/// E8: an equal rule of somebody else is neither ours nor in the way, and a range may be everything.
#[test]
fn e8_equal_rules_of_others_are_left_alone() {
    let namespace = Namespace::new();
    let sync = |wanted: &[&str]| {
        let wanted = ranges(wanted);
        let changes = namespace.run(|| Netlink::open()?.sync_unreachable(&wanted)).expect("rules");
        assert!(changes.failed.is_empty(), "{changes:?}");
        (changes.written, changes.removed)
    };
    namespace.ip("rule add to 10.96.0.0/16 iif lo unreachable priority 32000");
    let both = ["10.96.0.0/16", "0.0.0.0/0"];
    assert_eq!(sync(&both), (2, 0));
    assert_eq!(sync(&both), (0, 0));
    assert_eq!(sync(&[]), (0, 2));
    assert!(namespace.ip("rule show").contains("32000:"), "the other one");
}

/// E8: what the host must go on reaching is seen in its routes, however they are written.
#[test]
fn e8_gateways_and_networks_are_read_off_the_routes() {
    let namespace = on_a_link();
    namespace.ip("route add default via 192.0.2.9");
    namespace.ip("-6 route add default via 2001:db8::9");
    namespace.ip("route add 198.51.100.0/24 nexthop via 192.0.2.7 nexthop via 192.0.2.8");
    namespace.ip("route add 203.0.113.0/24 via inet6 2001:db8::a dev under");
    namespace.ip("route add 198.18.0.0/16 dev under proto 81");
    let found = namespace.run(|| Netlink::open()?.surroundings()).expect("routes");
    let gateways: Vec<_> = found.gateways.iter().map(ToString::to_string).collect();
    assert_eq!(gateways, ["192.0.2.7", "192.0.2.8", "192.0.2.9", "2001:db8::9", "2001:db8::a"]);
    assert_eq!(found.networks, ranges(&["192.0.2.0/24", "2001:db8::/64", "fe80::/64"]));
}

fn ranges(texts: &[&str]) -> BTreeSet<IpNet> {
    texts.iter().map(|range| range.parse().expect("a prefix")).collect()
}
