//! Answers to queries: rows for people, from the reconciler's view and from the maps. Called by the admin socket.

mod endpoints;
mod filter;
mod flows;
mod names;
mod services;

use std::net::SocketAddr;

use quilla_abi::{Be16, DropReason, Mac};
use quilla_plan::family::AddressFamily;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Admin, Request};
use crate::metrics::PATHS;
use crate::reconcile::View;
use crate::selftest::Readiness;
use crate::sockets::Support;
use crate::table;

pub(super) use filter::{Filter, FilterError};
use names::Names;

/// What can be asked.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Query {
    Status,
    Services,
    Backends,
    Flows,
    Drops,
    Endpoints,
    Nodes,
    Problems,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueryError {
    /// A map could not be read.
    #[error(transparent)]
    Map(#[from] quilla_datapath::DatapathError),
    /// The filter names what there is not.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// An answer; every row has a cell for each column.
#[derive(Debug, Default, Serialize)]
pub(super) struct Answer {
    columns: &'static [&'static str],
    rows: Vec<Value>,
    /// Rows beyond those that are listed.
    omitted: usize,
}

impl Answer {
    fn new(columns: &'static [&'static str], rows: Vec<Value>) -> Self {
        Self { columns, rows, omitted: 0 }
    }
}

pub(super) fn answer(request: &Request, admin: &Admin) -> Result<Answer, QueryError> {
    let view = admin.view.borrow().clone();
    let maps = admin.datapath.maps();
    let (filter, names) = (&request.filter, Names::new(&admin.node, &view));
    filter.check(&names)?;
    Ok(match request.query {
        Query::Status => Answer::new(STATUS, vec![status(admin, &view)]),
        Query::Services => {
            let ranges = services::read_ranges(maps)?;
            let tables = table::dump_services(maps)?;
            Answer::new(services::SERVICES, services::services(&tables, &ranges, &names, filter))
        }
        Query::Backends => {
            let connections = services::read_connections(maps)?;
            let tables = table::dump_services(maps)?;
            Answer::new(services::BACKENDS, services::backends(&tables, &connections, &names, filter))
        }
        Query::Flows => {
            let (rows, omitted) = flows::rows(maps, filter, &names)?;
            Answer { columns: flows::COLUMNS, rows, omitted }
        }
        Query::Drops => Answer::new(COUNTERS, counters(admin)?),
        Query::Endpoints => Answer::new(endpoints::COLUMNS, endpoints::rows(admin, &view)?),
        Query::Nodes => Answer::new(NODES, nodes(&view)),
        Query::Problems => Answer::new(PROBLEMS, view.problems.iter().map(problem).collect()),
    })
}

const STATUS: &[&str] = &[
    "node",
    "ready",
    "kernel",
    "pod_programs",
    "uplink_programs",
    "frontends",
    "backends",
    "endpoints",
    "nodes",
    "problems",
    "reason",
    "ends_sockets",
    "bandwidth",
    "encapsulation",
    "encapsulation_reason",
    "routing",
];
const COUNTERS: &[&str] = &["verdict", "reason", "packets", "bytes", "explanation"];
const NODES: &[&str] = &["node", "ipv4", "ipv6", "mac", "pods", "routing", "routing_reason"];
const PROBLEMS: &[&str] = &["object", "reason", "detail"];

fn status(admin: &Admin, view: &View) -> Value {
    let (ready, reason) = match &*admin.readiness.borrow() {
        Readiness::Ready => (true, String::new()),
        Readiness::NotReady { reason } => (false, reason.clone()),
    };
    let ends_sockets = match *admin.sockets.borrow() {
        Support::Unknown => None,
        support => Some(support == Support::Yes),
    };
    let kernel = admin.datapath.status();
    let encapsulation = admin.encapsulation.borrow().clone();
    json!([
        admin.node,
        ready,
        format!("{}.{}", kernel.release.0, kernel.release.1),
        kernel.pods.to_string(),
        kernel.uplinks().to_string(),
        view.desired.frontends.len(),
        view.desired.backends.len(),
        view.endpoints.len(),
        view.desired.tunnels.len(),
        view.problems.len(),
        reason,
        ends_sockets,
        endpoints::limited(&view.endpoints),
        encapsulation.label(),
        encapsulation.reason,
        routing(view),
    ])
}

/// How packets get to the other nodes: one word if it is the same for all, else how many of each.
fn routing(view: &View) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for tunnel in view.desired.tunnels.values() {
        let [routing, _] = paths(tunnel);
        *counts.entry(routing).or_insert(0) += 1;
    }
    match counts.len() {
        0 => "-".to_owned(),
        1 => counts.into_keys().collect(),
        _ => {
            counts.iter().map(|(routing, count)| format!("{count} {routing}")).collect::<Vec<_>>().join(", ")
        }
    }
}

fn nodes(view: &View) -> Vec<Value> {
    let row = |(name, tunnel): (&String, &quilla_plan::Tunnel)| {
        let own = |(net, target): (&ipnet::IpNet, &quilla_plan::Target)| {
            matches!(target, quilla_plan::Target::RemotePods(node) if node == name).then_some(*net)
        };
        let mut cidrs: Vec<_> = view.desired.routes.iter().filter_map(own).collect();
        cidrs.sort_unstable();
        let cidrs = cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let [routing, reason] = paths(tunnel);
        json!([name, tunnel.ipv4, tunnel.ipv6, mac(tunnel.mac), cidrs, routing, reason])
    };
    view.desired.tunnels.iter().map(row).collect()
}

/// How packets get there and why: one word each if both families agree, else IPv4's and IPv6's.
fn paths(tunnel: &quilla_plan::Tunnel) -> [String; 2] {
    let (v4, v6) = (tunnel.path_ipv4, tunnel.path_ipv6);
    [[v4.label(), v6.label()], [v4.reason(), v6.reason()]]
        .map(|[v4, v6]| if v4 == v6 { v4.to_owned() } else { format!("{v4}/{v6}") })
}

fn problem(problem: &quilla_model::Problem) -> Value {
    json!([problem.object.to_string(), problem.reason.label(), problem.detail])
}

/// What was dropped and why, and what was delivered and how; rows that never moved are left out.
fn counters(admin: &Admin) -> quilla_datapath::Result<Vec<Value>> {
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
    SocketAddr::new(address.to_ip(), port.get()).to_string()
}

fn mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests;
