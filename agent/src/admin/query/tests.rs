//! Rows as people see them, of a small cluster.

use quilla_abi::Be16;
use quilla_abi::epoch::{self, Dep};
use quilla_abi::flow::{Flow, FlowKey, Rewrite, action, dep, flag, state};
use quilla_abi::service::{ServiceKey, scope};
use quilla_model::{
    Endpoint, EndpointPort, EndpointSlice, Family, Node, ObjectName, Protocol, Service, ServicePort,
    ServiceType, Snapshot, TrafficPolicy,
};
use quilla_plan::{FrontendKey, Layout, NodeFacts, Path, Tunnel, Why, plan};
use serde_json::{Value, json};
use std::sync::Arc;

use super::filter::Filter;
use super::flows::{Found, passes};
use super::names::Names;
use super::node::{NODES, Ways, nodes};
use super::services::{BACKENDS, SERVICES, backends, services};
use super::{Answer, PROBLEMS, flows};
use crate::cni::AttachedEndpoint;
use crate::overlay::{Encapsulation, Mode};
use crate::reconcile::View;

fn pod() -> AttachedEndpoint {
    AttachedEndpoint {
        pod_namespace: "shop".into(),
        pod_name: "client".into(),
        ipv4: Some([10, 244, 1, 5].into()),
        ..AttachedEndpoint::numbered(7)
    }
}

fn add(snapshot: &mut Snapshot, service: Service, endpoints: &[(&str, &str)]) {
    let endpoint = |(address, node): &(&str, &str)| Endpoint {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some((*node).into()),
        pod: (!address.ends_with(".1.5")).then(|| "worker".into()),
        hints: None,
    };
    let slice = EndpointSlice {
        name: service.name.clone(),
        service: service.name.clone(),
        family: Family::V4,
        ports: vec![EndpointPort { name: "http".into(), port: 8080, protocol: Protocol::Tcp }],
        endpoints: endpoints.iter().map(endpoint).collect(),
        weight: 1,
    };
    snapshot.slices.or_default(service.name.clone()).insert("slice".into(), Arc::new(slice));
    snapshot.services.insert(service.name.clone(), Arc::new(service));
}

/// A ClusterIP Service with two backends, and a load balancer with a Local policy whose one is elsewhere.
fn view() -> View {
    let mut snapshot = Snapshot::default();
    for (name, host) in [("here", 1), ("there", 2)] {
        let node = Node {
            name: name.into(),
            addresses: vec![[192, 0, 2, host].into()],
            pod_cidrs: vec![format!("10.244.{host}.0/24").parse().unwrap()],
            zone: None,
            leaving: false,
        };
        snapshot.nodes.insert(name.into(), Arc::new(node));
    }
    let ports =
        || vec![ServicePort { name: "http".into(), port: 80, protocol: Protocol::Tcp, node_port: None }];
    let web = Service {
        cluster_ips: vec![[10, 96, 0, 10].into()],
        ports: ports(),
        affinity_seconds: Some(600),
        ..Service::new(ObjectName::new("shop", "web"))
    };
    add(&mut snapshot, web, &[("10.244.1.5", "here"), ("192.0.2.2", "there")]);
    let edge = Service {
        kind: ServiceType::LoadBalancer,
        cluster_ips: vec![[10, 96, 0, 11].into()],
        ports: ports(),
        external_policy: TrafficPolicy::Local,
        load_balancer_ips: vec![[198, 51, 100, 1].into()],
        source_ranges: vec!["203.0.113.0/24".parse().unwrap()],
        ..Service::new(ObjectName::new("shop", "edge"))
    };
    add(&mut snapshot, edge, &[("10.244.2.9", "there")]);
    let facts = NodeFacts { addresses: vec![[192, 0, 2, 1].into()], ..NodeFacts::new("here") };
    let (desired, problems) = plan(&snapshot, &facts);
    assert_eq!(problems, []);
    let (tables, _) = Layout::default().lay_out(&desired);
    let snapshot = Arc::new(snapshot);
    View { snapshot, desired, tables, endpoints: vec![pod()], ..View::default() }
}

fn cell<'a>(columns: &[&str], row: &'a Value, name: &str) -> &'a Value {
    &row[columns.iter().position(|column| *column == name).unwrap()]
}

/// The rows of an address.
fn rows_of<'a>(rows: &'a [Value], columns: &[&str], address: &str) -> Vec<&'a Value> {
    rows.iter().filter(|row| cell(columns, row, "address") == address).collect()
}

#[test]
fn services_name_objects_scopes_and_what_is_empty() {
    let view = view();
    let rows = services(&view.tables, &Default::default(), &Names::new("here", &view), &Filter::default());
    assert!(rows.iter().all(|row| row.as_array().unwrap().len() == SERVICES.len()), "{rows:?}");
    let of = |address| rows_of(&rows, SERVICES, address);
    let web = of("10.96.0.10:80");
    let shown = |row: &Value, names: &[&str]| {
        names.iter().map(|name| cell(SERVICES, row, name).clone()).collect::<Vec<_>>()
    };
    let columns = ["service", "port", "type", "scope", "selection", "affinity", "when_empty"];
    assert_eq!(web.len(), 1);
    let expected = json!(["shop/web", "http", "ClusterIP", "internal", "random", "600s", null]);
    assert_eq!(json!(shown(web[0], &columns)), expected);
    let mut members = cell(SERVICES, web[0], "backends").as_array().unwrap().clone();
    members.sort_by_key(Value::to_string);
    assert_eq!(json!(members), json!(["10.244.1.5:8080", "192.0.2.2:8080"]));

    let edge = of("198.51.100.1:80");
    let outside = edge.iter().find(|row| cell(SERVICES, row, "scope") == "external").unwrap();
    let columns = ["service", "type", "selection", "when_empty", "slots", "backends"];
    let expected = json!(["shop/edge", "LoadBalancer", "maglev", "drop", 0, []]);
    assert_eq!(json!(shown(outside, &columns)), expected, "S21");
    assert_eq!(*cell(SERVICES, outside, "sources"), json!(["nobody"]), "S24: its ranges are not in the maps");
    assert_eq!(*cell(SERVICES, web[0], "sources"), json!([]), "not restricted");
    let inside = edge.iter().find(|row| cell(SERVICES, row, "scope") == "internal").unwrap();
    assert_eq!(*cell(SERVICES, inside, "backends"), json!(["10.244.2.9:8080"]), "S26");
}

#[test]
fn backends_name_their_pods_nodes_and_services() {
    let view = view();
    let rows = backends(&view.tables, &Default::default(), &Names::new("here", &view), &Filter::default());
    assert!(rows.iter().all(|row| row.as_array().unwrap().len() == BACKENDS.len()), "{rows:?}");
    for (address, endpoint, service) in [
        ("10.244.1.5:8080", json!("pod shop/client"), "shop/web:http"),
        ("192.0.2.2:8080", json!("node there"), "shop/web:http"),
        ("10.244.2.9:8080", json!("pod shop/worker"), "shop/edge:http"),
    ] {
        let found = rows_of(&rows, BACKENDS, address);
        assert_eq!(found.len(), 1, "{rows:?}");
        assert_eq!(*cell(BACKENDS, found[0], "endpoint"), endpoint);
        assert_eq!(*cell(BACKENDS, found[0], "services"), json!([service]));
    }
}

#[test]
fn services_and_backends_are_filtered_by_every_condition() {
    let view = view();
    let names = Names::new("here", &view);
    let column = |columns: &[&str], rows: Vec<Value>, name| {
        let mut cells: Vec<_> = rows.iter().map(|row| cell(columns, row, name).clone()).collect();
        cells.sort_by_key(Value::to_string);
        json!(cells)
    };
    let addresses = |filter: Value| {
        let filter: Filter = serde_json::from_value(filter).unwrap();
        let found = services(&view.tables, &Default::default(), &names, &filter);
        column(SERVICES, found, "address")
    };
    let (web, edge) = ("10.96.0.10:80", ["10.96.0.11:80", "198.51.100.1:80", "198.51.100.1:80"]);
    assert_eq!(addresses(json!({"service": "web"})), json!([web]));
    assert_eq!(addresses(json!({"service": "shop/web:http"})), json!([web]));
    assert_eq!(addresses(json!({"service": "10.96.0.10"})), json!([web]));
    assert_eq!(addresses(json!({"service": "shop/edge"})), json!(edge));
    assert_eq!(addresses(json!({"service": "edge", "scope": "external"})), json!(edge[1..2]));
    assert_eq!(
        addresses(json!({"namespace": "shop", "port": 80, "proto": "tcp"})).as_array().unwrap().len(),
        4
    );
    for none in [json!({"namespace": "other"}), json!({"port": 81}), json!({"proto": "UDP"})] {
        assert_eq!(addresses(none), json!([]));
    }
    let endpoints = |filter: Value| {
        let filter: Filter = serde_json::from_value(filter).unwrap();
        column(BACKENDS, backends(&view.tables, &Default::default(), &names, &filter), "endpoint")
    };
    assert_eq!(endpoints(json!({"service": "web"})), json!(["node there", "pod shop/client"]));
    assert_eq!(endpoints(json!({"service": "198.51.100.1"})), json!(["pod shop/worker"]));
    assert_eq!(endpoints(json!({"service": "web", "pod": "client"})), json!(["pod shop/client"]));
    assert_eq!(endpoints(json!({"pod": "10.244.2.0/24", "port": 8080})), json!(["pod shop/worker"]));
    for none in
        [json!({"service": "edge", "pod": "client"}), json!({"namespace": "other"}), json!({"port": 80})]
    {
        assert_eq!(endpoints(none), json!([]));
    }
}

/// Two Services may have one address: one for clients inside, one for those outside.
#[test]
fn backends_name_the_service_of_their_own_scope() {
    let mut view = view();
    let key = |address: [u8; 4], scope| ServiceKey { addr: address, port: Be16::new(80), proto: 6, scope };
    let inside = key([198, 51, 100, 1], scope::INTERNAL);
    let row = *view.tables.v4.services.get(&inside).unwrap();
    Arc::make_mut(&mut view.tables).v4.services.insert(key([10, 96, 0, 10], scope::EXTERNAL), row);
    let frontend =
        |address: [u8; 4], scope| FrontendKey { address: address.into(), port: 80, protocol: 6, scope };
    let edge = view.desired.frontends.get(&frontend([198, 51, 100, 1], scope::INTERNAL)).unwrap().clone();
    view.desired.frontends.insert(frontend([10, 96, 0, 10], scope::EXTERNAL), edge);
    let rows = backends(&view.tables, &Default::default(), &Names::new("here", &view), &Filter::default());
    let found = rows_of(&rows, BACKENDS, "10.244.2.9:8080");
    assert_eq!(*cell(BACKENDS, found[0], "services"), json!(["shop/edge:http"]));
    let found = rows_of(&rows, BACKENDS, "10.244.1.5:8080");
    assert_eq!(*cell(BACKENDS, found[0], "services"), json!(["shop/web:http"]));
}

/// The Pod's connection to the Service on the other node, and the answering entry.
fn found() -> [Found; 2] {
    let (client, service, backend) = ([10, 244, 1, 5], [10, 96, 0, 10], [192, 0, 2, 2]);
    let [sport, port, target] = [40000, 80, 8080].map(Be16::new);
    let key = FlowKey { src: client, dst: service, sport, dport: port, proto: 6, ..FlowKey::default() };
    let rewrite = Rewrite { src: client, dst: backend, sport, dport: target, ..Rewrite::default() };
    let flow = Flow { action: action::UPLINK, state: state::ESTABLISHED, rewrite, ..Flow::default() };
    let back = FlowKey { src: backend, dst: client, sport: target, dport: sport, ..key };
    let rewrite = Rewrite { src: service, dst: client, sport: port, dport: sport, ..Rewrite::default() };
    let answer = Flow { action: action::LOCAL_POD, flags: flag::REPLY, rewrite, ..flow };
    [Found::new(&key, &flow), Found::new(&back, &answer)]
}

/// What hosts say to other nodes' Pods, and agents to each other, has the gateway's address: it is the node's.
#[test]
fn a_node_s_gateway_goes_by_its_name() {
    let view = view();
    let names = Names::new("here", &view);
    let key = |src, dst| FlowKey { src, dst, proto: 6, ..FlowKey::default() };
    let (own, other) = ([10, 244, 1, 1], [10, 244, 2, 1]);
    for (src, dst, ends) in
        [(own, other, ["node here", "node there"]), (other, own, ["node there", "node here"])]
    {
        let rewrite = Rewrite { src, dst, ..Rewrite::default() };
        let row = Found::new(&key(src, dst), &Flow { rewrite, ..Flow::default() }).row(&names);
        assert_eq!(json!([row[10], row[11]]), json!(ends));
    }
}

/// The Pod CIDRs of a node are in one order, whatever the order of the routes.
#[test]
fn nodes_list_their_pods_in_order() {
    let cidrs = ["10.9.0.0/16", "10.10.0.0/24", "10.10.7.0/24", "fd00:244:0:9::/64", "fd00:244:0:10::/64"];
    let mut view = view();
    for cidr in cidrs.iter().rev() {
        view.desired.routes.insert(cidr.parse().unwrap(), quilla_plan::Target::RemotePods("there".into()));
    }
    let listed = nodes(&view).iter().map(|row| row[4].clone()).collect::<Vec<_>>();
    assert_eq!(listed, [json!([&cidrs[..3], &["10.244.2.0/24"], &cidrs[3..]].concat())]);
}

/// How packets get to other nodes, in one word where both families go the same way.
#[test]
fn nodes_say_their_paths_and_why() {
    let mut view = view();
    let tunnel = |path_ipv4, path_ipv6| Tunnel { ipv4: None, ipv6: None, mac: [2; 6], path_ipv4, path_ipv6 };
    let (near, far) = (Path::Native(Why::SameNetwork), Path::Overlay(Why::OtherNetwork));
    view.desired.tunnels = [("a".into(), tunnel(near, near)), ("b".into(), tunnel(near, far))].into();
    let said: Vec<_> = nodes(&view).iter().map(|row| (row[5].clone(), row[6].clone())).collect();
    let words = |routing: &str, reason: &str| (json!(routing), json!(reason));
    assert_eq!(
        said,
        [words("native", "same network"), words("native/overlay", "same network/other network")]
    );
    let known = Encapsulation::new(Mode::Device, false, false);
    let said = |view: &View| {
        let ways = Ways::new(view);
        (ways.paths().unwrap_or_default(), ways.encapsulation(&known))
    };
    let device = ("device", "chosen".to_owned());
    assert_eq!(said(&view), ("1 native, 1 native/overlay".into(), device.clone()));
    view.desired.tunnels.remove("b");
    assert_eq!(
        said(&view),
        ("native".into(), ("device", "only for what cannot go plainly: chosen".to_owned()))
    );
    view.desired.tunnels = [("there".into(), tunnel(near, far))].into();
    assert_eq!(said(&view).0, "native", "it has Pods of IPv4 only");
    let v6 = "fd00:244:0:2::/64".parse().unwrap();
    view.desired.routes.insert(v6, quilla_plan::Target::RemotePods("there".into()));
    assert_eq!(said(&view), ("native/overlay".into(), device));
    view.desired.tunnels.clear();
    assert_eq!(said(&view), (String::new(), ("none", "not needed: there is no other node".to_owned())));
}

/// One convention for what programs read: a column is a list in each row or in none, and a text is never empty.
#[test]
fn what_is_absent_is_null_and_lists_are_lists() {
    let view = view();
    let (names, filter) = (Names::new("here", &view), Filter::default());
    let flows = found().iter().map(|found| found.row(&names)).collect();
    for (columns, lists, rows) in [
        (
            SERVICES,
            &["sources", "backends"][..],
            services(&view.tables, &Default::default(), &names, &filter),
        ),
        (BACKENDS, &["services"], backends(&view.tables, &Default::default(), &names, &filter)),
        (NODES, &["pods"], nodes(&view)),
        (flows::COLUMNS, &[], flows),
        (PROBLEMS, &[], vec![json!(["Service a/b", "conflict", ""])]),
    ] {
        let answer = Answer::new(columns, rows);
        assert!(!answer.rows.is_empty(), "{columns:?}");
        for row in &answer.rows {
            let cells = row.as_array().unwrap();
            assert_eq!(cells.len(), columns.len());
            for (column, value) in columns.iter().zip(cells) {
                assert_eq!(value.is_array(), lists.contains(column), "{column}: {value}");
                assert_ne!(value, "", "{column}");
            }
        }
    }
}

#[test]
fn counts_are_chosen_by_verdict_and_name() {
    let filter = |text: Value| serde_json::from_value::<Filter>(text).unwrap();
    let drops = filter(json!({"verdict": "drop"}));
    assert!(drops.takes_count("drop", "no_flow") && !drops.takes_count("forward", "native"));
    let native = filter(json!({"reason": "native"}));
    assert!(native.takes_count("forward", "native") && !native.takes_count("forward", "overlay"));
    let view = view();
    let names = Names::new("here", &view);
    assert!(
        native.check(&names).is_ok() && filter(json!({"reason": "spoofed_address"})).check(&names).is_ok()
    );
    let refused = filter(json!({"reason": "native_"})).check(&names).unwrap_err().to_string();
    assert!(refused.starts_with("nothing is counted under \"native_\", but under "), "{refused}");
}

#[test]
fn flows_name_both_ends_and_the_service_in_both_directions() {
    let view = view();
    let names = Names::new("here", &view);
    let [original, reply] = found().map(|found| found.row(&names));
    let ends = |row: &Value| json!([row[3], row[7], row[10], row[11], row[12]]);
    let expected = json!(["original", "established", "pod shop/client", "node there", "shop/web:http"]);
    assert_eq!(ends(&original), expected);
    let expected = json!(["reply", "established", "node there", "pod shop/client", "shop/web:http"]);
    assert_eq!(ends(&reply), expected);
}

/// A connection that a socket of the Pod made to the Service, and that the other Pod sees as its own; and one that asked
/// for that Pod.
fn direct(backend: [u8; 4], led: bool) -> [Found; 2] {
    let (client, [sport, port]) = ([10, 244, 1, 5], [40000, 8080].map(Be16::new));
    let key = FlowKey { src: client, dst: backend, sport, dport: port, proto: 6, ..FlowKey::default() };
    let rewrite = Rewrite { src: client, dst: backend, sport, dport: port, ..Rewrite::default() };
    let mut flow = Flow { deps: [Dep::NONE; 4], rewrite, ..Flow::default() };
    if led {
        flow.deps[dep::BACKEND] = Dep { index: epoch::BACKENDS_V4 + 1, epoch: 0 };
    }
    let rewrite = Rewrite { src: backend, dst: client, sport: port, dport: sport, ..Rewrite::default() };
    let answer = Flow { flags: flag::REPLY, rewrite, ..flow };
    [Found::new(&key, &flow), Found::new(&key.mirrored(), &answer)]
}

#[test]
fn flows_that_were_led_at_the_socket_belong_to_the_services_of_their_backend() {
    let mut view = view();
    let asked = |view: &View, found: &Found, filter: Value| {
        let (names, filter) = (Names::new("here", view), serde_json::from_value::<Filter>(filter).unwrap());
        passes(&filter, found, &names, &names.wanted(&filter))
    };
    let service = |view: &View, found: &Found| found.row(&Names::new("here", view))[12].clone();
    for found in direct([10, 244, 2, 9], true) {
        assert_eq!(service(&view, &found), json!("shop/edge:http"));
        for good in ["edge", "shop/edge", "shop/edge:http", "10.96.0.11", "198.51.100.1:80"] {
            assert!(asked(&view, &found, json!({"service": good})), "{good}");
        }
        for bad in ["web", "10.96.0.10"] {
            assert!(!asked(&view, &found, json!({"service": bad})), "{bad}");
        }
    }
    for found in direct([10, 244, 2, 9], false) {
        assert_eq!(service(&view, &found), json!(null));
        assert!(!asked(&view, &found, json!({"service": "edge"})));
    }
    let snapshot = Arc::make_mut(&mut view.snapshot);
    let web = Service::clone(snapshot.services.get(&ObjectName::new("shop", "web")).unwrap());
    add(snapshot, web, &[("10.244.2.9", "there")]);
    let [found, _] = direct([10, 244, 2, 9], true);
    assert_eq!(service(&view, &found), json!("one of shop/edge:http, shop/web:http"));
    assert!(asked(&view, &found, json!({"service": "web"})));
}

/// Nobody selects it any more, but its connections go on: in a rollout it is what one asks about.
#[test]
fn draining_backends_belong_to_the_services_that_list_them() {
    let mut view = view();
    let snapshot = Arc::make_mut(&mut view.snapshot);
    let slices = snapshot.slices.or_default(ObjectName::new("shop", "web"));
    let mut slice = EndpointSlice::clone(slices.get("slice").unwrap());
    (slice.endpoints[0].ready, slice.endpoints[0].terminating) = (false, true);
    slices.insert("slice".into(), Arc::new(slice));
    let facts = NodeFacts { addresses: vec![[192, 0, 2, 1].into()], ..NodeFacts::new("here") };
    let (ended, _) = plan(&view.snapshot, &facts);
    view.tables = Layout::default().lay_out(&ended).0;
    view.desired = ended;
    let names = Names::new("here", &view);
    let asked = |filter: Value| {
        backends(&view.tables, &Default::default(), &names, &serde_json::from_value(filter).unwrap())
    };
    for filter in [json!({"service": "shop/web"}), json!({"service": "10.96.0.10"}), json!({})] {
        let rows = asked(filter);
        let found = rows_of(&rows, BACKENDS, "10.244.1.5:8080");
        assert_eq!(found.len(), 1, "{rows:?}");
        assert_eq!(*cell(BACKENDS, found[0], "services"), json!(["shop/web:http"]));
        assert_eq!(*cell(BACKENDS, found[0], "slots"), json!(0));
    }
    assert_eq!(asked(json!({"service": "shop/edge"})).len(), 1);
}

#[test]
fn flows_are_filtered_by_every_condition() {
    let view = view();
    let names = Names::new("here", &view);
    let [original, _] = found();
    let passes = |filter: Value| {
        let filter: Filter = serde_json::from_value(filter).unwrap();
        passes(&filter, &original, &names, &names.wanted(&filter))
    };
    for good in [
        json!({}),
        json!({"pod": "client"}),
        json!({"pod": "shop/client"}),
        json!({"pod": "10.244.1.5"}),
        json!({"service": "web"}),
        json!({"service": "shop/web:http", "proto": "tcp", "state": "established"}),
        json!({"from": "10.244.0.0/16", "to": "10.96.0.10", "port": 8080}),
        json!({"to": "192.0.2.2", "proto": "6"}),
        json!({"service": "10.96.0.10"}),
        json!({"service": "10.96.0.10:80"}),
    ] {
        assert!(passes(good.clone()), "{good}");
    }
    for bad in [
        json!({"pod": "web"}),
        json!({"pod": "10.244.1.6"}),
        json!({"service": "edge"}),
        json!({"from": "10.96.0.10"}),
        json!({"to": "client"}),
        json!({"port": 81}),
        json!({"proto": "udp"}),
        json!({"state": "new"}),
        json!({"service": "web", "port": 81}),
        json!({"service": "10.96.0.10:81"}),
        json!({"service": "192.0.2.2"}),
    ] {
        assert!(!passes(bad.clone()), "{bad}");
    }
    assert!(serde_json::from_value::<Filter>(json!({"por": 80})).is_err(), "a condition that is none");
}

#[test]
fn an_end_that_nobody_has_is_refused_with_what_is_allowed() {
    let view = view();
    let names = Names::new("here", &view);
    let check = |filter: Value| serde_json::from_value::<Filter>(filter).unwrap().check(&names);
    for good in [
        json!({}),
        json!({"from": "client", "to": "10.96.0.10"}),
        json!({"pod": "shop/worker", "from": "fd00::/8"}),
    ] {
        check(good.clone()).unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    for bad in ["pod", "from", "to"] {
        let message = check(json!({bad: "garbage"})).unwrap_err().to_string();
        let expected = format!("{bad} \"garbage\": neither an address, a range");
        assert!(message.starts_with(&expected), "{message}");
    }
    assert!(check(json!({"from": "10.0.0.0/33"})).is_err());
    for good in [json!({"service": "shop/web"}), json!({"service": "10.96.0.11", "namespace": "shop"})] {
        check(good.clone()).unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    for bad in [json!({"service": "webb"}), json!({"service": "web", "namespace": "other"})] {
        let message = check(bad).unwrap_err().to_string();
        assert!(message.ends_with("has an address that this node serves"), "{message}");
    }
}
