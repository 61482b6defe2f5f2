//! Ranges of Service addresses that the host itself reaches at its sockets or not at all (E6, E8), and those that it must
//! go on reaching by its routes, whatever somebody wrote into a `ServiceCIDR`. Used by [`super::Node`].
//!
//! Invariant: a range in which anything is that the node needs to be told better has no rule.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use quilla_datapath::netlink::{RuleChanges, Surroundings};
use quilla_datapath::{DatapathError, Netlink};
use quilla_model::{ObjectRef, Problem, Reason, Snapshot};
use quilla_plan::{Desired, Target};

/// What becomes of each range of Services.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    /// Those that the host is refused.
    pub(super) refused: BTreeSet<IpNet>,
    /// The others, with what is in them.
    pub(super) spared: BTreeMap<IpNet, String>,
}

impl Ranges {
    /// `servers` are the addresses of the apiserver that this agent asks: while they are not known, nothing is refused.
    pub(super) fn new(
        snapshot: &Snapshot,
        desired: &Desired,
        servers: Option<&BTreeSet<IpAddr>>,
        surroundings: &Surroundings,
    ) -> Self {
        let mut ranges = Self::default();
        let services = desired.routes.iter().filter(|(_, target)| **target == Target::Services);
        // Single addresses are those of load balancers, which may be somebody's all the same.
        for (range, _) in services.filter(|(range, _)| range.prefix_len() < range.max_prefix_len()) {
            let needed = servers
                .map_or(Some("maybe the apiserver, whose name has no address yet".into()), |servers| {
                    needed(*range, snapshot, desired, servers, surroundings)
                });
            match needed {
                Some(needed) => drop(ranges.spared.insert(*range, needed)),
                None => drop(ranges.refused.insert(*range)),
            }
        }
        ranges
    }
}

/// What the node needs of a range, in words; nothing of most.
fn needed(
    range: IpNet,
    snapshot: &Snapshot,
    desired: &Desired,
    servers: &BTreeSet<IpAddr>,
    surroundings: &Surroundings,
) -> Option<String> {
    let has = |address: &&IpAddr| range.contains(*address);
    let overlaps = |net: &&IpNet| range.contains(*net) || net.contains(&range);
    let nodes = || snapshot.nodes.values();
    if let Some(address) = servers.iter().find(has) {
        return Some(format!("the apiserver {address}"));
    }
    if let Some(address) = surroundings.gateways.iter().find(has) {
        return Some(format!("the gateway {address}"));
    }
    if let Some(cidr) = nodes().flat_map(|node| &node.pod_cidrs).find(overlaps) {
        return Some(format!("the Pod CIDR {cidr}"));
    }
    if let Some(network) = surroundings.networks.iter().find(overlaps) {
        return Some(format!("the node's network {network}"));
    }
    let mut own = desired.routes.iter().filter(|(_, target)| **target == Target::Host);
    if let Some((own, _)) = own.find(|(own, _)| range.contains(*own)) {
        return Some(format!("the node's {}", own.addr()));
    }
    let mut others = nodes().filter_map(|node| Some((node.addresses.iter().find(has)?, &node.name)));
    others.next().map(|(address, name)| format!("{address} of node {name}"))
}

/// What the kernel was told, and what it refused to do.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The last answer to what is to be refused.
    ranges: Ranges,
    /// Whether the kernel's rules were those, as far as possible, when they were looked at last.
    written: bool,
    /// Rules that the kernel did not take: it is not asked for them again until other ranges are wanted.
    failed: BTreeMap<IpNet, String>,
    /// Why there are no rules at all.
    unable: Option<String>,
}

impl Refusals {
    /// Makes the kernel refuse exactly what is to be refused.
    pub(super) fn set(&mut self, netlink: &Netlink, ranges: Ranges) {
        self.set_by(ranges, |wanted| netlink.sync_unreachable(wanted));
    }

    fn set_by(
        &mut self,
        ranges: Ranges,
        write: impl FnOnce(&BTreeSet<IpNet>) -> Result<RuleChanges, DatapathError>,
    ) {
        if self.ranges.refused != ranges.refused {
            (self.written, self.unable) = (false, None);
            self.failed.clear();
        }
        for (range, needed) in
            ranges.spared.iter().filter(|spared| !self.ranges.spared.contains_key(spared.0))
        {
            tracing::warn!(%range, has = needed, "range of services is not refused to the node");
        }
        self.ranges = ranges;
        if self.written || self.unable.is_some() {
            return;
        }
        let wanted = self.ranges.refused.iter().filter(|range| !self.failed.contains_key(range));
        match write(&wanted.copied().collect()) {
            Ok(RuleChanges { written, removed, failed }) => {
                tracing::debug!(written, removed, "rules written");
                for (range, error) in failed {
                    tracing::warn!(%range, error = %error, "rule for a range of services");
                    self.failed.insert(range, error.to_string());
                }
            }
            Err(error) => {
                tracing::warn!(error = %error, "rules for ranges of services");
                self.unable = Some(error.to_string());
            }
        }
        self.written = true;
    }

    /// Looks again, in case somebody else changed the rules.
    pub(super) fn forget(&mut self) {
        self.written = false;
    }

    /// Faults of the node, or of what it was told.
    pub(super) fn problems(&self, node: &str) -> Vec<Problem> {
        let node = || ObjectRef::cluster("Node", node);
        let spared = self.ranges.spared.iter().map(|(range, needed)| {
            let detail = format!("rule against {range}, a range of Services with {needed} in it");
            Problem::new(node(), Reason::Conflict, detail)
        });
        let failed = self.failed.iter().map(|(range, error)| {
            Problem::new(node(), Reason::Unsupported, format!("rule against {range}: {error}"))
        });
        let unable = self.unable.iter().map(|error| {
            Problem::new(node(), Reason::Unsupported, format!("rules against ranges of Services: {error}"))
        });
        spared.chain(failed).chain(unable).collect()
    }
}

#[cfg(test)]
#[path = "refusal_tests.rs"]
mod tests;
