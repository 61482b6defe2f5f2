//! Peers of the path within a node.

use anyhow::Result;

use super::program::{attach, to_peer_of};
use super::{CLIENT, MTU, NEAR, Site, forward, host, pod, wired};
use crate::paths::contender::Group;

/// Two Pods with nothing between them: what no node can be faster than.
pub(super) fn direct() -> Result<Site> {
    let pods = wired(["direct-client", "direct-near"], [CLIENT, NEAR], MTU)?;
    Ok(Site::from(Vec::from(pods)).between(Group::SameNode, [0, 1], NEAR))
}

/// A program on each host side that knows one Pod, the other.
pub(super) fn redirect_peer() -> Result<Site> {
    let mut site = node("peer")?;
    site.programs.push(attach(&site.namespaces[0], "h11", &to_peer_of(12))?);
    site.programs.push(attach(&site.namespaces[0], "h12", &to_peer_of(11))?);
    Ok(site)
}

/// The kernel's routing, without any rules.
pub(super) fn host_routing() -> Result<Site> {
    let site = node("routing")?;
    forward(&site.namespaces[0])?;
    Ok(site)
}

/// A node with two Pods that do not reach each other yet.
fn node(name: &str) -> Result<Site> {
    let node = host(&format!("{name}-node"))?;
    let client = pod(&node, &format!("{name}-client"), CLIENT, 11)?;
    let near = pod(&node, &format!("{name}-near"), NEAR, 12)?;
    Ok(Site::from(vec![node, client, near]).between(Group::SameNode, [1, 2], NEAR))
}
