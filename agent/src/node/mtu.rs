//! How running Pods come to know what gets to the other nodes. Called by [`super::Node`].

use quilla_datapath::netlink::Pair;
use quilla_datapath::{DatapathError, Netlink};
use quilla_model::{ObjectRef, Problem, Reason};

use crate::cni::{AttachedEndpoint, Origin};

/// What every link with IPv6 has: a device with less loses its IPv6 addresses.
pub(super) const LEAST: u32 = 1280;
/// What an operator should know of the overlay's MTU.
pub(super) fn problem(node: &str, mtu: u32) -> Option<Problem> {
    (1..LEAST).contains(&mtu).then(|| {
        let detail = format!(
            "the uplinks leave packets of {mtu} bytes for Pods, and IPv6 needs {LEAST}: larger ones go in pieces"
        );
        Problem::new(ObjectRef::cluster("Node", node), Reason::Unsupported, detail)
    })
}

/// Changes the interfaces of Pods that have another MTU, as far as that is ours to say. What cannot be changed is tried
/// again in the next audit.
pub(super) fn fit<'a>(
    netlink: &Netlink,
    mtu: u32,
    endpoints: impl Iterator<Item = &'a AttachedEndpoint>,
) -> Result<(), DatapathError> {
    let present = netlink.mtus()?;
    for endpoint in endpoints {
        let Some(&has) = present.get(&endpoint.host_ifindex) else { continue };
        let Some(to) = wanted(endpoint, has, mtu) else { continue };
        let pair = Pair {
            host_ifindex: endpoint.host_ifindex,
            netns: &endpoint.netns,
            cookie: endpoint.netns_cookie,
            ifname: &endpoint.ifname,
        };
        match netlink.change_mtu(&pair, has, to) {
            Ok(changed) => {
                tracing::debug!(pod = endpoint.pod_name, from = has, to, changed, "mtu of a pod");
            }
            Err(error) => {
                tracing::warn!(pod = endpoint.pod_name, from = has, to, error = %error, "change mtu of a pod");
            }
        }
    }
    Ok(())
}

/// Which other MTU an interface is to get: none, if another plugin made it or the network's configuration says its MTU.
/// Limits of bandwidth were made for packets of the size that the Pod began with, and it never gets larger ones.
fn wanted(endpoint: &AttachedEndpoint, has: u32, mtu: u32) -> Option<u32> {
    let ours = endpoint.mtu.is_none() && endpoint.origin != Origin::Chained;
    let limited = !endpoint.bandwidth.is_unlimited();
    let to = if limited { mtu.min(endpoint.limited_at.unwrap_or(has)) } else { mtu };
    (ours && to != has).then_some(to)
}

#[cfg(test)]
mod tests {
    use quilla_cni_protocol::Bandwidth;

    use super::{problem, wanted};
    use crate::cni::{AttachedEndpoint, Origin};

    #[test]
    fn e5_interfaces_that_are_ours_follow() {
        let ours = AttachedEndpoint::numbered(1);
        let to = |endpoint: &AttachedEndpoint| [1430, 1500, 8950].map(|mtu| wanted(endpoint, 1500, mtu));
        assert_eq!(to(&ours), [Some(1430), None, Some(8950)]);
        let configured = AttachedEndpoint { mtu: Some(1500), ..ours.clone() };
        assert_eq!(to(&configured), [None; 3]);
        let chained = AttachedEndpoint { origin: Origin::Chained, ..ours };
        assert_eq!(to(&chained), [None; 3]);
    }

    /// An uplink or an address that is away for a moment does not lower it for good.
    #[test]
    fn e5_a_pod_with_limits_of_bandwidth_has_at_most_what_it_began_with() {
        let bandwidth = Bandwidth { egress_rate: 1_000_000, ..Bandwidth::default() };
        let limited = AttachedEndpoint { bandwidth, limited_at: Some(1450), ..AttachedEndpoint::numbered(1) };
        assert_eq!((wanted(&limited, 1450, 1430), wanted(&limited, 1430, 1450)), (Some(1430), Some(1450)));
        assert_eq!((wanted(&limited, 1430, 8950), wanted(&limited, 1450, 8950)), (Some(1450), None));
        assert_eq!(wanted(&limited, 1430, 1440), Some(1440));
        let older = AttachedEndpoint { limited_at: None, ..limited };
        assert_eq!((wanted(&older, 1450, 1430), wanted(&older, 1430, 1450)), (Some(1430), None));
    }

    #[test]
    fn e5_too_narrow_for_ipv6_is_a_problem() {
        assert_eq!((problem("here", 0), problem("here", 1280)), (None, None));
        assert!(problem("here", 1230).unwrap().detail.contains("1230"));
    }
}
