//! Worlds one after the other, and in each a stream of packets: each through the model and through the programs.

use std::path::Path;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use quilla_datapath::Object;

use crate::cluster;
use crate::compare::{Tally, judge};
use crate::coverage::Coverage;
use crate::generate::{Generator, Stimulus};
use crate::model::Model;
use crate::rig::{OVERLAY, POD_DEVICES, Rig, UPLINK};
use crate::tunnel::inside;
use crate::wire::{self, Frame, Tuple};
use crate::world::World;

const PACKETS_PER_WORLD: u64 = 2_000;
/// Packets from one change of the cluster to the next.
const STEADY: u64 = 100;

/// The programs did something else than the specification says. Any other error says nothing about the programs.
#[derive(Debug)]
pub(crate) struct Disagreement(String);

impl std::fmt::Display for Disagreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Disagreement {}

/// Tests at least `packets` packets, with pins in `place`; fails on the first disagreement. What it has met.
pub(crate) fn explore(place: &Path, object: &Object<'_>, seed: u64, packets: u64) -> Result<Coverage> {
    let mut rig = Rig::load(place, object)?;
    let mut tested = Coverage::default();
    for seed in seed.. {
        if tested.packets >= packets {
            break;
        }
        tested.add(one_world(&mut rig, seed).with_context(|| format!("SPEC_SEED={seed}"))?);
    }
    Ok(tested)
}

fn one_world(rig: &mut Rig, seed: u64) -> Result<Coverage> {
    let mut rng = Rng::with_seed(seed);
    let pods = rng.usize(2..=POD_DEVICES.len());
    let mut world = World::random(&mut rng, &POD_DEVICES[..pods], UPLINK, OVERLAY);
    cluster::populate(&mut world, &mut rng);
    rig.install(&world)?;
    let before = counted(rig)?;
    let mut run = Run {
        model: Model::new(world),
        generator: Generator::default(),
        tally: Tally::default(),
        past: Vec::new(),
    };
    for number in 0..PACKETS_PER_WORLD {
        if number % STEADY == STEADY - 1 {
            cluster::change(&mut run.model.world, &mut rng);
            let changed = run.model.settle();
            run.model.coverage.meet_cluster(&run.model.world);
            rig.update(&run.model.world)?;
            let passed = rng.choice([0, 0, 0, 70, 250, 25_000]).expect("not empty");
            if passed > 0 {
                run.model.now += u64::from(passed);
                rig.age(passed)?;
            }
            run.generator.settle(passed > 0);
            for continuation in changed {
                run.generator.learn(&mut rng, continuation);
            }
        }
        run.packet(rig, &mut rng, number)?;
    }
    let counted = counted(rig)?.since(&before);
    if counted != run.tally {
        bail!(Disagreement(format!("counters: expected {:#?}, counted {counted:#?}", run.tally)));
    }
    let mut met = run.model.coverage;
    met.packets = PACKETS_PER_WORLD;
    Ok(met)
}

/// One world under test.
struct Run {
    model: Model,
    generator: Generator,
    tally: Tally,
    past: Vec<Past>,
}

impl Run {
    fn packet(&mut self, rig: &mut Rig, rng: &mut Rng, number: u64) -> Result<()> {
        let stimulus = self.generator.next(&self.model, rng);
        let slots: Vec<u32> = self.model.world.peers.iter().map(|peer| rig.slot(peer)).collect();
        let outcome = rig
            .run(&self.model.world, &stimulus)
            .with_context(|| format!("packet {number}: {stimulus:02x?}"))?;
        match judge(&mut self.model, &slots, &stimulus, &outcome, &mut self.tally) {
            Ok(continuations) => {
                self.past.push((number, stimulus, outcome.cb, outcome.packet.to_vec()));
                for continuation in continuations {
                    self.generator.learn(rng, continuation);
                }
                Ok(())
            }
            Err(disagreement) => bail!(Disagreement(format!(
                "packet {number} at {:?} in {:?}: {disagreement}\nframe {:02x?}\nleft {:02x?} {:x?}\npast {}\
                 services {:#?}\nslices {:#?}",
                stimulus.hook,
                stimulus.carriage,
                stimulus.frame,
                outcome.packet,
                outcome.cb,
                related(&self.past, &stimulus.frame, inside(outcome.packet)),
                self.model.world.snapshot.services,
                self.model.world.snapshot.slices,
            ))),
        }
    }
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
        let (Some(arrived), Some(left)) = (headers(&stimulus.frame), headers(inside(out))) else { continue };
        if wanted.contains(&arrived.tuple) || wanted.contains(&left.tuple) {
            let flags = arrived.tcp_flags;
            let (hook, arrived, left) = (stimulus.hook, arrived.tuple, left.tuple);
            story.push(format!("  {number} {hook:?} {arrived:?} flags {flags:x} left as {left:?} {cb:x?}\n"));
        }
    }
    story.concat()
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
