//! Pods of this node and namespaces, trimmed to what the node's data plane needs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ObjectName;

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its name.
    pub name: ObjectName,
    /// Its identity over time, as the kubelet tells it a runtime: a Pod of the same name is another Pod.
    pub uid: String,
    /// Addresses in its status.
    pub addresses: Vec<IpAddr>,
    /// Shares the node's network namespace.
    pub host_network: bool,
    /// Has run to its end; its addresses no longer count.
    pub finished: bool,
    /// The annotation `quilla.dev/addresses` as it is written: which addresses it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wished_addresses: Option<String>,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}
