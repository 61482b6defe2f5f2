//! The ratios to reach: of ours to a peer in the same run.

use super::contender::Group;
use super::metric::Metric;
use super::site::{COLLECT_METADATA, DIRECT, HOST_ROUTING, KERNEL_VXLAN, NODE_TO_NODE, REDIRECT_PEER};

/// What ours should be of the peer at least; nothing if the comparison is only for information.
pub(super) fn of(group: Group, metric: Metric, peer: &str) -> Option<f64> {
    use Metric::{Stream, StreamGsoOff, TcpCrr, TcpCrrFin, TcpRr, UdpRr};
    match (group, metric, peer) {
        (Group::SameNode, _, DIRECT) => Some(0.955),
        (Group::SameNode, _, REDIRECT_PEER) => Some(0.98),
        (Group::SameNode, _, HOST_ROUTING) => Some(1.11),
        (Group::BetweenNodes, TcpRr | TcpCrr | TcpCrrFin, KERNEL_VXLAN) => Some(1.33),
        (Group::BetweenNodes, TcpRr | TcpCrr | TcpCrrFin, COLLECT_METADATA) => Some(1.2),
        (Group::BetweenNodes, TcpRr | TcpCrr | TcpCrrFin, NODE_TO_NODE) => Some(0.82),
        (Group::BetweenNodes, UdpRr, KERNEL_VXLAN) => Some(1.38),
        (Group::BetweenNodes, Stream | StreamGsoOff, KERNEL_VXLAN) => Some(1.15),
        (Group::BetweenNodes, Stream | StreamGsoOff, NODE_TO_NODE) => Some(0.90),
        _ => None,
    }
}

/// The peer whose figures must not move during a run.
pub(super) fn baseline(group: Group) -> &'static str {
    match group {
        Group::SameNode => DIRECT,
        Group::BetweenNodes => NODE_TO_NODE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_of_a_metric_and_a_peer() {
        assert_eq!(of(Group::SameNode, Metric::UdpRr, HOST_ROUTING), Some(1.11));
        assert_eq!(of(Group::BetweenNodes, Metric::UdpRr, KERNEL_VXLAN), Some(1.38));
        assert_eq!(of(Group::BetweenNodes, Metric::UdpRr, NODE_TO_NODE), None);
    }
}
