//! Which ports of the node's own addresses lead to Services. Called by [`crate::plan()`].

use quilla_abi::service::scope;
use quilla_model::SharedMap;

use crate::desired::{Frontend, FrontendKey};
use crate::service_facts::ServiceFacts;

/// The first and the last port that clients outside find a frontend at on an address of the node. Without any, the
/// first is greater than the last.
pub(crate) fn range(frontends: &SharedMap<FrontendKey, Frontend>, facts: &ServiceFacts) -> (u16, u16) {
    let own = |key: &&FrontendKey| key.scope == scope::EXTERNAL && facts.addresses.contains(&key.address);
    let ports = || frontends.keys().filter(own).map(|key| key.port);
    ports().min().zip(ports().max()).unwrap_or((1, 0))
}
