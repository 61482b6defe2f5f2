//! From a row of `routes_*` to what is to be done.

use quilla_abi::DropReason;
use quilla_abi::route::{Route, kind};

/// Whether a packet with such a source may come in by the uplink: what the cluster's own addresses send does not (E19).
#[inline(always)]
pub fn is_outside(route: Option<Route>) -> bool {
    route.is_none_or(|route| route.kind == kind::NATIVE)
}

/// Where an address without a local endpoint leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Through the overlay to the node in this slot.
    Node(u16),
    /// This node itself: to the host's stack.
    Stack,
    /// Outside, but Pods reach it under their own addresses: the host's stack routes.
    Native,
    /// Out of the cluster: the host's routes decide.
    World,
}

/// Judges the route of an address that is no local endpoint's.
#[inline(always)]
pub fn target(route: Option<Route>) -> Result<Target, DropReason> {
    let Some(route) = route else { return Ok(Target::World) };
    match route.kind {
        kind::LOCAL_PODS => Err(DropReason::NoEndpoint),
        kind::REMOTE_PODS => Ok(Target::Node(route.node_slot)),
        kind::HOST => Ok(Target::Stack),
        kind::NATIVE => Ok(Target::Native),
        kind::SERVICES => Err(DropReason::NotAService),
        _ => Err(DropReason::Unroutable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_target() {
        let of = |kind| target(Some(Route { kind, pad: 0, node_slot: 7 }));
        assert_eq!(target(None), Ok(Target::World));
        assert_eq!(of(kind::REMOTE_PODS), Ok(Target::Node(7)));
        assert_eq!(of(kind::HOST), Ok(Target::Stack));
        assert_eq!(of(kind::NATIVE), Ok(Target::Native));
        assert_eq!(of(kind::LOCAL_PODS), Err(DropReason::NoEndpoint));
        assert_eq!(of(kind::SERVICES), Err(DropReason::NotAService), "E6, E8: dies at once");
        assert_eq!(of(kind::UNROUTABLE), Err(DropReason::Unroutable));
        let outside = |kind| is_outside(Some(Route { kind, pad: 0, node_slot: 7 }));
        assert!(is_outside(None) && outside(kind::NATIVE));
        for inside in [kind::LOCAL_PODS, kind::REMOTE_PODS, kind::HOST, kind::SERVICES, kind::UNROUTABLE, 99]
        {
            assert!(!outside(inside), "{inside}");
        }
        assert_eq!(of(99), Err(DropReason::Unroutable), "a kind of the future fails closed");
    }
}
