//! Routing rules that end what the host itself sends to ranges where nobody is.
//!
//! A rule and no route, because it can be meant for the host's own packets alone: one that is only forwarded is routed
//! as if it were not there, so that the stack can still say that its time is over. Ours carry the protocol number of
//! our routes; nothing else is touched.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::PROTOCOL;
use super::route::RouteChanges;
use crate::error::Result;
use crate::netlink::{Netlink, is};

/// After the table of the host's own addresses (0), before its routes (32766) and where others put their rules.
const PRIORITY: u32 = 32_000;
/// What the kernel calls the device that its own packets come from.
const OWN: &str = "lo";

impl Netlink {
    /// Makes our rules exactly those that refuse what the host itself sends to the ranges.
    pub fn sync_unreachable(&self, wanted: &BTreeSet<IpNet>) -> Result<RouteChanges> {
        let mut present = BTreeSet::new();
        let mut changes = RouteChanges::default();
        for rule in self.rules()?.into_iter().filter(is_ours) {
            match refused(&rule).filter(|range| wanted.contains(range)) {
                Some(range) if present.insert(range) => {}
                _ => changes.removed += usize::from(self.remove_rule(rule)?),
            }
        }
        for range in wanted.difference(&present) {
            let mut add = self.handle.rule().add();
            *add.message_mut() = message(*range);
            self.request("write rule", &range.to_string(), add.execute())?;
            changes.written += 1;
        }
        Ok(changes)
    }

    /// Of every family that the kernel has.
    fn rules(&self) -> Result<Vec<RuleMessage>> {
        let mut get = self.handle.rule().get(IpVersion::V4);
        get.message_mut().header.family = AddressFamily::Unspec;
        self.list("list", "rules", get.execute())
    }

    fn remove_rule(&self, rule: RuleMessage) -> Result<bool> {
        let name = destination(&rule).map_or_else(String::new, |range| range.to_string());
        match self.request("remove rule", &name, self.handle.rule().del(rule).execute()) {
            Ok(()) => Ok(true),
            Err(error) if is(&error, libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn message(range: IpNet) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = if range.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    rule.header.dst_len = range.prefix_len();
    rule.header.action = RuleAction::Unreachable;
    rule.attributes = vec![
        RuleAttribute::Destination(range.network()),
        RuleAttribute::Iifname(OWN.to_owned()),
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    rule
}

fn is_ours(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)))
}

/// The range that the rule refuses, if it is as we write them.
fn refused(rule: &RuleMessage) -> Option<IpNet> {
    let range = destination(rule)?;
    let as_written = rule.header.action == RuleAction::Unreachable
        && [RuleAttribute::Iifname(OWN.to_owned()), RuleAttribute::Priority(PRIORITY)]
            .iter()
            .all(|attribute| rule.attributes.contains(attribute));
    as_written.then_some(range)
}

fn destination(rule: &RuleMessage) -> Option<IpNet> {
    let address: IpAddr = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Destination(address) => Some(*address),
        _ => None,
    })?;
    IpNet::new(address, rule.header.dst_len).ok()
}
