//! Thirty flows: ten ways to a Service, with three external policies. Who answers, beside kube-proxy (S25, S26, S31).
//!
//! What becomes of the source is the programs' part: the matrix in `tests/packet` goes these ways through them.

use quilla_abi::service::flag;
use quilla_model::{Service, TrafficPolicy};

use crate::cluster::{Cluster, INSIDE, OUTSIDE, Planned, endpoint, load_balancer};

/// Who gets the packet.
#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    Any,
    Here,
    Dropped,
    /// No frontend: the address is no Service's.
    NoService,
}

use To::{Any, Dropped, Here, NoService};

/// Where the flow comes from and goes to; who answers.
struct Flow(&'static str, &'static str, u8, To);

const CLUSTER_IP: &str = "10.96.0.1:80";
const NODE_PORT: &str = "192.0.2.1:30080";
const LOCALHOST: &str = "127.0.0.1:30080";
const BALANCED: &str = "203.0.113.1:80";

/// From Pods and the node itself: any endpoint, whatever the external policy.
const INSIDERS: [(&str, &str); 7] = [
    ("pod to ClusterIP", CLUSTER_IP),
    ("pod to NodePort", NODE_PORT),
    ("pod to load balancer", BALANCED),
    ("node to ClusterIP", CLUSTER_IP),
    ("node to NodePort", NODE_PORT),
    ("localhost to NodePort", LOCALHOST),
    ("node to load balancer", BALANCED),
];

/// From outside; kube-proxy serves a ClusterIP there, too, we do not (S31).
const fn outsiders(external: To) -> [Flow; 3] {
    [
        Flow("outside to ClusterIP", CLUSTER_IP, OUTSIDE, NoService),
        Flow("outside to NodePort", NODE_PORT, OUTSIDE, external),
        Flow("outside to load balancer", BALANCED, OUTSIDE, external),
    ]
}

fn planned(policy: TrafficPolicy, local_endpoint: bool) -> Planned {
    let web = load_balancer("web", &["10.96.0.1"], &["203.0.113.1"]);
    let web = Service { external_policy: policy, ..web };
    let here = if local_endpoint { "rsl" } else { "rs" };
    let endpoints = [endpoint("10.244.1.2", here, ""), endpoint("10.244.2.2", "rs", "")];
    Cluster::new().with(web).endpoints("web", &endpoints).plan()
}

fn answered(planned: &Planned, at: &str, scope: u8) -> To {
    let Some(backends) = planned.backends(at, scope) else { return NoService };
    match backends.len() {
        2 => Any,
        1 if backends == ["10.244.1.2:8080"] => Here,
        0 if planned.set(at, scope).flags & flag::DROP_WHEN_EMPTY != 0 => Dropped,
        _ => panic!("{at}: {backends:?}"),
    }
}

/// S25, S26, S31: who answers in each of thirty flows.
#[test]
fn s25_s26_s31_who_answers_in_thirty_flows() {
    let cases = [
        (TrafficPolicy::Cluster, true, Any),
        (TrafficPolicy::Local, true, Here),
        (TrafficPolicy::Local, false, Dropped),
    ];
    let mut flows = 0;
    for (policy, local_endpoint, outside) in cases {
        let planned = planned(policy, local_endpoint);
        let insiders = INSIDERS.map(|(what, at)| Flow(what, at, INSIDE, Any));
        for Flow(what, at, scope, expected) in insiders.into_iter().chain(outsiders(outside)) {
            let case = format!("{what}, external policy {policy:?}, endpoint here: {local_endpoint}");
            assert_eq!(answered(&planned, at, scope), expected, "{case}");
            flows += 1;
        }
    }
    assert_eq!(flows, 30);
}
