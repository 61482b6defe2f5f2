//! S25, S26, S30-S36: who answers a client of a Service and what address it sees, flow by flow, beside what kube-proxy
//! does. The planner makes the rows, the programs make the choice and the translation.
//!
//! kube-proxy's column is its own test of which flows are masqueraded, for a proxy that knows which clients are Pods.
//! Invariant: where the columns differ, the row says why, and only there.

mod walk;

use Client::{Localhost, Node, Outside, Pod};
use Front::{Balancer, ClusterIp, NodePort};
use Source::{Gateway, GatewayIfFar, Host, Kept, Masqueraded};
use To::{Any, Dropped, Here, NoService, There};

pub(crate) use walk::{local_pods, packets, sockets};

/// Who asks. A Pod of this node; the node's own process, by an address of the node or by its loopback.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    Pod,
    Outside,
    Node,
    Localhost,
}

/// By which address.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Front {
    ClusterIp,
    NodePort,
    Balancer,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum To {
    /// The Pod of this node and the one of the other, each its share.
    Any,
    Here,
    There,
    /// Nobody, and the client is not told.
    Dropped,
    /// Nobody: the address is no Service's for this client.
    NoService,
}

/// What the backend sees as the client's address.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    /// The client's own.
    Kept,
    /// Some address of the node.
    Masqueraded,
    /// The node's address on the uplink.
    Host,
    /// The node's Pod gateway.
    Gateway,
    /// The client's own on this node, the gateway on the other.
    GatewayIfFar,
}

type Outcome = (To, Source);

/// Who asks by what address; what kube-proxy does; what we do; why, if that is something else.
struct Flow(Client, Front, Outcome, Outcome, &'static str);

/// A Service, and the flows to it.
struct Case {
    what: &'static str,
    external_local: bool,
    internal_local: bool,
    endpoints: Endpoints,
    flows: &'static [Flow],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Endpoints {
    Both,
    Far,
    /// The asking Pod is the only one.
    Itself,
}

const SAME: &str = "";
/// kube-proxy masquerades lest the backend's node answers past this one.
const ANSWERS_PASS_HERE: &str = "a Pod's answers come back to its node, whose flow table translates them";
/// A backend of this node cannot answer past our hooks; one of another needs an address that leads back here.
const NEAR_ANSWERS_PASS_HERE: &str = "the answers of this node's own Pods pass its hooks";
/// S31: whoever is not in the cluster has no business with its addresses.
const INSIDE_ONLY: &str = "a ClusterIP has no frontend for clients outside";

#[rustfmt::skip]
const CASES: [Case; 6] = [
    Case {
        what: "external policy Cluster", external_local: false, internal_local: false, endpoints: Endpoints::Both,
        flows: &[
            Flow(Pod,       ClusterIp, (Any, Kept),        (Any, Kept),         SAME),
            Flow(Pod,       NodePort,  (Any, Masqueraded), (Any, Kept),         ANSWERS_PASS_HERE),
            Flow(Pod,       Balancer,  (Any, Masqueraded), (Any, Kept),         ANSWERS_PASS_HERE),
            Flow(Node,      ClusterIp, (Any, Masqueraded), (Any, Host),         SAME),
            Flow(Node,      NodePort,  (Any, Masqueraded), (Any, Host),         SAME),
            Flow(Localhost, NodePort,  (Any, Masqueraded), (Any, Host),         SAME),
            Flow(Node,      Balancer,  (Any, Masqueraded), (Any, Host),         SAME),
            Flow(Outside,   ClusterIp, (Any, Masqueraded), (NoService, Kept),   INSIDE_ONLY),
            Flow(Outside,   NodePort,  (Any, Masqueraded), (Any, GatewayIfFar), NEAR_ANSWERS_PASS_HERE),
            Flow(Outside,   Balancer,  (Any, Masqueraded), (Any, GatewayIfFar), NEAR_ANSWERS_PASS_HERE),
        ],
    },
    Case {
        what: "external policy Local", external_local: true, internal_local: false, endpoints: Endpoints::Both,
        flows: &[
            Flow(Pod,       ClusterIp, (Any, Kept),        (Any, Kept),     SAME),
            Flow(Pod,       NodePort,  (Any, Kept),        (Any, Kept),     SAME),
            Flow(Pod,       Balancer,  (Any, Kept),        (Any, Kept),     SAME),
            Flow(Node,      ClusterIp, (Any, Masqueraded), (Any, Host),     SAME),
            Flow(Node,      NodePort,  (Any, Masqueraded), (Any, Host),     SAME),
            Flow(Localhost, NodePort,  (Any, Masqueraded), (Any, Host),     SAME),
            Flow(Node,      Balancer,  (Any, Masqueraded), (Any, Host),     SAME),
            Flow(Outside,   ClusterIp, (Any, Masqueraded), (NoService, Kept), INSIDE_ONLY),
            Flow(Outside,   NodePort,  (Here, Kept),       (Here, Kept),    SAME),
            Flow(Outside,   Balancer,  (Here, Kept),       (Here, Kept),    SAME),
        ],
    },
    Case {
        what: "external policy Local, no endpoint here",
        external_local: true, internal_local: false, endpoints: Endpoints::Far,
        flows: &[
            Flow(Pod,       ClusterIp, (There, Kept),        (There, Kept),   SAME),
            Flow(Pod,       NodePort,  (There, Kept),        (There, Kept),   SAME),
            Flow(Pod,       Balancer,  (There, Kept),        (There, Kept),   SAME),
            Flow(Node,      ClusterIp, (There, Masqueraded), (There, Host),   SAME),
            Flow(Node,      NodePort,  (There, Masqueraded), (There, Host),   SAME),
            Flow(Localhost, NodePort,  (There, Masqueraded), (There, Host),   SAME),
            Flow(Node,      Balancer,  (There, Masqueraded), (There, Host),   SAME),
            Flow(Outside,   ClusterIp, (There, Masqueraded), (NoService, Kept), INSIDE_ONLY),
            Flow(Outside,   NodePort,  (Dropped, Kept),      (Dropped, Kept), SAME),
            Flow(Outside,   Balancer,  (Dropped, Kept),      (Dropped, Kept), SAME),
        ],
    },
    Case {
        what: "S35: internal policy Local", external_local: false, internal_local: true, endpoints: Endpoints::Both,
        flows: &[
            Flow(Pod,       ClusterIp, (Here, Kept),        (Here, Kept),        SAME),
            Flow(Node,      ClusterIp, (Here, Masqueraded), (Here, Host),        SAME),
            Flow(Outside,   NodePort,  (Any, Masqueraded),  (Any, GatewayIfFar), NEAR_ANSWERS_PASS_HERE),
        ],
    },
    Case {
        what: "S35: internal policy Local, no endpoint here",
        external_local: false, internal_local: true, endpoints: Endpoints::Far,
        flows: &[
            Flow(Pod,       ClusterIp, (Dropped, Kept),      (Dropped, Kept),  SAME),
            Flow(Outside,   NodePort,  (There, Masqueraded), (There, Gateway), SAME),
        ],
    },
    Case {
        what: "S34: a Pod that reaches itself", external_local: false, internal_local: false,
        endpoints: Endpoints::Itself,
        flows: &[
            Flow(Pod,       ClusterIp, (Here, Masqueraded), (Here, Gateway), SAME),
            Flow(Pod,       NodePort,  (Here, Masqueraded), (Here, Gateway), SAME),
            Flow(Pod,       Balancer,  (Here, Masqueraded), (Here, Gateway), SAME),
        ],
    },
];

impl Flow {
    /// Whether the columns say the same.
    fn agrees(&self) -> bool {
        let Self(_, _, (to, source), (our_to, our_source), _) = self;
        let same = matches!((source, our_source), (Kept, Kept) | (Masqueraded, Host | Gateway));
        to == our_to && same
    }
}
