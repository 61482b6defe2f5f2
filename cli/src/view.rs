//! What is done to an answer before it is printed: flows in order and only those asked for, words for people.
//!
//! Called by `main`. Invariant: an answer without the columns expected here stays as it came.

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use serde_json::{Value, json};

use crate::Query;
use crate::admin::Answer;

/// Name of the Service by which an agent tests itself.
const SELF_TEST: &str = "/self-test";

/// Which flows to list.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct FlowFilter {
    /// Only those with an address of this Service: `web` or `default/web`.
    #[arg(long, value_name = "NAME")]
    pub(crate) service: Option<String>,
    /// Only those from or to this address.
    #[arg(long, value_name = "ADDRESS")]
    pod: Option<IpAddr>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// Sorts flows, so that two listings can be compared, and leaves those that the filter lets pass.
pub(crate) fn flows(answer: &mut Answer, filter: &FlowFilter, services: Option<&Answer>) {
    let ends: Vec<usize> = ["source", "destination", "new_source", "new_destination"]
        .iter()
        .filter_map(|name| column(answer, name))
        .collect();
    if let Some(pod) = filter.pod {
        let is_pod = |cell: &Value| socket_address(cell).is_some_and(|end| end.ip() == pod);
        answer.rows.retain(|row| ends.iter().any(|end| is_pod(&row[*end])));
    }
    if let (Some(name), Some(services)) = (&filter.service, services) {
        let frontends = frontends(services, name);
        answer.rows.retain(|row| ends.iter().any(|end| frontends.contains(&&row[*end])));
    }
    // The columns that name a flow come first, so whole rows compare as flows do.
    answer.rows.sort_by_cached_key(|row| row.iter().map(Value::to_string).collect::<Vec<_>>());
    answer.rows.truncate(filter.limit.unwrap_or(usize::MAX));
}

/// The addresses of a Service.
fn frontends<'a>(services: &'a Answer, name: &str) -> Vec<&'a Value> {
    let (Some(service), Some(address)) = (column(services, "service"), column(services, "address")) else {
        return Vec::new();
    };
    let named = |full: &str| full == name || full.rsplit('/').next() == Some(name);
    let rows = services.rows.iter().filter(|row| row[service].as_str().is_some_and(named));
    rows.map(|row| &row[address]).collect()
}

/// Says what a table alone does not.
pub(crate) fn for_people(query: &Query, answer: &mut Answer) {
    match query {
        Query::Services => own_services(answer),
        Query::Backends => families(answer),
        Query::Problems if answer.rows.is_empty() => {
            let mut none = vec![Value::Null; answer.columns.len()];
            none.iter_mut().take(1).for_each(|cell| *cell = json!("none"));
            answer.rows.push(none);
        }
        _ => {}
    }
}

fn own_services(answer: &mut Answer) {
    let Some(service) = column(answer, "service") else { return };
    for row in answer.rows.iter_mut().filter(|row| row[service] == SELF_TEST) {
        row[service] = json!("(quilla's own)");
    }
}

/// Each family numbers its backends by itself: without the family, ids seem to repeat.
fn families(answer: &mut Answer) {
    let Some(address) = column(answer, "address") else { return };
    answer.columns.insert(address, "family".into());
    for row in &mut answer.rows {
        let family = socket_address(&row[address]).map(|end| if end.is_ipv6() { "IPv6" } else { "IPv4" });
        row.insert(address, json!(family));
    }
}

fn column(answer: &Answer, name: &str) -> Option<usize> {
    answer.columns.iter().position(|column| column == name)
}

fn socket_address(cell: &Value) -> Option<SocketAddr> {
    cell.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{FlowFilter, flows, for_people};
    use crate::Query;
    use crate::admin::Answer;

    fn answer(columns: &[&str], rows: Value) -> Answer {
        let columns = columns.iter().map(|&name| name.to_owned()).collect();
        Answer { columns, rows: serde_json::from_value(rows).unwrap() }
    }

    fn listed(filter: &FlowFilter) -> Vec<Value> {
        let rows = json!([
            ["TCP", "10.0.0.2:9", "10.96.0.1:80"],
            ["TCP", "10.0.0.1:9", "10.0.0.22:80"],
            ["TCP", "[fd00::1]:9", "[fd00::2]:80"]
        ]);
        let mut answer = answer(&["protocol", "source", "destination"], rows);
        let services = self::answer(&["service", "address"], json!([["default/web", "10.96.0.1:80"]]));
        flows(&mut answer, filter, Some(&services));
        answer.rows.into_iter().map(|mut row| row.swap_remove(1)).collect()
    }

    #[test]
    fn flows_are_sorted_and_filtered() {
        assert_eq!(listed(&FlowFilter::default()), ["10.0.0.1:9", "10.0.0.2:9", "[fd00::1]:9"]);
        assert_eq!(listed(&FlowFilter { limit: Some(1), ..Default::default() }), ["10.0.0.1:9"]);
        let pod = |address: &str| listed(&FlowFilter { pod: address.parse().ok(), ..Default::default() });
        assert_eq!(pod("10.0.0.2"), ["10.0.0.2:9"]);
        assert_eq!(pod("fd00::2"), ["[fd00::1]:9"]);
        for (name, expected) in [("web", 1), ("default/web", 1), ("eb", 0), ("other/web", 0)] {
            let filter = FlowFilter { service: Some(name.into()), ..Default::default() };
            assert_eq!(listed(&filter).len(), expected, "{name}");
        }
    }

    #[test]
    fn people_are_told_what_rows_leave_open() {
        let mut own = answer(&["service"], json!([["/self-test"], ["default/web"]]));
        for_people(&Query::Services, &mut own);
        assert_eq!(own, answer(&["service"], json!([["(quilla's own)"], ["default/web"]])));

        let mut backends = answer(&["id", "address"], json!([[1, "10.0.0.1:80"], [1, "[fd00::1]:80"]]));
        for_people(&Query::Backends, &mut backends);
        let rows = json!([[1, "IPv4", "10.0.0.1:80"], [1, "IPv6", "[fd00::1]:80"]]);
        assert_eq!(backends, answer(&["id", "family", "address"], rows));

        let mut problems = answer(&["object", "reason"], json!([]));
        for_people(&Query::Problems, &mut problems);
        assert_eq!(problems, answer(&["object", "reason"], json!([["none", null]])));
    }
}
