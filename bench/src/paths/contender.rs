//! A path between two ends, ready to be loaded.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;
use quilla_tests::command::in_place;
use quilla_tests::netns::run_inside;

use super::process::Pair;
use super::quiet::Core;

/// Paths that are compared with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Pod to Pod of the same node
    SameNode,
    /// Pod to Pod of another node
    BetweenNodes,
}

impl Group {
    pub(super) const ALL: [Self; 2] = [Self::SameNode, Self::BetweenNodes];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::SameNode => "Pod to Pod, same node",
            Self::BetweenNodes => "Pod to Pod, between nodes",
        }
    }
}

/// Where a path begins and ends. Both ends' devices are called `eth0`.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) group: Group,
    pub(super) client: PathBuf,
    pub(super) server: PathBuf,
    pub(super) address: IpAddr,
}

/// A path with both processes at its ends.
#[derive(Debug)]
pub(super) struct Contender {
    pub(super) name: String,
    /// Identifiers of the product's programs on its way; none for what the product is compared with.
    pub(super) programs: BTreeSet<u32>,
    pub(super) ends: Ends,
    /// All namespaces that its packets cross.
    pub(super) crossed: Vec<PathBuf>,
    pub(super) pair: Pair,
}

impl Contender {
    /// Of a peer, whose processes are in these cgroups.
    pub(super) fn peer(
        name: &str,
        ends: Ends,
        crossed: Vec<PathBuf>,
        [client, server]: [&Path; 2],
        core: &Core,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let command =
            |cgroup, end: &PathBuf| -> Command { in_place(cgroup, Some(end), &program.to_string_lossy()) };
        let (client, server) = (command(client, &ends.client), command(server, &ends.server));
        Self::start(name, ends, crossed, [client, server], core)
    }

    /// With commands for client and server to which their arguments are added.
    pub(super) fn start(
        name: &str,
        ends: Ends,
        crossed: Vec<PathBuf>,
        [client, server]: [Command; 2],
        core: &Core,
    ) -> Result<Self> {
        // Closed connections wait for a minute; without this there would soon be no port left for new ones.
        run_inside(&ends.client, || fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1"))?
            .context("let ports be used again")?;
        let pair = Pair::start(client, server, ends.address, core)
            .with_context(|| format!("start the load of {name}"))?;
        Ok(Self { name: name.to_owned(), programs: BTreeSet::new(), ends, crossed, pair })
    }

    /// Whether it is the product.
    pub(super) fn is_ours(&self) -> bool {
        !self.programs.is_empty()
    }
}
