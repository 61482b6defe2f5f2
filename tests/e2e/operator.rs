//! What an operator sees of a node: the same in one form everywhere, and true.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, ask};
use quilla_tests::cluster::Cluster;
use quilla_tests::eventually;
use quilla_tests::node::Node;
use serde_json::{Map, Value};

/// The queries, with the columns of each that are lists, and those that each row has.
const QUERIES: [(&str, &[&str], &[&str]); 8] = [
    (
        "status",
        &["uplinks", "uplink_mtus"],
        &["node", "ready", "routing_mode", "policies_not_enforced", "pod_mtu"],
    ),
    ("services", &["sources", "backends"], &["address", "scope", "service"]),
    ("backends", &["services"], &["address", "id", "slots"]),
    ("flows", &[], &["source", "destination", "action"]),
    ("drops --all", &[], &["verdict", "reason", "packets"]),
    ("endpoints", &["bandwidth"], &["pod", "ipv4", "state"]),
    ("nodes", &["pods"], &["node", "routing"]),
    ("problems", &[], &["object", "reason", "detail"]),
];

/// A Service at the address of a Pod, a policy, a Service with a malformed annotation.
const OBJECTS: &str = "
apiVersion: v1
kind: List
items:
- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: deny}, spec: {podSelector: {}}}
- apiVersion: v1
  kind: Service
  metadata: {name: plain, annotations: {quilla.dev/slow-start: soon}}
  spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
- apiVersion: v1
  kind: Service
  metadata: {name: squatter}
  spec: {selector: {app: web}, ports: [{port: 81, targetPort: 8080}], externalIPs: [ADDRESS]}
";

/// The eight queries answer programs in one form; a Service at a Pod's address is not called skipped, for it is served; policies are
/// counted and told as what they are, without an Event from each node; the mode, what came of it and the MTUs are in the status.
pub(crate) fn what_an_operator_sees_has_one_form_and_is_true() -> Result<()> {
    let cluster = Cluster::builder("operator").nodes(2).agent(&["--routing", "auto"]).start()?;
    let node = cluster.node("node-a");
    let web = cluster.pod("node-a", "web").label("app", "web").start()?;
    cluster.apply(&OBJECTS.replace("ADDRESS", &web.address(false).to_string()))?;
    cluster.wait_service("squatter", 1)?;

    eventually::succeeds("everything is told", || told(node))?;
    eventually::succeeds("the Events say what becomes of it", || {
        let of = |object: &str| cluster.kubectl(&["events", "--for", object]);
        let squatter = of("service/squatter")?;
        ensure!(
            squatter.contains("the Service has its ports there") && !squatter.contains("skipped"),
            "{squatter}"
        );
        let plain = of("service/plain")?;
        ensure!(plain.contains("Malformed") && plain.contains("skipped: quilla.dev/slow-start"), "{plain}");
        let deny = of("networkpolicy/deny")?;
        ensure!(!deny.contains("not enforced"), "{deny}");
        Ok(())
    })?;
    let client = cluster.pod("node-b", "client").start()?;
    ask(|program| client.command(program), SocketAddr::new(web.address(false), 8080), By::Http, 1)?;
    eventually::succeeds("every query has rows to look at", || {
        QUERIES.iter().try_for_each(|(query, lists, keys)| has_the_form(node, query, lists, keys))
    })?;

    cluster.kubectl(&["delete", "networkpolicy", "deny"])?;
    eventually::succeeds("a policy that is gone is not counted", || {
        let status = rows(node, "status")?.pop().context("a row")?;
        ensure!(status["policies_not_enforced"] == 0, "{status:?}");
        Ok(())
    })?;
    cluster.stop()
}

fn told(node: &Node) -> Result<()> {
    let status = rows(node, "status")?.pop().context("a row")?;
    for (key, value) in [
        ("policies_not_enforced", Value::from(1)),
        ("problems", 3.into()),
        ("routing_mode", "auto".into()),
        ("routing", "native".into()),
        ("uplinks", vec!["eth0"].into()),
        ("uplink_mtus", vec![1500].into()),
        ("pod_mtu", 1450.into()),
    ] {
        ensure!(status.get(key) == Some(&value), "{key} is not {value}: {status:?}");
    }
    let why = status.get("encapsulation_reason").and_then(Value::as_str).unwrap_or_default();
    ensure!(why.starts_with("only for what cannot go plainly: "), "{status:?}");
    let problems = node.quilla(&["problems"])?;
    for (object, reason) in [
        ("NetworkPolicy default/deny", "unsupported"),
        ("Service default/plain", "malformed"),
        ("Service default/squatter", "conflict"),
    ] {
        let said = problems.lines().any(|line| line.starts_with(object) && line.contains(reason));
        ensure!(said, "nothing of {object}: {problems}");
    }
    let served = node.quilla(&["services", "squatter"])?;
    ensure!(served.contains(":81"), "{served}");
    Ok(())
}

/// An array of objects: lists are there, also without items; nothing is null or empty text, but left out.
fn has_the_form(node: &Node, query: &str, lists: &[&str], keys: &[&str]) -> Result<()> {
    let rows = rows(node, query)?;
    ensure!(!rows.is_empty(), "{query} has no rows");
    for row in rows {
        for key in lists.iter().chain(keys) {
            ensure!(row.contains_key(*key), "{query}: no {key} in {row:?}");
        }
        for (key, value) in &row {
            let right = match value {
                Value::Null | Value::Object(_) => false,
                Value::String(text) => !text.is_empty(),
                Value::Array(items) => lists.contains(&key.as_str()) && !items.contains(&Value::Null),
                Value::Bool(_) | Value::Number(_) => true,
            };
            ensure!(right && value.is_array() == lists.contains(&key.as_str()), "{query}: {key} is {value}");
        }
    }
    Ok(())
}

fn rows(node: &Node, query: &str) -> Result<Vec<Map<String, Value>>> {
    let arguments: Vec<&str> = query.split(' ').chain(["-o", "json"]).collect();
    serde_json::from_str(&node.quilla(&arguments)?).with_context(|| format!("the form of {query}"))
}
