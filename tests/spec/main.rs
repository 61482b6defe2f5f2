//! The executable specification: random clusters and packets through a plain model and through planner and programs.
//!
//! `SPEC_PACKETS` sets how many packets (default 400,000), `SPEC_SEED` where the randomness starts; a disagreement
//! prints the seed of its world. What was met is told at the end, and checked ([`coverage`]). That the suite would
//! notice a broken data path or planner is itself a test: [`mutants`].

mod affinity;
mod answer;
mod begin;
mod cluster;
mod compare;
mod connection;
mod coverage;
mod explore;
mod frame;
mod generate;
mod model;
mod mutants;
mod peer;
mod plain;
mod report;
mod rig;
mod service;
mod size;
mod tunnel;
mod way;
mod wire;
mod world;

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quilla_agent::table;
use quilla_datapath::Object;
use quilla_tests::netns::Netns;
use quilla_tests::{bare_node, sandbox};

use crate::explore::explore;
use crate::peer::Location;
use crate::rig::{OTHER_UPLINK, OVERLAY, POD_DEVICES, UPLINK};

fn main() -> std::process::ExitCode {
    quilla_tests::suite::main(quilla_tests::tests![
        mutants::each_is_found,
        agreement,
        mutants::data_path::each_is_caught,
        mutants::planner::each_is_caught
    ])
}

/// E1, E7-E13, E19, E20, S1, S5, S10-S17, S45: planner and programs do what the specification says.
fn agreement() -> Result<()> {
    let packets = setting("SPEC_PACKETS", coverage::FULL)?;
    let seed = setting("SPEC_SEED", 1)?;
    let tested = namespace("spec")?.run(|| explore(&files("spec"), &Object::embedded(), seed, packets))??;
    println!("{tested}{} packets, 0 disagreements", tested.packets);
    tested.check()
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match env::var(name) {
        Ok(value) => value.parse().with_context(|| format!("{name}={value}")),
        Err(_) => Ok(default),
    }
}

/// A namespace with the devices that the programs see, and the ways to the other nodes.
fn namespace(name: &str) -> Result<Netns> {
    let netns = bare_node::create(name, &[&POD_DEVICES[..], &[OTHER_UPLINK]].concat(), UPLINK, OVERLAY)?;
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    netns.ip(&format!("link set d{UPLINK} address {}", text(tunnel::OWN_MAC)))?;
    for number in peer::NUMBERS.chain([peer::ROUTER]) {
        let (mac, location) = (text(peer::ethernet(number)), Location::of(number));
        for address in peer::address(number) {
            let line = match location {
                Location::Neighbour => {
                    format!("neigh replace {address} lladdr {mac} dev d{UPLINK} nud permanent")
                }
                Location::Nowhere => format!("route add unreachable {address}"),
                Location::UnknownNeighbour | Location::BehindRouter => continue,
            };
            netns.ip(&line)?;
        }
    }
    Ok(netns)
}

/// Where a run has its pins.
fn files(name: &str) -> PathBuf {
    Path::new(sandbox::FILES).join(format!("bpf-{name}"))
}
