//! Rules that end what the host itself sends to ranges of nobody's.

use quilla_datapath::netlink::RouteChanges;
use quilla_datapath::{Netlink, sysctl};

use crate::support::Namespace;

/// E8: what the host itself sends to a range of nobody's ends at once; what it forwards is routed as before.
#[test]
fn e8_ranges_are_refused_to_the_host_alone_and_other_rules_are_left_alone() {
    let namespace = Namespace::new();
    namespace.ip("link add under type veth peer name other");
    namespace.ip("addr add 192.0.2.1/24 dev under");
    namespace.ip("addr add 2001:db8::1/64 dev under nodad");
    namespace.ip("link set under up");
    namespace.ip("link set other up");
    namespace.run(|| sysctl::enable_forwarding("under")).expect("forwarding");
    namespace.ip("route add default via 192.0.2.9");
    namespace.ip("-6 route add default via 2001:db8::9");
    namespace.ip("rule add to 10.96.0.0/16 iif lo table main priority 40000");
    let sync = |wanted: &[&str]| {
        let wanted = wanted.iter().map(|range| range.parse().expect("a prefix")).collect();
        namespace.run(|| Netlink::open()?.sync_unreachable(&wanted)).expect("rules")
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

    let ranges = ["10.96.0.0/16", "fd00:96::/112"];
    assert_eq!(sync(&ranges), RouteChanges { written: 2, removed: 0 });
    assert_eq!(sync(&ranges), RouteChanges::default());
    let refused = Err(std::io::ErrorKind::NetworkUnreachable);
    assert_eq!([send(v4), send(v6)], [refused, refused]);
    assert_eq!(send("10.97.0.1:9"), Ok(()), "beside it");
    for (family, to, from) in [("-4", "10.96.0.10", "192.0.2.7"), ("-6", "fd00:96::a", "2001:db8::7")] {
        let route = namespace.ip(&format!("{family} route get {to} from {from} iif under"));
        assert!(route.contains("via"), "{route}");
    }

    namespace.ip("rule del to 10.96.0.0/16 iif lo priority 32000");
    assert_eq!(sync(&ranges[..1]), RouteChanges { written: 1, removed: 1 });
    assert_eq!([send(v4), send(v6)], [refused, Ok(())]);
    assert_eq!(sync(&[]), RouteChanges { written: 0, removed: 1 });
    assert!(namespace.ip("rule show").contains("40000"), "a rule of somebody else");
}
