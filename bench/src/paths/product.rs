//! Quilla itself: the real control plane, agents and plugin, with its nodes on the same kind of underlay as the peers'.

use std::collections::BTreeSet;
use std::str::FromStr;

use anyhow::{Context, Result};
use quilla_tests::cluster::Cluster;
use quilla_tests::pod::Pod;
use quilla_tests::topology::FABRIC;

use super::contender::{Contender, Ends, Group};
use super::profile;
use super::quiet::Core;
use super::site::UNDERLAY_MTU;

const NODES: [&str; 2] = ["node-a", "node-b"];

/// An agent to measure: its name in tables, and what it is told beside what every agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    name: String,
    arguments: Vec<String>,
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, arguments) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            return Err("an agent needs a name".to_owned());
        }
        let arguments = arguments.split_whitespace().map(str::to_owned).collect();
        Ok(Self { name: name.to_owned(), arguments })
    }
}

/// A cluster of two nodes, with a client and its two servers.
pub(super) fn start(
    number: usize,
    variant: &Variant,
    groups: &[Group],
    core: &Core,
) -> Result<(Vec<Contender>, Cluster)> {
    let others = profile::loaded()?;
    let mut cluster = Cluster::builder(&format!("quilla{number}")).nodes(2).control_plane()?;
    wire(&cluster)?;
    let arguments: Vec<&str> = variant.arguments.iter().map(String::as_str).collect();
    for name in NODES {
        cluster.node_mut(name).start_podlet()?;
    }
    for name in NODES {
        cluster.node_mut(name).start_agent_with(&arguments)?;
    }
    for name in NODES {
        cluster.node_mut(name).wait_ready()?;
    }
    let client = cluster.pod(NODES[0], "client").start()?;
    let near = cluster.pod(NODES[0], "near").start()?;
    let far = cluster.pod(NODES[1], "far").start()?;
    // Another's, loaded at the same time, would run on no path of ours.
    let programs = profile::loaded()?.difference(&others).copied().collect();
    let mut contenders = Vec::new();
    for group in groups {
        let server = if *group == Group::SameNode { &near } else { &far };
        contenders.push(between(&cluster, *group, &client, server, &variant.name, &programs, core)?);
    }
    Ok((contenders, cluster))
}

fn between(
    cluster: &Cluster,
    group: Group,
    client: &Pod,
    server: &Pod,
    name: &str,
    programs: &BTreeSet<u32>,
    core: &Core,
) -> Result<Contender> {
    let program = std::env::current_exe().context("find this program")?;
    let program = program.to_string_lossy();
    let ends = Ends {
        group,
        client: client.netns().to_owned(),
        server: server.netns().to_owned(),
        address: server.address(false),
    };
    let mut crossed = vec![ends.client.clone(), ends.server.clone()];
    crossed.extend(cluster.nodes().iter().map(|node| node.netns().path().to_owned()));
    let commands = [client.command(&program), server.command(&program)];
    let mut contender = Contender::start(name, ends, crossed, commands, core)?;
    contender.programs.clone_from(programs);
    Ok(contender)
}

/// Gives the two nodes a wire of their own for an underlay; what they had becomes the way to the control plane.
fn wire(cluster: &Cluster) -> Result<()> {
    for name in NODES {
        let node = cluster.node(name);
        node.netns().ip(&format!(
            "link set eth0 down\n\
             link set eth0 name management\n\
             addr flush dev management\n\
             link set management up\n\
             route add {}/32 dev management",
            FABRIC[0],
        ))?;
    }
    let [a, b] = NODES.map(|name| cluster.node(name));
    a.netns().ip(&format!(
        "link add eth0 mtu {UNDERLAY_MTU} type veth peer name eth0 mtu {UNDERLAY_MTU} netns {}",
        b.netns().name()
    ))?;
    for node in [a, b] {
        let [v4, v6] = node.addresses();
        node.netns().ip(&format!(
            "link set eth0 up\n\
             addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route replace {}/32 dev management src {v4}\n\
             route add default via {} dev management onlink",
            FABRIC[0], FABRIC[0]
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Variant;

    #[test]
    fn a_variant_is_a_name_with_arguments() {
        let variant: Variant = "direct=--encapsulation direct".parse().unwrap();
        assert_eq!((variant.name.as_str(), variant.arguments.len()), ("direct", 2));
        assert!("Quilla".parse::<Variant>().unwrap().arguments.is_empty());
        assert!("=--x".parse::<Variant>().is_err());
    }
}
