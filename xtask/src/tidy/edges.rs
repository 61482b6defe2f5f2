//! Which crate may use which: the arrows of ARCHITECTURE.md, and the outside crates that must stay impossible.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::read;
use crate::workspace::Workspace;

/// Crates of ours that each may use. Those not listed (tests, bench, xtask) may use everything; nothing may use them.
const EDGES: [(&str, &[&str]); 12] = [
    ("quilla-abi", &[]),
    ("quilla-ebpf-core", &["quilla-abi"]),
    ("quilla-ebpf", &["quilla-abi", "quilla-ebpf-core"]),
    ("quilla-model", &[]),
    ("quilla-plan", &["quilla-abi", "quilla-model"]),
    ("quilla-datapath", &["quilla-abi"]),
    ("quilla-cni-protocol", &[]),
    ("quilla-cni", &["quilla-cni-protocol"]),
    (
        "quilla-agent",
        &["quilla-abi", "quilla-cni-protocol", "quilla-datapath", "quilla-model", "quilla-plan"],
    ),
    ("quilla-apiserver", &[]),
    ("quilla-controller", &["quilla-apiserver", "quilla-model"]),
    ("quilla", &["quilla-cni-protocol", "quilla-model"]),
];

const FREE: [&str; 3] = ["quilla-bench", "quilla-tests", "xtask"];

/// Outside crates that a crate must not reach, not even through others: what keeps it pure, small or portable.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    ("quilla-ebpf-core", &["aya", "aya-ebpf", "tokio"]),
    ("quilla-model", &["aya", "k8s-openapi", "kube", "tokio"]),
    ("quilla-plan", &["aya", "kube", "tokio"]),
    ("quilla-cni", &["aya", "kube", "tokio"]),
    ("quilla-apiserver", &["aya", "rtnetlink"]),
    ("quilla-controller", &["aya", "rtnetlink"]),
];

/// What the product is built for; crates for others are not even downloaded.
const PLATFORMS: [&str; 2] = ["x86_64-unknown-linux-gnu", "bpfel-unknown-none"];

type Graph = BTreeMap<String, BTreeSet<String>>;

pub(super) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let mut cargo = workspace.cargo(&["metadata", "--format-version", "1"]);
    for platform in PLATFORMS {
        cargo.args(["--filter-platform", platform]);
    }
    let metadata = read(&mut cargo)?;
    let metadata: Value = serde_json::from_str(&metadata).context("parse cargo metadata")?;
    Ok(findings(&graph(&metadata)?, &members(&metadata)?))
}

fn findings(graph: &Graph, members: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for member in members {
        let allowed = EDGES.iter().find(|(name, _)| name == member).map(|(_, allowed)| *allowed);
        if allowed.is_none() && !FREE.contains(&member.as_str()) {
            found.push(format!("crate {member} has no place in ARCHITECTURE.md and xtask/src/tidy/edges.rs"));
        }
        for used in graph.get(member).into_iter().flatten().filter(|used| members.contains(*used)) {
            if allowed.is_some_and(|allowed| !allowed.contains(&used.as_str())) {
                found.push(format!("crate {member} must not use {used}"));
            }
        }
    }
    for (name, forbidden) in FORBIDDEN {
        let reached = closure(graph, name);
        let bad = forbidden.iter().filter(|outside| reached.contains(**outside));
        found.extend(bad.map(|outside| format!("crate {name} must not reach {outside}")));
    }
    found
}

fn closure(graph: &Graph, root: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(name) = open.pop() {
        let fresh = graph.get(&name).into_iter().flatten().filter(|used| reached.insert((*used).clone()));
        open.extend(fresh.cloned().collect::<Vec<_>>());
    }
    reached
}

fn members(metadata: &Value) -> Result<BTreeSet<String>> {
    let ids = metadata["workspace_members"].as_array().context("workspace members")?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let ours = packages.iter().filter(|package| ids.contains(&package["id"]));
    Ok(ours.filter_map(|package| package["name"].as_str().map(str::to_owned)).collect())
}

/// Who uses whom, by name. Development dependencies do not count: they are not in the product.
fn graph(metadata: &Value) -> Result<Graph> {
    let packages = metadata["packages"].as_array().context("packages")?;
    let names: BTreeMap<&str, &str> = packages
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package["name"].as_str()?)))
        .collect();
    let nodes = metadata["resolve"]["nodes"].as_array().context("resolved dependencies")?;
    let mut graph = Graph::new();
    for node in nodes {
        let Some(name) = node["id"].as_str().and_then(|id| names.get(id)) else { continue };
        let used = node["deps"].as_array().into_iter().flatten().filter(|dependency| in_product(dependency));
        let used = used.filter_map(|dependency| names.get(dependency["pkg"].as_str()?));
        graph.entry((*name).to_owned()).or_default().extend(used.map(|name| (*name).to_owned()));
    }
    Ok(graph)
}

fn in_product(dependency: &Value) -> bool {
    dependency["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"] != "dev")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &str)]) -> (Graph, BTreeSet<String>) {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        let members = EDGES.iter().map(|(name, _)| (*name).to_owned()).collect();
        (graph, members)
    }

    #[test]
    fn allowed_edges_pass() {
        let (graph, members) = graph(&[("quilla-agent", "quilla-plan"), ("quilla-plan", "quilla-abi")]);
        assert_eq!(findings(&graph, &members), Vec::<String>::new());
    }

    #[test]
    fn an_edge_against_the_arrows_is_found() {
        let (graph, members) = graph(&[("quilla-plan", "quilla-datapath")]);
        assert_eq!(findings(&graph, &members), ["crate quilla-plan must not use quilla-datapath"]);
    }

    #[test]
    fn a_forbidden_crate_is_found_behind_another() {
        let (graph, members) = graph(&[("quilla-cni", "rtnetlink"), ("rtnetlink", "tokio")]);
        assert_eq!(findings(&graph, &members), ["crate quilla-cni must not reach tokio"]);
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        let (graph, mut members) = graph(&[]);
        members.insert("quilla-extra".to_owned());
        assert!(findings(&graph, &members)[0].contains("quilla-extra has no place"));
    }
}
