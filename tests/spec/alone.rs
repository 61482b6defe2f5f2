//! The specification as a program of its own: what mutants of the planner are linked into, one build each.
//!
//! Its arguments are a folder for pins, an object file, a seed and a number of packets; it must run where the devices
//! are. It ends with 1 and one line when planner and programs disagree with the model, and with 2 when it cannot tell.

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

#[path = "../../agent/src"]
mod agent {
    pub(crate) mod table;
}

use std::env;
use std::path::Path;
use std::process::ExitCode;

use agent::table;
use anyhow::{Context, Result};
use quilla_datapath::Object;

use crate::coverage::Coverage;
use crate::explore::{Disagreement, explore};

fn main() -> ExitCode {
    match run() {
        Ok(tested) => {
            println!("{tested}{} packets, 0 disagreements", tested.packets);
            match tested.check() {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{error:#}");
                    ExitCode::from(2)
                }
            }
        }
        Err(error) if error.downcast_ref::<Disagreement>().is_some() => {
            println!("{error:#}");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<Coverage> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [place, object, seed, packets] = &arguments[..] else { anyhow::bail!("four arguments are needed") };
    let object = std::fs::read(object).with_context(|| format!("read {object}"))?;
    explore(Path::new(place), &Object::from_bytes(&object), seed.parse()?, packets.parse()?)
}
