//! The executable specification: random clusters and packets through a plain model and through the loaded programs.
//!
//! `SPEC_PACKETS` sets how many packets (default 400,000), `SPEC_SEED` where the randomness starts; a disagreement
//! prints the seed of its world. That the suite would notice a broken data path is itself a test: [`mutants`].

mod compare;
mod generate;
mod model;
mod mutants;
mod rig;
mod wire;
mod world;

use std::env;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use quilla_datapath::Object;

use crate::compare::{Tally, judge};
use crate::generate::{Generator, Stimulus};
use crate::model::Model;
use crate::rig::{OVERLAY, POD_DEVICES, Rig, UPLINK};
use crate::wire::{Frame, Tuple};
use crate::world::World;

const PACKETS_PER_WORLD: u64 = 2_000;

fn main() -> std::process::ExitCode {
    quilla_tests::suite::main(quilla_tests::tests![agreement, mutants::each_is_caught])
}

/// E1, E7-E13, E19, E20, S1, S17: the programs do what the specification says.
fn agreement() -> Result<()> {
    let packets = setting("SPEC_PACKETS", 400_000)?;
    let seed = setting("SPEC_SEED", 1)?;
    let netns = rig::namespace("spec")?;
    let tested = netns.run(|| explore("spec", &Object::embedded(), seed, packets))??;
    println!("{tested} packets, 0 disagreements");
    Ok(())
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match env::var(name) {
        Ok(value) => value.parse().with_context(|| format!("{name}={value}")),
        Err(_) => Ok(default),
    }
}

/// The programs did something else than the specification says. Any other error says nothing about the programs.
#[derive(Debug)]
struct Disagreement(String);

impl std::fmt::Display for Disagreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Disagreement {}

/// Tests at least `packets` packets; fails on the first disagreement.
fn explore(name: &str, object: &Object<'_>, seed: u64, packets: u64) -> Result<u64> {
    let mut rig = Rig::load(name, object)?;
    let mut tested = 0;
    for seed in seed.. {
        if tested >= packets {
            break;
        }
        tested += one_world(&mut rig, seed).with_context(|| format!("SPEC_SEED={seed}"))?;
    }
    Ok(tested)
}

fn one_world(rig: &mut Rig, seed: u64) -> Result<u64> {
    let mut rng = Rng::with_seed(seed);
    let pods = rng.usize(2..=POD_DEVICES.len());
    let world = World::random(&mut rng, &POD_DEVICES[..pods], UPLINK, OVERLAY);
    rig.install(&world)?;
    let before = counted(rig)?;
    let mut model = Model::new(world);
    let mut generator = Generator::default();
    let mut tally = Tally::default();
    let mut past: Vec<Past> = Vec::new();
    for number in 0..PACKETS_PER_WORLD {
        if number % 500 == 499 {
            delete_a_backend(rig, &mut model, &mut rng)?;
        }
        let stimulus = generator.next(&model.world, &mut rng);
        let outcome = rig
            .run(&model.world, stimulus.hook, &stimulus.frame)
            .with_context(|| format!("packet {number}: {stimulus:02x?}"))?;
        match judge(&mut model, &stimulus, &outcome, &mut tally) {
            Ok(continuations) => {
                past.push((number, stimulus.clone(), outcome.cb, outcome.packet.to_vec()));
                for continuation in continuations {
                    generator.learn(&mut rng, continuation);
                }
            }
            Err(disagreement) => bail!(Disagreement(format!(
                "packet {number} at {:?}: {disagreement}\nframe {:02x?}\npast {}services {:#?}",
                stimulus.hook,
                stimulus.frame,
                related(&past, &stimulus.frame, outcome.packet),
                model.world.services
            ))),
        }
    }
    let after = counted(rig)?;
    let counted = after.since(&before);
    if counted != tally {
        bail!(Disagreement(format!("counters: expected {tally:#?}, counted {counted:#?}")));
    }
    Ok(PACKETS_PER_WORLD)
}

/// A packet that both agreed on: what went in, what the program said, and what came out.
type Past = (u64, Stimulus, [u32; 5], Vec<u8>);

/// Earlier packets that share a tuple, in either direction, with the packet in question.
fn related(past: &[Past], before: &[u8], after: &[u8]) -> String {
    let headers = |frame: &[u8]| match wire::read(frame) {
        Frame::Ip(headers) => Some(headers),
        _ => None,
    };
    let either = |tuple: Tuple| [tuple, tuple.mirrored()];
    let wanted: Vec<Tuple> =
        [before, after].into_iter().filter_map(headers).flat_map(|found| either(found.tuple)).collect();
    let mut story = Vec::new();
    for (number, stimulus, cb, out) in past {
        let (Some(arrived), Some(left)) = (headers(&stimulus.frame), headers(out)) else { continue };
        if wanted.contains(&arrived.tuple) || wanted.contains(&left.tuple) {
            let flags = arrived.tcp_flags;
            let (hook, arrived, left) = (stimulus.hook, arrived.tuple, left.tuple);
            story.push(format!("  {number} {hook:?} {arrived:?} flags {flags:x} left as {left:?} {cb:x?}\n"));
        }
    }
    story.concat()
}

/// An endpoint goes away under its connections.
fn delete_a_backend(rig: &mut Rig, model: &mut Model, rng: &mut Rng) -> Result<()> {
    let backends: Vec<(SocketAddr, u8)> = model
        .world
        .services
        .iter()
        .flat_map(|service| service.backends.iter().map(|backend| (*backend, service.proto)))
        .collect();
    if let Some(&(backend, proto)) = rng.choice(&backends) {
        rig.delete_backend(&model.world, backend, proto)?;
        model.delete_backend(backend, proto);
    }
    Ok(())
}

fn counted(rig: &Rig) -> Result<Tally> {
    let maps = rig.datapath.maps();
    let mut tally = Tally::default();
    for (rows, totals) in
        [(&mut tally.drops, maps.drops.totals()?), (&mut tally.forwards, maps.forwards.totals()?)]
    {
        for (row, total) in (0..).zip(totals) {
            if total.packets != 0 {
                rows.insert(row, (total.packets, total.bytes));
            }
        }
    }
    Ok(tally)
}
