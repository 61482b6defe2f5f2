//! Connections of the flow tables, those that were asked for, with the names of their ends. Called for `flows`.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use quilla_abi::epoch;
use quilla_abi::flow::{Flow, FlowKey, action, dep, flag, state};
use quilla_datapath::Maps;
use quilla_plan::BackendKey;
use quilla_plan::family::AddressFamily;
use serde_json::{Value, json};

use super::filter::{Filter, is_end, is_service};
use super::names::Names;
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

/// Flows, and how many more there are than are listed.
pub(super) fn rows(
    maps: &Maps,
    filter: &Filter,
    names: &Names<'_>,
) -> quilla_datapath::Result<(Vec<Value>, usize)> {
    let mut rows = Vec::new();
    let mut omitted = 0;
    let wanted = filter.service.as_ref().map_or_else(BTreeSet::new, |_| names.wanted(filter));
    let mut take = |found: Found| {
        if !passes(filter, &found, names, &wanted) {
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
    /// It ends with its backend, although nothing here translates it: a Service led it there at the socket.
    led: bool,
    new_source: SocketAddr,
    new_destination: SocketAddr,
    action: u8,
    native: bool,
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
            led: flow.service == 0 && flow.deps[dep::BACKEND].index >= epoch::BACKENDS_V4,
            new_source: end(flow.rewrite.src, flow.rewrite.sport),
            new_destination: end(flow.rewrite.dst, flow.rewrite.dport),
            action: flow.action,
            native: flow.flags & flag::NATIVE != 0,
            state: flow.state,
            packets: flow.packets,
            bytes: flow.bytes,
        }
    }

    fn ends(&self) -> [SocketAddr; 4] {
        [self.source, self.destination, self.new_source, self.new_destination]
    }

    /// The Service that was translated and where it was addressed: of a reply, where its source is put back.
    fn service(&self, names: &Names<'_>) -> Option<(SocketAddr, String)> {
        let ends = if self.reply {
            [self.new_source, self.source]
        } else {
            [self.destination, self.new_destination]
        };
        ends.into_iter().find_map(|end| Some((end, names.service(end, self.protocol)?)))
    }

    /// The Services that may have led the flow: all that have its backend.
    fn leaders(&self, names: &Names<'_>) -> BTreeSet<String> {
        if !self.led {
            return BTreeSet::new();
        }
        let backend = if self.reply { self.source } else { self.destination };
        names.users(&BackendKey { address: backend.ip(), port: backend.port(), protocol: self.protocol })
    }

    /// The Service, or those that it is one of.
    fn service_name(&self, names: &Names<'_>) -> Option<String> {
        if let Some((_, name)) = self.service(names) {
            return Some(name);
        }
        let leaders: Vec<_> = self.leaders(names).into_iter().collect();
        match &leaders[..] {
            [] => None,
            [one] => Some(one.clone()),
            several => Some(format!("one of {}", several.join(", "))),
        }
    }

    pub(super) fn row(&self, names: &Names<'_>) -> Value {
        json!([
            protocol(self.protocol),
            self.source.to_string(),
            self.destination.to_string(),
            if self.reply { "reply" } else { "original" },
            self.new_source.to_string(),
            self.new_destination.to_string(),
            if self.native { "native" } else { action_name(self.action) },
            state_name(self.state),
            self.packets,
            self.bytes,
            names.host(self.source.ip()),
            names.host(self.new_destination.ip()),
            self.service_name(names),
        ])
    }
}

/// Whether a flow meets every condition. `wanted` is what the Services asked for are called.
pub(super) fn passes(filter: &Filter, found: &Found, names: &Names<'_>, wanted: &BTreeSet<String>) -> bool {
    let ends = found.ends();
    let any_of = |wanted: &Option<String>, ends: &[SocketAddr]| {
        wanted.as_deref().is_none_or(|wanted| ends.iter().any(|end| is_end(wanted, end.ip(), names)))
    };
    let service = |asked: &str| match found.service(names) {
        Some((at, name)) => is_service(asked, Some(&name), at),
        None => !found.leaders(names).is_disjoint(wanted),
    };
    any_of(&filter.pod, &ends)
        && any_of(&filter.from, &[found.source, found.new_source])
        && any_of(&filter.to, &[found.destination, found.new_destination])
        && filter.service.as_deref().is_none_or(service)
        && filter.port.is_none_or(|port| ends.iter().any(|end| end.port() == port))
        && filter.takes_protocol(found.protocol)
        && filter.state.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(state_name(found.state)))
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
