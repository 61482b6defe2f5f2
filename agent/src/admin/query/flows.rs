//! Connections of the flow tables, those that were asked for, with the names of their ends. Called for `flows`.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use quilla_abi::flow::{Flow, FlowKey, action, flag, state};
use quilla_datapath::Maps;
use quilla_plan::family::AddressFamily;
use serde::Deserialize;
use serde_json::{Value, json};

use super::names::{Names, is_named};
use super::protocol;

/// More flows than these are not listed: the socket is for people.
const MAX_FLOWS: usize = 10_000;

pub(super) const COLUMNS: &[&str] = &[
    "protocol",
    "source",
    "destination",
    "direction",
    "new_source",
    "new_destination",
    "action",
    "state",
    "packets",
    "bytes",
    "from",
    "to",
    "service",
];

/// Which flows to list: those that meet every condition given.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::admin) struct Filter {
    /// An end is this Pod: its name, with its namespace or without, or its address.
    pod: Option<String>,
    /// An end is this Service: its name, with its namespace or without, with its port or without.
    service: Option<String>,
    /// The source, before or after translation: an address, a range, or a name.
    from: Option<String>,
    /// The destination, likewise.
    to: Option<String>,
    /// An end has this port.
    port: Option<u16>,
    /// The protocol's name or number.
    proto: Option<String>,
    /// The state's name.
    state: Option<String>,
}

/// Flows, and how many more there are than are listed.
pub(super) fn rows(
    maps: &Maps,
    filter: &Filter,
    names: &Names<'_>,
) -> quilla_datapath::Result<(Vec<Value>, usize)> {
    let mut rows = Vec::new();
    let mut omitted = 0;
    let mut take = |found: Found| {
        if !filter.passes(&found, names) {
        } else if rows.len() < MAX_FLOWS {
            rows.push(found.row(names));
        } else {
            omitted += 1;
        }
    };
    maps.flows_v4.for_each(|key, flow| take(Found::new(key, flow)))?;
    maps.flows_v6.for_each(|key, flow| take(Found::new(key, flow)))?;
    Ok((rows, omitted))
}

/// A flow of either family.
#[derive(Debug)]
pub(super) struct Found {
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
    reply: bool,
    new_source: SocketAddr,
    new_destination: SocketAddr,
    action: u8,
    state: u8,
    packets: u64,
    bytes: u64,
}

impl Found {
    pub(super) fn new<A: AddressFamily>(key: &FlowKey<A>, flow: &Flow<A>) -> Self {
        let end = |addr: A, port: quilla_abi::Be16| SocketAddr::new(addr.to_ip(), port.get());
        Self {
            protocol: key.proto,
            source: end(key.src, key.sport),
            destination: end(key.dst, key.dport),
            reply: flow.flags & flag::REPLY != 0,
            new_source: end(flow.rewrite.src, flow.rewrite.sport),
            new_destination: end(flow.rewrite.dst, flow.rewrite.dport),
            action: flow.action,
            state: flow.state,
            packets: flow.packets,
            bytes: flow.bytes,
        }
    }

    fn ends(&self) -> [SocketAddr; 4] {
        [self.source, self.destination, self.new_source, self.new_destination]
    }

    /// The Service that was translated: of a reply, where its source is put back.
    fn service(&self, names: &Names<'_>) -> Option<String> {
        let (first, second) = if self.reply {
            (self.new_source, self.source)
        } else {
            (self.destination, self.new_destination)
        };
        names.service(first, self.protocol).or_else(|| names.service(second, self.protocol))
    }

    pub(super) fn row(&self, names: &Names<'_>) -> Value {
        json!([
            protocol(self.protocol),
            self.source.to_string(),
            self.destination.to_string(),
            if self.reply { "reply" } else { "original" },
            self.new_source.to_string(),
            self.new_destination.to_string(),
            action_name(self.action),
            state_name(self.state),
            self.packets,
            self.bytes,
            names.host(self.source.ip()),
            names.host(self.new_destination.ip()),
            self.service(names),
        ])
    }
}

/// A condition that nothing can meet, most likely a typing error.
#[derive(Debug, thiserror::Error)]
#[error(
    "{condition} {wanted:?}: neither an address, a range such as 10.0.0.0/8, nor a Pod that this node knows by name"
)]
pub(in crate::admin) struct FilterError {
    condition: &'static str,
    wanted: String,
}

impl Filter {
    /// Refuses ends that are no address and nobody's name.
    pub(super) fn check(&self, names: &Names<'_>) -> Result<(), FilterError> {
        for (condition, wanted) in [("pod", &self.pod), ("from", &self.from), ("to", &self.to)] {
            let Some(wanted) = wanted else { continue };
            let address = wanted.parse::<IpAddr>().is_ok() || wanted.parse::<IpNet>().is_ok();
            if !address && !names.knows_pod(wanted) {
                return Err(FilterError { condition, wanted: wanted.clone() });
            }
        }
        Ok(())
    }

    pub(super) fn passes(&self, found: &Found, names: &Names<'_>) -> bool {
        let ends = found.ends();
        let end = |wanted: &str, end: &SocketAddr| is_end(wanted, end.ip(), names);
        let any_of = |wanted: &Option<String>, ends: &[SocketAddr]| {
            wanted.as_deref().is_none_or(|wanted| ends.iter().any(|found| end(wanted, found)))
        };
        let service = |wanted: &str| found.service(names).is_some_and(|full| is_named(&full, wanted));
        let same = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
        };
        any_of(&self.pod, &ends)
            && any_of(&self.from, &[found.source, found.new_source])
            && any_of(&self.to, &[found.destination, found.new_destination])
            && self.service.as_deref().is_none_or(service)
            && self.port.is_none_or(|port| ends.iter().any(|end| end.port() == port))
            && (same(&self.proto, &protocol(found.protocol))
                || same(&self.proto, &found.protocol.to_string()))
            && same(&self.state, state_name(found.state))
    }
}

/// Whether an address is what was asked for: itself, in a range, or a Pod's of that name.
fn is_end(wanted: &str, address: IpAddr, names: &Names<'_>) -> bool {
    if let Ok(wanted) = wanted.parse::<IpAddr>() {
        return wanted == address;
    }
    match wanted.parse::<IpNet>() {
        Ok(range) => range.contains(&address),
        Err(_) => names.is_pod(address, wanted),
    }
}

fn action_name(number: u8) -> &'static str {
    match number {
        action::LOCAL_POD => "local_pod",
        action::OVERLAY => "overlay",
        action::STACK => "stack",
        action::UPLINK => "uplink",
        _ => "unknown",
    }
}

fn state_name(number: u8) -> &'static str {
    match number {
        state::NEW => "new",
        state::ESTABLISHED => "established",
        state::FIN => "fin",
        state::CLOSED => "closed",
        state::RESET => "reset",
        _ => "unknown",
    }
}
