//! Routing rules that end what the host itself sends to ranges where nobody is.
//!
//! A rule and no route, because it can be meant for the host's own packets alone: one that is only forwarded is routed
//! as if it were not there, so that the stack can still say that its time is over. Ours carry the protocol number of
//! our routes; nothing else is touched.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::PROTOCOL;
use crate::error::{DatapathError, Result};
use crate::netlink::{Netlink, is};
use crate::sysctl::has_ipv6;

/// After the table of the host's own addresses (0), before its routes (32766) and where others put their rules.
const PRIORITY: u32 = 32_000;
/// What the kernel calls the device that its own packets come from.
const OWN: &str = "lo";

/// What a synchronisation did.
#[derive(Debug, Default)]
pub struct RuleChanges {
    /// Rules that were missing.
    pub written: usize,
    /// Rules of ours that nobody wants.
    pub removed: usize,
    /// Ranges whose rule could not be written or removed; the others were.
    pub failed: Vec<(IpNet, DatapathError)>,
}

impl Netlink {
    /// Makes our rules exactly those that refuse what the host itself sends to the ranges. Those of a family that the
    /// kernel does not have need none. An error is that of listing what there is.
    pub fn sync_unreachable(&self, wanted: &BTreeSet<IpNet>) -> Result<RuleChanges> {
        let mut present = BTreeSet::new();
        let mut changes = RuleChanges::default();
        for rule in self.rules()?.into_iter().filter(is_ours) {
            let Some(range) = destination(&rule) else { continue };
            if as_written(&rule) && wanted.contains(&range) && present.insert(range) {
                continue;
            }
            match self.remove_rule(rule, range) {
                Ok(removed) => changes.removed += usize::from(removed),
                Err(error) => changes.failed.push((range, error)),
            }
        }
        let no_ipv6 = !has_ipv6();
        for range in wanted.difference(&present).filter(|range| range.addr().is_ipv4() || !no_ipv6) {
            let mut add = self.handle.rule().add();
            *add.message_mut() = message(*range);
            match self.request("write rule", &range.to_string(), add.execute()) {
                Ok(()) => changes.written += 1,
                Err(error) => changes.failed.push((*range, error)),
            }
        }
        Ok(changes)
    }

    /// Of every family that the kernel has.
    fn rules(&self) -> Result<Vec<RuleMessage>> {
        let mut get = self.handle.rule().get(IpVersion::V4);
        get.message_mut().header.family = AddressFamily::Unspec;
        self.list("list", "rules", get.execute())
    }

    fn remove_rule(&self, rule: RuleMessage, range: IpNet) -> Result<bool> {
        match self.request("remove rule", &range.to_string(), self.handle.rule().del(rule).execute()) {
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

fn as_written(rule: &RuleMessage) -> bool {
    rule.header.action == RuleAction::Unreachable
        && [RuleAttribute::Iifname(OWN.to_owned()), RuleAttribute::Priority(PRIORITY)]
            .iter()
            .all(|attribute| rule.attributes.contains(attribute))
}

fn destination(rule: &RuleMessage) -> Option<IpNet> {
    // The kernel leaves out the address of a range of everything.
    let everything: IpAddr = match rule.header.family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let address = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Destination(address) => Some(*address),
        _ => None,
    });
    let address = address.unwrap_or(everything);
    IpNet::new(address, rule.header.dst_len).ok()
}
