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
        let Some(&has) = present.get(&endpoint.host_ifindex).filter(|has| follows(endpoint, **has, mtu))
        else {
            continue;
        };
        let pair = Pair {
            host_ifindex: endpoint.host_ifindex,
            netns: &endpoint.netns,
            cookie: endpoint.netns_cookie,
            ifname: &endpoint.ifname,
        };
        match netlink.change_mtu(&pair, has, mtu) {
            Ok(changed) => {
                tracing::debug!(pod = endpoint.pod_name, from = has, to = mtu, changed, "mtu of a pod");
            }
            Err(error) => {
                tracing::warn!(pod = endpoint.pod_name, from = has, to = mtu, error = %error, "change mtu of a pod");
            }
        }
    }
    Ok(())
}

/// Whether an interface with one MTU is to get another: not one that another plugin made, or whose MTU the network's
/// configuration says. Limits of bandwidth were made for packets of the size that the Pod began with.
fn follows(endpoint: &AttachedEndpoint, has: u32, mtu: u32) -> bool {
    let ours = endpoint.mtu.is_none() && endpoint.origin != Origin::Chained;
    ours && (mtu < has || (mtu > has && endpoint.bandwidth.is_unlimited()))
}

#[cfg(test)]
mod tests {
    use super::problem;

    #[test]
    fn e5_too_narrow_for_ipv6_is_a_problem() {
        assert_eq!((problem("here", 0), problem("here", 1280)), (None, None));
        assert!(problem("here", 1230).unwrap().detail.contains("1230"));
    }
}
