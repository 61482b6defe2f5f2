//! What is printed when a test fails: the cluster's objects, each node's links, routes and maps, the logs' ends.

use std::fmt::Write;
use std::process::Command;

use crate::cluster::Cluster;
use crate::command::Run;
use crate::node::Node;

const LOG_LINES: usize = 40;

/// Prints everything that may tell why; what cannot be had is said in its place.
pub fn cluster(cluster: &Cluster) {
    let mut text = String::new();
    let kinds = "nodes,pods,services,endpointslices";
    section(&mut text, "objects", cluster.kubectl(&["get", kinds, "-A", "-o", "wide"]));
    for node in cluster.nodes() {
        describe(&mut text, node);
    }
    for (place, daemon) in cluster.daemons() {
        section(&mut text, &format!("{place}: {daemon}"), Ok(daemon.tail(LOG_LINES)));
    }
    eprintln!("{text}");
}

fn describe(text: &mut String, node: &Node) {
    for arguments in [
        "-brief address",
        "-d -brief link",
        "route show table all",
        "-6 route show table all",
        "rule",
        "neighbour",
        "-s -s link show eth0",
    ] {
        let title = format!("{}: ip {arguments}", node.name());
        section(text, &title, node.command("ip").args(arguments.split(' ')).text());
    }
    section(text, &format!("{}: pins", node.name()), Command::new("find").arg(node.bpffs()).text());
    for view in ["status", "problems", "services", "backends", "endpoints", "nodes", "flows", "drops"] {
        let shown = node.quilla(&[view]).map(|text| head(&text));
        section(text, &format!("{}: quilla {view}", node.name()), shown);
    }
}

/// A test's load fills the flow table; its first rows tell enough.
fn head(text: &str) -> String {
    text.lines().take(LOG_LINES).collect::<Vec<_>>().join("\n")
}

fn section(text: &mut String, title: &str, content: anyhow::Result<String>) {
    let content = content.unwrap_or_else(|error| format!("({error:#})"));
    writeln!(text, "--- {title}\n{}", content.trim_end()).expect("write to a string");
}
