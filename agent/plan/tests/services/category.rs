//! Which endpoints are for whom: the cases of kube-proxy's own test of it, in our words (S10-S15).

use quilla_abi::service::flag;
use quilla_model::{Service, TrafficPolicy};
use quilla_plan::BackendSet;

use crate::cluster::{Cluster, cluster_ip, endpoint, node_port};

use TrafficPolicy::{Cluster as Any, Local};

/// A case: internal policy, external policy of a Service that has a node port, this node's zone, endpoints with their
/// hints; the endpoints of the Cluster set and of the Local set by position (`None`: the Service has no such set), and
/// whether there is any usable endpoint in the cluster.
struct Case(
    &'static str,
    TrafficPolicy,
    Option<TrafficPolicy>,
    Option<&'static str>,
    &'static [(&'static str, &'static str)],
    Option<&'static [usize]>,
    Option<&'static [usize]>,
    bool,
);

const Z1: Option<&str> = Some("z1");

#[rustfmt::skip]
const CASES: [Case; 32] = [
    // Zone hints (S14).
    Case("all have a zone", Any, None, Z1, &[("rs", "z1"), ("rs", "z2"), ("rs", "z3"), ("rs", "z1")], Some(&[0, 3]), None, true),
    Case("local sets ignore zones, external policy", Any, Some(Local), Z1, &[("rsl", "z1"), ("rsl", "z2"), ("rs", "z3"), ("rs", "z1")], Some(&[0, 3]), Some(&[0, 1]), true),
    Case("local sets ignore zones, internal policy", Local, Some(Any), Z1, &[("rsl", "z1"), ("rsl", "z2"), ("rs", "z3"), ("rs", "z1")], Some(&[0, 3]), Some(&[0, 1]), true),
    Case("this node has no zone", Any, None, None, &[("rs", "z1")], Some(&[0]), None, true),
    Case("this node's zone has an empty name", Any, None, Some(""), &[("rs", "z1")], Some(&[0]), None, true),
    Case("nobody is meant for this zone", Any, None, Some("z2"), &[("rs", "z1")], Some(&[0]), None, true),
    Case("one of three zones", Any, None, Some("z3"), &[("rs", "z1"), ("rs", "z2"), ("rs", "z3")], Some(&[2]), None, true),
    Case("an unready one of the zone gets nothing", Any, None, Z1, &[("rs", "z1"), ("rs", "z2"), ("rs", "z3"), ("s", "z1")], Some(&[0]), None, true),
    Case("only unready ones in the zone: no filter", Any, None, Z1, &[("s", "z1"), ("rs", "z2"), ("rs", "z3"), ("s", "z1")], Some(&[1, 2]), None, true),
    Case("one without a hint: no filter", Any, None, Z1, &[("rs", "z1"), ("rs", "z2"), ("rs", ""), ("rs", "z1")], Some(&[0, 1, 2, 3]), None, true),
    Case("several zones each", Any, None, Some("z3"), &[("rs", "z1 z2 z3"), ("rs", "z2 z3"), ("rs", "z2 z4"), ("rs", "z3")], Some(&[0, 1, 3]), None, true),
    Case("zone and node disagree", Any, Some(Local), Z1, &[("rsl", "z1"), ("rsl", "z2"), ("rs", "z1"), ("rs", "z2")], Some(&[0, 2]), Some(&[0, 1]), true),
    // Node hints (S14).
    Case("all have a node", Any, None, Z1, &[("rsl", "@here z1"), ("rs", "@there z1")], Some(&[0]), None, true),
    Case("no node is this one: the zone decides", Any, None, Z1, &[("rs", "@there z1"), ("rs", "@other z2")], Some(&[0]), None, true),
    Case("one without a node: the zone decides", Any, None, Z1, &[("rsl", "@here z1"), ("rs", "z1"), ("rs", "z2")], Some(&[0, 1]), None, true),
    Case("neither this node nor this zone: no filter", Any, None, Some("z9"), &[("rs", "@there z1"), ("rs", "@other z2")], Some(&[0, 1]), None, true),
    Case("nodes without zones", Any, None, None, &[("rsl", "@here"), ("rs", "@there")], Some(&[0]), None, true),
    Case("an unready one without a hint is no obstacle", Any, None, Z1, &[("rsl", "@here z1"), ("s", ""), ("rs", "@there z2")], Some(&[0]), None, true),
    // Internal policy (S11, S13).
    Case("internal Local, nobody at all", Local, None, None, &[], None, Some(&[]), false),
    Case("internal Local, all elsewhere", Local, None, None, &[("rs", ""), ("rs", "")], None, Some(&[]), true),
    Case("internal Local, all here", Local, None, None, &[("rsl", ""), ("rsl", "")], None, Some(&[0, 1]), true),
    Case("internal Local, one here", Local, None, None, &[("rsl", ""), ("rs", "")], None, Some(&[0]), true),
    // Readiness and fallback (S10).
    Case("nobody is ready", Any, None, None, &[("", ""), ("s", "")], Some(&[]), None, false),
    Case("one is ready", Any, None, None, &[("", ""), ("rs", "")], Some(&[1]), None, true),
    Case("all are terminating", Any, None, None, &[("stl", "z2"), ("st", "z1")], Some(&[0, 1]), None, true),
    // Both policies (S13).
    Case("internal Local, external Cluster", Local, Some(Any), None, &[("rsl", ""), ("rs", "")], Some(&[0, 1]), Some(&[0]), true),
    Case("internal Cluster, external Local", Any, Some(Local), None, &[("rsl", ""), ("rs", "")], Some(&[0, 1]), Some(&[0]), true),
    Case("both Local", Local, Some(Local), None, &[("rsl", ""), ("rs", "")], Some(&[0, 1]), Some(&[0]), true),
    Case("both Local, all elsewhere", Local, Some(Local), None, &[("rs", ""), ("rs", "")], Some(&[0, 1]), Some(&[]), true),
    Case("both Local, all elsewhere and terminating", Local, Some(Local), None, &[("st", ""), ("st", "")], Some(&[0, 1]), Some(&[]), true),
    Case("each set falls back for itself", Any, Some(Local), None, &[("rs", ""), ("l", ""), ("stl", ""), ("st", "")], Some(&[0]), Some(&[2]), true),
    Case("external Local without any external address", Local, None, None, &[("rs", ""), ("rsl", "")], None, Some(&[1]), true),
];

impl Case {
    fn service(&self) -> Service {
        let Self(_, internal_policy, external_policy, ..) = *self;
        let web = if external_policy.is_some() { node_port } else { cluster_ip }("web", &["10.96.0.1"]);
        Service { internal_policy, external_policy: external_policy.unwrap_or(Local), ..web }
    }

    /// All sets of the plan of a policy: for clients inside, and outside.
    fn sets(&self) -> Vec<(TrafficPolicy, BackendSet)> {
        let Self(.., zone, endpoints, _, _, _) = *self;
        let endpoints: Vec<_> = (0..)
            .zip(endpoints)
            .map(|(index, (letters, hints))| endpoint(&format!("10.244.9.{index}"), letters, hints))
            .collect();
        let mut cluster = Cluster::new().with(self.service()).endpoints("web", &endpoints);
        let mut here = cluster.snapshot.nodes["here"].as_ref().clone();
        here.zone = zone.map(Into::into);
        cluster.snapshot.nodes.insert("here".into(), here.into());
        let planned = cluster.plan();
        assert_eq!(planned.complaints(), [""; 0], "{}", self.0);
        planned.desired.sets.iter().map(|(key, set)| (key.policy, set.as_ref().clone())).collect()
    }
}

fn positions(set: &BackendSet) -> Vec<usize> {
    let last = |member: &quilla_plan::Member| match member.backend.address {
        std::net::IpAddr::V4(v4) => usize::from(v4.octets()[3]),
        std::net::IpAddr::V6(_) => panic!("an IPv6 backend"),
    };
    set.members.iter().map(last).collect()
}

/// S10-S15: what kube-proxy's `CategorizeEndpoints` tells apart, the planner does, in every set that there is.
#[test]
fn s10_to_s15_thirty_two_cases_of_endpoint_choice() {
    for case in &CASES {
        let Case(what, .., cluster, local, any) = *case;
        let sets = case.sets();
        for (policy, expected) in [(Any, cluster), (Local, local)] {
            let found: Vec<_> = sets.iter().filter(|(of, _)| *of == policy).map(|(_, set)| set).collect();
            assert_eq!(found.is_empty(), expected.is_none(), "{what}: {policy:?}");
            for set in found {
                assert_eq!(Some(&positions(set)[..]), expected, "{what}: {policy:?}");
                let drops = set.flags & flag::DROP_WHEN_EMPTY != 0;
                assert_eq!(drops, policy == Local && set.members.is_empty() && any, "S12, S21: {what}");
            }
        }
    }
}

/// S40: terminating endpoints do not count, whatever the sets fall back to; an endpoint of two ports counts once.
#[test]
fn s40_only_ready_local_endpoints_are_reported() {
    let count = |kind, external_policy, letters: &[&str]| {
        let ports = vec![
            crate::cluster::port("", 80, quilla_model::Protocol::Tcp, Some(30_080)),
            crate::cluster::port("", 53, quilla_model::Protocol::Udp, Some(30_053)),
        ];
        let web = crate::cluster::load_balancer("web", &["10.96.0.1"], &[]);
        let web = Service { kind, external_policy, ports, health_check_node_port: Some(32_000), ..web };
        let endpoints: Vec<_> = (0..)
            .zip(letters)
            .map(|(index, letters)| endpoint(&format!("10.244.9.{index}"), letters, ""))
            .collect();
        let planned = Cluster::new().with(web).endpoints("web", &endpoints).plan();
        planned.desired.health_checks.values().map(|check| (check.port, check.local_endpoints)).next()
    };
    let balanced = quilla_model::ServiceType::LoadBalancer;
    assert_eq!(count(balanced, Local, &["rsl", "rsl", "rs", "sl", "stl"]), Some((32_000, 2)));
    assert_eq!(count(balanced, Local, &["stl"]), Some((32_000, 0)));
    assert_eq!(count(balanced, Any, &["rsl"]), None, "only an external policy that needs it");
    assert_eq!(count(quilla_model::ServiceType::NodePort, Local, &["rsl"]), None, "only for load balancers");
}
