//! Endpoints of Services, in the slices the API gives them in.
//!
//! Slices are kept as they are and not merged here: one changed endpoint changes one slice, and ports are stored once.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Family, ObjectName, Protocol};

/// A slice: endpoints of one Service and family that share their ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Its name.
    pub name: ObjectName,
    /// The Service it belongs to, in the same namespace.
    pub service: ObjectName,
    /// The family of all its addresses.
    pub family: Family,
    /// What every endpoint listens on.
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// How many connections each endpoint gets in proportion to those of other slices, up to [`MAX_WEIGHT`];
    /// 0 = no new ones. Annotation `quilla.dev/weight`.
    #[serde(default = "default_weight")]
    pub weight: u8,
}

/// The weight of endpoints that nobody weighed.
pub const DEFAULT_WEIGHT: u8 = 1;
/// The greatest weight.
pub const MAX_WEIGHT: u8 = 100;

fn default_weight() -> u8 {
    DEFAULT_WEIGHT
}

/// A port that the endpoints of a slice listen on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPort {
    /// Name of the Service port it serves; empty if that has none.
    pub name: Arc<str>,
    /// Number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A Pod or host behind a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// May get new connections.
    pub ready: bool,
    /// Can answer, even if it is about to go.
    pub serving: bool,
    /// Is about to go.
    pub terminating: bool,
    /// The node it runs on. Endpoints share the name.
    pub node: Option<Arc<str>>,
    /// The Pod that it is, of the slice's namespace. For people only; snapshots of older agents do not have it.
    #[serde(default)]
    pub pod: Option<Box<str>>,
    /// Which clients it is meant for, if the controller said so. Endpoints share equal ones.
    pub hints: Option<Arc<Hints>>,
}

/// Topology hints (S14).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hints {
    /// For clients on these nodes.
    pub nodes: Vec<Arc<str>>,
    /// For clients in these zones.
    pub zones: Vec<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::Endpoint;

    #[test]
    fn endpoints_of_older_snapshots_are_still_read() {
        let stored = r#"{"address": "10.0.0.1", "ready": true, "serving": true, "terminating": false,
            "node": "a", "hints": null}"#;
        let endpoint: Endpoint = serde_json::from_str(stored).unwrap();
        assert_eq!((endpoint.node.as_deref(), endpoint.pod), (Some("a"), None));
    }
}
