//! Answers to queries: rows for people, from the reconciler's view and from the maps. Called by the admin socket.

mod endpoints;
mod filter;
mod flows;
mod names;
mod node;
mod services;

use std::net::SocketAddr;

use quilla_abi::{Be16, DropReason, Mac};
use quilla_plan::family::AddressFamily;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Admin, Request};
use crate::metrics::PATHS;
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
    /// What is absent is null, whatever it would be: a text is never empty. Lists are lists, also without items.
    fn new(columns: &'static [&'static str], mut rows: Vec<Value>) -> Self {
        let cells = rows.iter_mut().filter_map(Value::as_array_mut).flatten();
        cells.filter(|cell| cell.as_str() == Some("")).for_each(|cell| *cell = Value::Null);
        Self { columns, rows, omitted: 0 }
    }
}

pub(super) fn answer(request: &Request, admin: &Admin) -> Result<Answer, QueryError> {
    let view = admin.view.borrow().clone();
    let maps = admin.datapath.maps();
    let (filter, names) = (&request.filter, Names::new(&admin.node, &view));
    filter.check(&names)?;
    Ok(match request.query {
        Query::Status => Answer::new(node::STATUS, vec![node::status(admin, &view)?]),
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
            Answer { omitted, ..Answer::new(flows::COLUMNS, rows) }
        }
        Query::Drops => Answer::new(COUNTERS, counters(admin, filter)?),
        Query::Endpoints => Answer::new(endpoints::COLUMNS, endpoints::rows(admin, &view)?),
        Query::Nodes => Answer::new(node::NODES, node::nodes(&view)),
        Query::Problems => Answer::new(PROBLEMS, view.all_problems().map(problem).collect()),
    })
}

const COUNTERS: &[&str] = &["verdict", "reason", "packets", "bytes", "explanation"];
/// Verdicts.
const DROP: &str = "drop";
const FORWARD: &str = "forward";
const PROBLEMS: &[&str] = &["object", "reason", "detail"];

fn problem(problem: &quilla_model::Problem) -> Value {
    json!([problem.object.to_string(), problem.reason.label(), problem.detail])
}

/// What was dropped and why, and what was delivered and how; rows that never moved are left out.
fn counters(admin: &Admin, filter: &Filter) -> quilla_datapath::Result<Vec<Value>> {
    let maps = admin.datapath.maps();
    let drops = maps.drops.totals()?;
    let mut rows = Vec::new();
    for reason in DropReason::ALL.iter().filter(|reason| filter.takes_count(DROP, reason.label())) {
        let Some(total) = drops.get(*reason as usize).filter(|total| total.packets > 0) else { continue };
        rows.push(json!([DROP, reason.label(), total.packets, total.bytes, reason.explanation().trim()]));
    }
    for (row, name) in PATHS.into_iter().filter(|(_, name)| filter.takes_count(FORWARD, name)) {
        let total = maps.forwards.total(row)?;
        if total.packets > 0 {
            rows.push(json!([FORWARD, name, total.packets, total.bytes, null]));
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
