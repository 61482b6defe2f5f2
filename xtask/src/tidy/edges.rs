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

type Graph = BTreeMap<String, BTreeSet<String>>;

pub(super) fn check(workspace: &Workspace) -> Result<Vec<String>> {
    let metadata = read(&mut workspace.cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("parse cargo metadata")?;
    let mut found = wrong_edges(&graph(&metadata)?);
    for (name, forbidden) in FORBIDDEN {
        found.extend(wrong_reach(name, &reached(workspace, name)?, forbidden));
    }
    Ok(found)
}

/// Who uses whom directly, of the workspace's crates. Development dependencies do not count: they are not in the product.
fn graph(metadata: &Value) -> Result<Graph> {
    let packages = metadata["packages"].as_array().context("packages in cargo metadata")?;
    let mut graph = Graph::new();
    for package in packages {
        let name = package["name"].as_str().context("name of a package")?;
        let used = package["dependencies"].as_array().into_iter().flatten();
        let used = used.filter(|dependency| dependency["kind"] != "dev" && dependency["path"].is_string());
        let used = used.filter_map(|dependency| dependency["name"].as_str().map(str::to_owned));
        graph.entry(name.to_owned()).or_default().extend(used);
    }
    Ok(graph)
}

fn wrong_edges(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    for (member, used) in graph {
        match EDGES.iter().find(|(name, _)| name == member) {
            Some((_, allowed)) => {
                let wrong = used.iter().filter(|used| !allowed.contains(&used.as_str()));
                found.extend(wrong.map(|used| format!("crate {member} must not use {used}")));
            }
            None if FREE.contains(&member.as_str()) => {}
            None => found
                .push(format!("crate {member} has no place in ARCHITECTURE.md and xtask/src/tidy/edges.rs")),
        }
    }
    found
}

/// Every crate in the product that `name` leads to, with the features that it asks for and no others.
fn reached(workspace: &Workspace, name: &str) -> Result<BTreeSet<String>> {
    let mut cargo = workspace.cargo(&["tree", "--package", name, "--edges", "normal", "--prefix", "none"]);
    let tree = read(cargo.args(["--format", "{p}"]))?;
    Ok(tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn wrong_reach(name: &str, reached: &BTreeSet<String>, forbidden: &[&str]) -> Vec<String> {
    let wrong = forbidden.iter().filter(|outside| reached.contains(**outside));
    wrong.map(|outside| format!("crate {name} must not reach {outside}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(name: &str, used: &str, kind: &str) -> Value {
        serde_json::json!({ "packages": [{
            "name": name,
            "dependencies": [{ "name": used, "path": "/q/used", "kind": kind }, { "name": "serde", "path": null }],
        }] })
    }

    fn edges(name: &str, used: &str, kind: &str) -> Vec<String> {
        wrong_edges(&graph(&metadata(name, used, kind)).unwrap())
    }

    #[test]
    fn allowed_edges_pass() {
        assert_eq!(edges("quilla-agent", "quilla-plan", "normal"), Vec::<String>::new());
        assert_eq!(edges("quilla-tests", "quilla-agent", "normal"), Vec::<String>::new());
    }

    #[test]
    fn an_edge_against_the_arrows_is_found() {
        let expected = ["crate quilla-plan must not use quilla-datapath"];
        assert_eq!(edges("quilla-plan", "quilla-datapath", "normal"), expected);
        assert_eq!(edges("quilla-plan", "quilla-datapath", "build"), expected);
        assert_eq!(edges("quilla-plan", "quilla-datapath", "dev"), Vec::<String>::new());
    }

    #[test]
    fn nothing_may_use_tests() {
        assert_eq!(
            edges("quilla-agent", "quilla-tests", "normal"),
            ["crate quilla-agent must not use quilla-tests"]
        );
    }

    #[test]
    fn a_forbidden_memberis_found() {
        let reached = ["rtnetlink", "tokio"].map(str::to_owned).into();
        assert_eq!(
            wrong_reach("quilla-cni", &reached, &["aya", "tokio"]),
            ["crate quilla-cni must not reach tokio"]
        );
    }

    #[test]
    fn a_memberwithout_a_place_is_found() {
        assert!(edges("quilla-extra", "quilla-abi", "normal")[0].contains("quilla-extra has no place"));
    }
}
