//! What is asked about Services, backends and flows, and what is done to an answer before it is printed: order, words for
//! people.
//!
//! Called by `main`. Invariant: an answer without the columns expected here stays as it came.

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use crate::Query;
use crate::admin::Answer;

/// The Service by which an agent tests itself.
const SELF_TEST: &str = "Agent self-test";

/// Which addresses of Services to list: those that meet every condition.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub(crate) struct ServiceFilter {
    /// Only this Service: `NAME`, `NAMESPACE/NAME`, with `:PORT` or without, or one of its addresses.
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// Only those of this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only those with this port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only those of this protocol: `tcp` or `udp`.
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    proto: Option<String>,
    /// Only those for clients of this kind: Pods and processes of this node, or who comes in by an uplink.
    #[arg(long, value_parser = ["internal", "external"])]
    scope: Option<String>,
}

/// Which endpoints to list: those that meet every condition.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub(crate) struct BackendFilter {
    /// Only those behind this Service: `NAME`, `NAMESPACE/NAME`, with `:PORT` or without, or one of its addresses.
    #[arg(value_name = "SERVICE")]
    service: Option<String>,
    /// Only those behind a Service of this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Only those of this Pod: `NAME`, `NAMESPACE/NAME` or its address.
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Only those with this port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only those of this protocol: `tcp` or `udp`.
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    proto: Option<String>,
}

/// Which flows to list: those that meet every condition.
#[derive(Args, Clone, Debug, Default, Serialize)]
pub(crate) struct FlowFilter {
    /// Only those from or to this Pod: `NAME`, `NAMESPACE/NAME` or its address.
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// Only those of this Service: `NAME`, `NAMESPACE/NAME`, with `:PORT` or without, or one of its addresses.
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only those with this source: a Pod, an address or a range.
    #[arg(long, value_name = "SOURCE")]
    from: Option<String>,
    /// Only those with this destination, before or after translation.
    #[arg(long, value_name = "DESTINATION")]
    to: Option<String>,
    /// Only those from or to this port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only those of this protocol: `tcp`, `udp`, `icmp`, `icmpv6` or a number.
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    proto: Option<String>,
    /// Only those in this state.
    #[arg(long, value_parser = ["new", "established", "fin", "closed", "reset"])]
    state: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    #[serde(skip)]
    limit: Option<usize>,
}

/// Which counts to list.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct CountFilter {
    /// Only what is counted under this name: the reason of a drop, or the path of what was delivered.
    #[arg(value_name = "REASON")]
    reason: Option<String>,
    /// Also what was delivered, and by which path.
    #[arg(short = 'A', long)]
    all: bool,
    /// Only what is counted from now on, for so long.
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: Option<u64>,
}

impl CountFilter {
    /// What the agent is asked. Whoever names a path wants to see it.
    pub(crate) fn conditions(&self) -> Value {
        let verdict = (!self.all && self.reason.is_none()).then_some("drop");
        json!({"reason": self.reason, "verdict": verdict})
    }
}

/// A protocol that the agent names, or the number of any.
fn protocol(text: &str) -> Result<String, String> {
    const NAMES: [&str; 4] = ["tcp", "udp", "icmp", "icmpv6"];
    let known = NAMES.iter().any(|name| name.eq_ignore_ascii_case(text));
    match text.parse::<u8>() {
        _ if known => Ok(text.to_owned()),
        Ok(number) => Ok(number.to_string()),
        Err(_) => Err(format!("one of {}, or a number from 0 to 255", NAMES.join(", "))),
    }
}

/// Sorts flows, so that two listings can be compared, and counts those beyond the limit as left out.
pub(crate) fn flows(answer: &mut Answer, filter: &FlowFilter) {
    // The columns that name a flow come first, so whole rows compare as flows do.
    answer.rows.sort_by_cached_key(|row| row.iter().map(Value::to_string).collect::<Vec<_>>());
    let limit = filter.limit.unwrap_or(usize::MAX);
    answer.omitted += answer.rows.len().saturating_sub(limit);
    answer.rows.truncate(limit);
}

/// Leaves what was counted after an earlier answer; rows that did not move go.
pub(crate) fn counted_since(answer: &mut Answer, before: &Answer) {
    let counts = ["packets", "bytes"].map(|name| column(answer, name));
    let names = ["verdict", "reason"].map(|name| column(answer, name));
    for row in &mut answer.rows {
        let same =
            |earlier: &&Vec<Value>| names.iter().flatten().all(|&name| earlier.get(name) == row.get(name));
        let Some(earlier) = before.rows.iter().find(same) else { continue };
        for &count in counts.iter().flatten() {
            let [now, then] = [&*row, earlier].map(|row| row[count].as_u64().unwrap_or(0));
            row[count] = json!(now.saturating_sub(then));
        }
    }
    answer.rows.retain(|row| counts[0].is_none_or(|packets| row[packets] != 0));
}

/// What is said instead of a table without rows.
pub(crate) fn nothing(query: &Query) -> &'static str {
    match query {
        Query::Status => "no status",
        Query::Services(_) => "no Services",
        Query::Backends(_) => "no backends",
        Query::Flows(_) => "no flows",
        Query::Drops(filter) if filter.all || filter.reason.is_some() => "nothing was counted",
        Query::Drops(_) => "nothing was dropped",
        Query::Endpoints => "no Pods are attached to this node",
        Query::Nodes => "no other nodes",
        Query::Problems => "no problems",
    }
}

/// Says what a table alone does not: whose those Services are that nobody made.
pub(crate) fn for_people(answer: &mut Answer) {
    for name in ["service", "services"] {
        let Some(column) = column(answer, name) else { continue };
        answer.rows.iter_mut().for_each(|row| name_self_test(&mut row[column]));
    }
}

fn name_self_test(cell: &mut Value) {
    match cell {
        Value::Array(names) => names.iter_mut().for_each(name_self_test),
        Value::String(name) if name.starts_with(SELF_TEST) => *cell = json!("(self-test of the agent)"),
        _ => {}
    }
}

fn column(answer: &Answer, name: &str) -> Option<usize> {
    answer.columns.iter().position(|column| column == name)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::{FlowFilter, counted_since, flows, for_people};
    use crate::admin::Answer;
    use crate::{Cli, Task};

    fn answer(columns: &[&str], rows: Value) -> Answer {
        let columns = columns.iter().map(|&name| name.to_owned()).collect();
        Answer { columns, rows: serde_json::from_value(rows).unwrap(), omitted: 0 }
    }

    #[test]
    fn flows_are_sorted_and_limited() {
        let listed = |limit| {
            let rows = json!([["TCP", "10.0.0.2:9"], ["TCP", "10.0.0.1:9"], ["TCP", "[fd00::1]:9"]]);
            let mut answer = answer(&["protocol", "source"], rows);
            flows(&mut answer, &FlowFilter { limit, ..FlowFilter::default() });
            let omitted = answer.omitted;
            (answer.rows.into_iter().map(|mut row| row.swap_remove(1)).collect::<Vec<_>>(), omitted)
        };
        let all = vec![json!("10.0.0.1:9"), json!("10.0.0.2:9"), json!("[fd00::1]:9")];
        assert_eq!(listed(Some(1)), (all[..1].to_vec(), 2));
        assert_eq!(listed(Some(3)), (all.clone(), 0));
        assert_eq!(listed(None), (all, 0));
    }

    #[test]
    fn the_agent_is_asked_for_the_flows_that_are_wanted() {
        let asked = |line: &str| {
            Cli::try_parse_from(line.split(' ')).map(|cli| match cli.task {
                Task::Query(query) => query.question(),
                Task::InstallCni(_) => unreachable!("{line} is no question"),
            })
        };
        let question = asked("quilla flows --service shop/web --port 80 --proto tcp --limit 3").unwrap();
        let filter = &question["filter"];
        assert_eq!((&question["query"], &filter["service"]), (&json!("flows"), &json!("shop/web")));
        assert_eq!((&filter["port"], &filter["proto"]), (&json!(80), &json!("tcp")));
        assert_eq!((&filter["pod"], filter.get("limit")), (&Value::Null, None), "the limit is applied here");
        assert!(asked("quilla flows --state open").is_err());
        for (typed, sent) in [("TCP", "TCP"), ("icmpv6", "icmpv6"), ("132", "132"), ("006", "6")] {
            let question = asked(&format!("quilla flows --proto {typed}")).unwrap();
            assert_eq!(question["filter"]["proto"], sent);
        }
        for wrong in ["tpc", "256", "-1", ""] {
            let refused = asked(&format!("quilla flows --proto={wrong}")).unwrap_err().to_string();
            assert!(refused.contains("tcp, udp, icmp, icmpv6, or a number from 0 to 255"), "{refused}");
        }
        let question = asked("quilla services shop/web:http --proto TCP --scope external").unwrap();
        let filter = json!({"service": "shop/web:http", "namespace": null, "port": null, "proto": "TCP", "scope": "external"});
        assert_eq!(question, json!({"query": "services", "filter": filter}));
        let question = asked("quilla backends web -n shop --pod client").unwrap();
        let filter =
            json!({"service": "web", "namespace": "shop", "pod": "client", "port": null, "proto": null});
        assert_eq!(question, json!({"query": "backends", "filter": filter}));
        assert!(asked("quilla services --scope outside").is_err());
        assert!(asked("quilla services web db").is_err(), "one Service, or all");
        for (typed, reason, verdict) in [
            ("drops", json!(null), json!("drop")),
            ("drops --all", json!(null), json!(null)),
            ("drops no_flow --for 5", json!("no_flow"), json!(null)),
        ] {
            let filter = json!({"reason": reason, "verdict": verdict});
            let question = asked(&format!("quilla {typed}")).unwrap();
            assert_eq!(question, json!({"query": "drops", "filter": filter}), "{typed}");
        }
    }

    #[test]
    fn counts_begin_where_an_earlier_answer_ended() {
        let columns = ["verdict", "reason", "packets", "bytes", "explanation"];
        let before =
            answer(&columns, json!([["drop", "no_flow", 3, 300, ""], ["forward", "stack", 7, 700, ""]]));
        let mut now = answer(
            &columns,
            json!([
                ["drop", "no_flow", 3, 300, ""],
                ["drop", "too_big", 1, 1500, ""],
                ["forward", "stack", 9, 850, ""]
            ]),
        );
        counted_since(&mut now, &before);
        let moved = json!([["drop", "too_big", 1, 1500, ""], ["forward", "stack", 2, 150, ""]]);
        assert_eq!(json!(now.rows), moved);
    }

    #[test]
    fn people_are_told_what_is_not_theirs() {
        let mut services = answer(&["service", "port"], json!([["Agent self-test", ""], ["a/b", "http"]]));
        for_people(&mut services);
        assert_eq!(
            (&services.rows[0][0], &services.rows[1][0]),
            (&json!("(self-test of the agent)"), &json!("a/b"))
        );
        let mut backends = answer(&["id", "services"], json!([[1, ["Agent self-test:7", "a/b"]]]));
        for_people(&mut backends);
        assert_eq!(backends.rows[0][1], json!(["(self-test of the agent)", "a/b"]));
    }
}
