//! Answers to queries: rows for people, from the reconciler's view and from the maps. Called by the admin socket.

mod endpoints;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use quilla_abi::flow::{Flow, FlowKey, action, state};
use quilla_abi::{Address, Be16, DropReason, Mac};
use quilla_datapath::Result;
use quilla_plan::family::AddressFamily;
use quilla_plan::{FamilyTables, FrontendKey};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Admin, Query};
use crate::metrics::PATHS;
use crate::reconcile::View;
use crate::selftest::Readiness;

/// More flows than these are not listed: the socket is for people.
const MAX_FLOWS: usize = 10_000;

/// An answer; every row has a cell for each column.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    columns: &'static [&'static str],
    rows: Vec<Value>,
}

pub(super) fn answer(query: Query, admin: &Admin) -> Result<Answer> {
    let view = admin.view.borrow().clone();
    Ok(match query {
        Query::Status => Answer { columns: STATUS, rows: vec![status(admin, &view)] },
        Query::Services => Answer { columns: SERVICES, rows: services(&view) },
        Query::Backends => {
            let rows = backends(&view.tables.v4).chain(backends(&view.tables.v6)).collect();
            Answer { columns: BACKENDS, rows }
        }
        Query::Flows => Answer { columns: FLOWS, rows: flows(admin)? },
        Query::Drops => Answer { columns: COUNTERS, rows: counters(admin)? },
        Query::Endpoints => Answer { columns: endpoints::COLUMNS, rows: endpoints::rows(admin, &view)? },
        Query::Nodes => Answer { columns: NODES, rows: nodes(&view) },
        Query::Problems => Answer { columns: PROBLEMS, rows: view.problems.iter().map(problem).collect() },
    })
}

const STATUS: &[&str] =
    &["node", "ready", "kernel", "tcx", "frontends", "backends", "endpoints", "nodes", "problems", "reason"];
const SERVICES: &[&str] = &["service", "port", "address", "protocol", "backends"];
const BACKENDS: &[&str] = &["id", "address", "protocol", "slots"];
const FLOWS: &[&str] = &[
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
];
const COUNTERS: &[&str] = &["verdict", "reason", "packets", "bytes", "explanation"];
const NODES: &[&str] = &["node", "ipv4", "ipv6", "mac", "pods"];
const PROBLEMS: &[&str] = &["object", "reason", "detail"];

fn status(admin: &Admin, view: &View) -> Value {
    let (ready, reason) = match &*admin.readiness.borrow() {
        Readiness::Ready => (true, String::new()),
        Readiness::NotReady { reason } => (false, reason.clone()),
    };
    let kernel = admin.datapath.status();
    json!([
        admin.node,
        ready,
        format!("{}.{}", kernel.release.0, kernel.release.1),
        kernel.tcx,
        view.desired.frontends.len(),
        view.desired.backends.len(),
        view.endpoints.len(),
        view.desired.tunnels.len(),
        view.problems.len(),
        reason,
    ])
}

fn services(view: &View) -> Vec<Value> {
    let row = |(key, frontend): (&FrontendKey, &quilla_plan::Frontend)| {
        let set = &frontend.set;
        let members = view.desired.sets.get(set).map_or(&[][..], |set| &set.members);
        let backend = |member: &quilla_plan::Member| {
            SocketAddr::new(member.backend.address, member.backend.port).to_string()
        };
        let backends: Vec<_> = members.iter().map(backend).collect();
        json!([
            format!("{}/{}", set.owner.namespace, set.owner.name),
            set.port_name,
            SocketAddr::new(key.address, key.port).to_string(),
            protocol(key.protocol),
            backends.join(" "),
        ])
    };
    view.desired.frontends.iter().map(row).collect()
}

fn backends<A: AddressFamily>(tables: &FamilyTables<A>) -> impl Iterator<Item = Value> {
    let mut named: HashMap<u32, usize> = HashMap::new();
    for id in tables.services.values().flat_map(|laid| laid.slots.iter()) {
        *named.entry(*id).or_default() += 1;
    }
    tables.backends.iter().map(move |(id, row)| {
        json!([id, address(row.addr, row.port), protocol(row.proto), named.get(id).copied().unwrap_or(0),])
    })
}

fn nodes(view: &View) -> Vec<Value> {
    let row = |(name, tunnel): (&String, &quilla_plan::Tunnel)| {
        let own = |(net, target): (&ipnet::IpNet, &quilla_plan::Target)| {
            matches!(target, quilla_plan::Target::RemotePods(node) if node == name).then(|| net.to_string())
        };
        let cidrs: Vec<_> = view.desired.routes.iter().filter_map(own).collect();
        json!([name, tunnel.ipv4, tunnel.ipv6, mac(tunnel.mac), cidrs.join(" "),])
    };
    view.desired.tunnels.iter().map(row).collect()
}

fn problem(problem: &quilla_model::Problem) -> Value {
    json!([problem.object.to_string(), problem.reason.label(), problem.detail])
}

/// What was dropped and why, and what was delivered and how; rows that never moved are left out.
fn counters(admin: &Admin) -> Result<Vec<Value>> {
    let maps = admin.datapath.maps();
    let drops = maps.drops.totals()?;
    let mut rows = Vec::new();
    for reason in DropReason::ALL {
        let Some(total) = drops.get(*reason as usize).filter(|total| total.packets > 0) else { continue };
        rows.push(json!(["drop", reason.label(), total.packets, total.bytes, reason.explanation().trim(),]));
    }
    for (row, name) in PATHS {
        let total = maps.forwards.total(row)?;
        if total.packets > 0 {
            rows.push(json!(["forward", name, total.packets, total.bytes, "",]));
        }
    }
    Ok(rows)
}

fn flows(admin: &Admin) -> Result<Vec<Value>> {
    let maps = admin.datapath.maps();
    let mut rows = Vec::new();
    maps.flows_v4.for_each(|key, flow| list(&mut rows, key, flow))?;
    maps.flows_v6.for_each(|key, flow| list(&mut rows, key, flow))?;
    Ok(rows)
}

fn list<A: AddressFamily>(rows: &mut Vec<Value>, key: &FlowKey<A>, flow: &Flow<A>) {
    if rows.len() < MAX_FLOWS {
        rows.push(flow_row(key, flow));
    }
}

fn flow_row<A: AddressFamily + Address>(key: &FlowKey<A>, flow: &Flow<A>) -> Value {
    let reply = flow.flags & quilla_abi::flow::flag::REPLY != 0;
    json!([
        protocol(key.proto),
        address(key.src, key.sport),
        address(key.dst, key.dport),
        if reply { "reply" } else { "original" },
        address(flow.rewrite.src, flow.rewrite.sport),
        address(flow.rewrite.dst, flow.rewrite.dport),
        action_name(flow.action),
        state_name(flow.state),
        flow.packets,
        flow.bytes,
    ])
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

fn protocol(number: u8) -> String {
    match number {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMPv6".into(),
        other => other.to_string(),
    }
}

fn address<A: AddressFamily>(address: A, port: Be16) -> String {
    let ip: IpAddr = address.to_ip();
    SocketAddr::new(ip, port.get()).to_string()
}

fn mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
