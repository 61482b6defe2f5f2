//! Thirty flows: ten ways to a Service, with three external policies. The cases of kube-proxy's own test of which flows
//! are masqueraded, with what we do instead and why (S25, S26, S30-S36).
//!
//! The planner's part is who answers; it is checked here. The source address is the data path's part: the stories in
//! `tests/packet` and the topologies in `tests/netns` check it.

use quilla_abi::service::flag;
use quilla_model::{Service, TrafficPolicy};

use crate::cluster::{Cluster, INSIDE, OUTSIDE, Planned, endpoint, load_balancer};

/// Who gets the packet.
#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    Any,
    Here,
    Dropped,
    /// No frontend: the packet is nobody's.
    NotOurs,
}

/// What the source becomes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    /// As it was.
    Kept,
    /// An address of the node.
    Node,
    /// As it was for a Pod of this node, the node's Pod gateway for one of another node.
    KeptIfLocal,
}

use Source::{Kept, KeptIfLocal, Node};
use To::{Any, Dropped, Here, NotOurs};

/// Where the flow comes from and goes to; what kube-proxy does; what we do.
struct Flow(&'static str, &'static str, u8, (To, Source), (To, Source));

const CLUSTER_IP: &str = "10.96.0.1:80";
const NODE_PORT: &str = "192.0.2.1:30080";
const LOCALHOST: &str = "127.0.0.1:30080";
const BALANCED: &str = "203.0.113.1:80";

/// A Pod's source is kept always: its own node answers for it (kube-proxy masquerades what goes to external addresses,
/// lest another node answers directly; our replies come back through this node's flow table). The node's own processes
/// are translated at the socket, so that the kernel gives them the source of the way to the backend: the node's address
/// without any translation. A ClusterIP is nobody's outside (S31).
#[rustfmt::skip]
const ALWAYS: [Flow; 8] = [
    Flow("pod to ClusterIP", CLUSTER_IP, INSIDE, (Any, Kept), (Any, Kept)),
    Flow("pod to NodePort", NODE_PORT, INSIDE, (Any, Node), (Any, Kept)),
    Flow("pod to load balancer", BALANCED, INSIDE, (Any, Node), (Any, Kept)),
    Flow("node to ClusterIP", CLUSTER_IP, INSIDE, (Any, Node), (Any, Node)),
    Flow("node to NodePort", NODE_PORT, INSIDE, (Any, Node), (Any, Node)),
    Flow("localhost to NodePort", LOCALHOST, INSIDE, (Any, Node), (Any, Node)),
    Flow("node to load balancer", BALANCED, INSIDE, (Any, Node), (Any, Node)),
    Flow("outside to ClusterIP", CLUSTER_IP, OUTSIDE, (Any, Node), (NotOurs, Kept)),
];

/// kube-proxy masquerades, lest the backend answers the client directly. A backend of this node cannot: its answer passes
/// our hooks. One of another node gets the gateway's address and answers through the overlay.
const FROM_OUTSIDE: [Flow; 2] = [
    Flow("outside to NodePort", NODE_PORT, OUTSIDE, (Any, Node), (Any, KeptIfLocal)),
    Flow("outside to load balancer", BALANCED, OUTSIDE, (Any, Node), (Any, KeptIfLocal)),
];

/// The same as kube-proxy.
const FROM_OUTSIDE_LOCAL: [Flow; 2] = [
    Flow("outside to NodePort", NODE_PORT, OUTSIDE, (Here, Kept), (Here, Kept)),
    Flow("outside to load balancer", BALANCED, OUTSIDE, (Here, Kept), (Here, Kept)),
];

/// The same as kube-proxy.
const FROM_OUTSIDE_ELSEWHERE: [Flow; 2] = [
    Flow("outside to NodePort", NODE_PORT, OUTSIDE, (Dropped, Kept), (Dropped, Kept)),
    Flow("outside to load balancer", BALANCED, OUTSIDE, (Dropped, Kept), (Dropped, Kept)),
];

fn planned(policy: TrafficPolicy, local_endpoint: bool) -> Planned {
    let web = load_balancer("web", &["10.96.0.1"], &["203.0.113.1"]);
    let web = Service { external_policy: policy, ..web };
    let here = if local_endpoint { "rsl" } else { "rs" };
    let endpoints = [endpoint("10.244.1.2", here, ""), endpoint("10.244.2.2", "rs", "")];
    Cluster::new().with(web).endpoints("web", &endpoints).plan()
}

fn answered(planned: &Planned, at: &str, scope: u8) -> To {
    let Some(backends) = planned.backends(at, scope) else { return NotOurs };
    match backends.len() {
        2 => Any,
        1 if backends == ["10.244.1.2:8080"] => Here,
        0 if planned.set(at, scope).flags & flag::DROP_WHEN_EMPTY != 0 => Dropped,
        _ => panic!("{at}: {backends:?}"),
    }
}

/// S25, S26, S30-S36: who answers in each of thirty flows; where we differ from kube-proxy in that, it is a ClusterIP
/// from outside, and nothing else.
#[test]
fn s25_to_s36_thirty_flows() {
    let cases = [
        (TrafficPolicy::Cluster, true, FROM_OUTSIDE),
        (TrafficPolicy::Local, true, FROM_OUTSIDE_LOCAL),
        (TrafficPolicy::Local, false, FROM_OUTSIDE_ELSEWHERE),
    ];
    let mut flows = 0;
    for (policy, local_endpoint, from_outside) in cases {
        let planned = planned(policy, local_endpoint);
        for Flow(what, at, scope, (theirs, their_source), (ours, our_source)) in
            ALWAYS.iter().chain(&from_outside)
        {
            let case = format!("{what}, external policy {policy:?}, endpoint here: {local_endpoint}");
            assert_eq!(answered(&planned, at, *scope), *ours, "{case}");
            assert_eq!(theirs == ours, *ours != NotOurs, "{case}");
            let pod_or_outside = !what.starts_with("node") && !what.starts_with("localhost");
            assert!(!pod_or_outside || *our_source != Node, "{case}: a source is never lost");
            assert!(their_source == our_source || (*their_source == Node && *ours != Dropped), "{case}");
            flows += 1;
        }
    }
    assert_eq!(flows, 30);
}
