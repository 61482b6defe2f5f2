//! The files of `deploy/`: what they set is what the agent reads, and the rights are those that it needs.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use clap::CommandFactory;
use quilla_agent::options::Cli;
use quilla_agent::watch::Kind;

const SETTINGS: &str = include_str!("../../deploy/agent.env");
const UNIT: &str = include_str!("../../deploy/quilla-agent.service");
const RIGHTS: &str = include_str!("../../deploy/rbac.yaml");

/// The name before each first `=`, also of settings that are commented out.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| Some(line.trim_start_matches('#').split_once('=')?.0))
}

#[test]
fn every_needed_option_is_set_and_nothing_else() {
    let command = Cli::command();
    let variables: BTreeSet<&str> =
        command.get_arguments().filter_map(|option| option.get_env().and_then(OsStr::to_str)).collect();
    let unit = UNIT.lines().filter_map(|line| line.strip_prefix("Environment="));
    let set: BTreeSet<&str> =
        names(SETTINGS).chain(unit.filter_map(|line| Some(line.split_once('=')?.0))).collect();
    assert!(set.is_subset(&variables), "{set:?} of {variables:?}");
    let needed = ["QUILLA_NODE_NAME", "QUILLA_KUBECONFIG", "QUILLA_UPLINK", "QUILLA_CGROUP"];
    assert_eq!(set, needed.into());
}

#[test]
fn whatever_is_watched_may_be_watched() {
    let role = RIGHTS
        .split("\n---\n")
        .find(|document| document.contains("kind: ClusterRole\nmetadata: {name: quilla-agent}"));
    let role = role.expect("the agent's role");
    for kind in Kind::ALL {
        let resource = format!("{}s", kind.name().to_lowercase()).replace("ys", "ies");
        let rule = role.lines().find(|line| {
            let (_, rest) = line.split_once("resources: [").unwrap_or_default();
            rest.split(']').next().unwrap_or_default().split(", ").any(|name| name == resource)
        });
        assert!(rule.is_some_and(|rule| rule.contains("verbs: [get, list, watch]")), "{resource}: {rule:?}");
    }
    assert!(role.contains("resources: [events], verbs: [create]"));
}
