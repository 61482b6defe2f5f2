//! Frontends and backends as the maps hold them, with the names of what they are. Called for `services` and `backends`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use quilla_abi::backend::Backend;
use quilla_abi::service::{Service, ServiceKey, SourceRangeKey, flag, scope};
use quilla_datapath::{Maps, Result};
use quilla_plan::family::AddressFamily;
use quilla_plan::{BackendKey, Frontend, FrontendKey, FrontendKind, Tables};
use serde_json::{Value, json};

use super::filter::{Filter, is_end};
use super::names::{Names, full_name, owner};
use super::{address, protocol};

pub(super) const SERVICES: &[&str] = &[
    "service",
    "port",
    "address",
    "protocol",
    "type",
    "scope",
    "set",
    "selection",
    "affinity",
    "slow_start",
    "sources",
    "when_empty",
    "slots",
    "backends",
];
pub(super) const BACKENDS: &[&str] =
    &["id", "family", "address", "protocol", "endpoint", "services", "slots", "connections"];

/// Ranges of client addresses, by the id of the set.
pub(super) type Ranges = BTreeMap<u32, Vec<String>>;

/// The ranges of both families.
pub(super) fn read_ranges(maps: &Maps) -> Result<[Ranges; 2]> {
    let mut ranges = [Ranges::new(), Ranges::new()];
    maps.source_ranges_v4.for_each(|key, _| add_range(&mut ranges[0], key))?;
    maps.source_ranges_v6.for_each(|key, _| add_range(&mut ranges[1], key))?;
    Ok(ranges)
}

/// Open connections of both families, by backend id.
pub(super) fn read_connections(maps: &Maps) -> Result<[Vec<u32>; 2]> {
    let connections = |rows: Vec<quilla_abi::load::Load>| rows.iter().map(|row| row.connections).collect();
    Ok([connections(maps.loads_v4.rows()?), connections(maps.loads_v6.rows()?)])
}

fn add_range<A: AddressFamily>(ranges: &mut Ranges, key: &SourceRangeKey<A>) {
    // The id counts as the first 32 bits of the prefix.
    let range = format!("{}/{}", key.addr.to_ip(), key.prefix_len.saturating_sub(32));
    ranges.entry(u32::from_be_bytes(key.id)).or_default().push(range);
}

/// One row per frontend that is wanted; markers of addresses are none.
pub(super) fn services(
    tables: &Tables,
    [v4, v6]: &[Ranges; 2],
    names: &Names<'_>,
    filter: &Filter,
) -> Vec<Value> {
    let v4 = frontends::<[u8; 4]>(tables, v4, names, filter);
    v4.into_iter().chain(frontends::<[u8; 16]>(tables, v6, names, filter)).collect()
}

fn frontends<A: AddressFamily>(
    all: &Tables,
    ranges: &Ranges,
    names: &Names<'_>,
    filter: &Filter,
) -> Vec<Value> {
    let tables = A::tables(all);
    let rows = tables.services.sorted().into_iter().filter(|(key, _)| key.port.get() != 0);
    let wanted = |key: &ServiceKey<A>| {
        filter.takes_port(key.port.get())
            && filter.takes_protocol(key.proto)
            && filter.scope.as_deref().is_none_or(|wanted| wanted == scope_name(key))
            && filter.takes_service(names.frontend(&frontend_key(key)), end(key))
    };
    let rows = rows.filter(|(key, _)| wanted(key));
    let value = |(key, row): (&ServiceKey<A>, &Service)| {
        let found = names.frontend(&frontend_key(key));
        let members: BTreeSet<u32> = all.slots_of(row).unwrap_or_default().iter().copied().collect();
        let member = |id: u32| {
            let row = tables.backends.get(&id);
            row.map_or_else(|| format!("?{id}"), |row| address(row.addr, row.port))
        };
        let restricted = row.flags & flag::SOURCE_RANGES != 0;
        json!([
            found.map(owner).filter(|name| !name.is_empty()),
            found.map(|frontend| &frontend.set.port_name),
            address(key.addr, key.port),
            protocol(key.proto),
            found.and_then(kind),
            scope_name(key),
            row.id,
            selection(row),
            seconds(row.affinity_seconds),
            seconds(row.slow_start_seconds),
            if restricted { sources(ranges.get(&row.id)) } else { Vec::new() },
            when_empty(row),
            row.slot_count,
            members.into_iter().map(member).collect::<Vec<_>>(),
        ])
    };
    rows.map(value).collect()
}

/// Whom a restricted row lets in. An empty list would say that it is not restricted.
fn sources(ranges: Option<&Vec<String>>) -> Vec<String> {
    ranges.cloned().unwrap_or_else(|| vec!["nobody".to_owned()])
}

fn frontend_key<A: AddressFamily>(key: &ServiceKey<A>) -> FrontendKey {
    FrontendKey { address: key.addr.to_ip(), port: key.port.get(), protocol: key.proto, scope: key.scope }
}

fn end<A: AddressFamily>(key: &ServiceKey<A>) -> SocketAddr {
    SocketAddr::new(key.addr.to_ip(), key.port.get())
}

fn scope_name<A>(key: &ServiceKey<A>) -> &'static str {
    if key.scope == scope::EXTERNAL { "external" } else { "internal" }
}

fn kind(frontend: &Frontend) -> Option<&'static str> {
    match frontend.kind {
        FrontendKind::ClusterIp => Some("ClusterIP"),
        FrontendKind::NodePort => Some("NodePort"),
        FrontendKind::LoadBalancer => Some("LoadBalancer"),
        FrontendKind::ExternalIp => Some("ExternalIP"),
        FrontendKind::HostPort => Some("HostPort"),
        FrontendKind::Unknown => None,
    }
}

fn selection(row: &Service) -> &'static str {
    if row.flags & flag::MAGLEV != 0 {
        "maglev"
    } else if row.flags & flag::LEAST_CONNECTIONS != 0 {
        "least-connections"
    } else {
        "random"
    }
}

fn seconds(count: u32) -> Option<String> {
    (count > 0).then(|| format!("{count}s"))
}

fn when_empty(row: &Service) -> Option<&'static str> {
    let drops = row.flags & flag::DROP_WHEN_EMPTY != 0;
    (row.slot_count == 0).then_some(if drops { "drop" } else { "reject" })
}

/// One row per backend that is wanted, selected or draining.
pub(super) fn backends(
    tables: &Tables,
    [v4, v6]: &[Vec<u32>; 2],
    names: &Names<'_>,
    filter: &Filter,
) -> Vec<Value> {
    let v4 = of_family::<[u8; 4]>(tables, v4, names, filter, "IPv4");
    v4.into_iter().chain(of_family::<[u8; 16]>(tables, v6, names, filter, "IPv6")).collect()
}

/// Who uses a backend, and how much.
#[derive(Default)]
struct Use {
    services: BTreeSet<String>,
    slots: usize,
    counted: bool,
    /// One of the Services is asked for.
    wanted: bool,
}

fn of_family<A: AddressFamily>(
    all: &Tables,
    connections: &[u32],
    names: &Names<'_>,
    filter: &Filter,
    family: &'static str,
) -> Vec<Value> {
    let tables = A::tables(all);
    let mut uses: HashMap<u32, Use> = HashMap::new();
    // Frontends with the same set share its slots.
    let mut seen = BTreeSet::new();
    for (key, row) in tables.services.iter() {
        let slots = all.slots_of(row).unwrap_or_default();
        let found = names.frontend(&frontend_key(key));
        let (service, wanted) = (found.map(full_name), filter.takes_service(found, end(key)));
        let first = seen.insert(row.id);
        for id in slots.iter() {
            let of = uses.entry(*id).or_default();
            of.slots += usize::from(first);
            of.counted |= row.flags & flag::LEAST_CONNECTIONS != 0;
        }
        for id in slots.iter().collect::<BTreeSet<_>>() {
            let of = uses.entry(*id).or_default();
            of.services.extend(service.clone());
            of.wanted |= wanted;
        }
    }
    let all = filter.service.is_none() && filter.namespace.is_none();
    let named = if all { BTreeSet::new() } else { names.wanted(filter) };
    let value = |(id, row): (&u32, &Backend<A>)| {
        let mut of = uses.remove(id).unwrap_or_default();
        // One that a Service does not select any more still has its connections.
        let (address, port) = (row.addr.to_ip(), row.port.get());
        let users = names.users(&BackendKey { address, port, protocol: row.proto });
        of.wanted |= !users.is_disjoint(&named);
        of.services.extend(users);
        let wanted = (all || of.wanted)
            && filter.takes_port(row.port.get())
            && filter.takes_protocol(row.proto)
            && filter.pod.as_deref().is_none_or(|pod| is_end(pod, row.addr.to_ip(), names));
        let counted = of.counted.then(|| connections.get(*id as usize).copied().unwrap_or(0));
        wanted.then(|| backend(*id, row, &of, counted, names, family))
    };
    tables.backends.sorted().into_iter().filter_map(value).collect()
}

fn backend<A: AddressFamily>(
    id: u32,
    row: &Backend<A>,
    of: &Use,
    connections: Option<u32>,
    names: &Names<'_>,
    family: &'static str,
) -> Value {
    let ip: IpAddr = row.addr.to_ip();
    json!([
        id,
        family,
        address(row.addr, row.port),
        protocol(row.proto),
        names.host(ip),
        of.services,
        of.slots,
        connections,
    ])
}
