//! The fail-point walk: plugin and agent are killed, and fail, at every step of ADD, DEL, GC and of the agent's start.
//! Whatever was interrupted, the next ADD succeeds with one address, and the next DEL leaves nothing (CNI-15, CNI-18,
//! CNI-20, CNI-21, CNI-30).

use std::collections::BTreeSet;
use std::fs;
use std::panic::resume_unwind;
use std::thread;

use anyhow::{Context, Result, ensure};
use quilla_cni_protocol::failpoint::{DIRECTORY, Point};
use quilla_tests::{binary, eventually};
use serde_json::{Value, json};

use crate::node::{Pod, addresses};
use crate::site::{self, Site};

/// What runs into the fail-point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Del,
    /// DEL while the agent is down.
    DelAlone,
    Gc,
    /// The agent starts, with an endpoint in its journal.
    Start,
    /// The agent starts, and finds the record of a DEL.
    StartWithRecord,
}

/// What the runtime does after the interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The same again.
    Again,
    /// DEL at once, as after every failed ADD.
    Del,
}

/// Fail-points, each with how often it is passed before, and who comes by.
type Step = (Verb, &'static [(Point, u32)]);

const STEPS: &[Step] = {
    use Point as P;
    use Verb::{Add, Del, DelAlone, Gc, Start, StartWithRecord};
    &[
        (Add, &[(P::AddStarted, 0)]),
        (Add, &[(P::AddConnected, 0)]),
        (Add, &[(P::AddReserved, 0)]),
        (Add, &[(P::LeftoverDeleted, 0)]),
        (Add, &[(P::PairCreated, 0)]),
        (Add, &[(P::PodSettings, 0)]),
        (Add, &[(P::PodRoutes, 0)]),
        (Add, &[(P::HostSettings, 0)]),
        (Add, &[(P::HostRoutes, 0)]),
        (Add, &[(P::AddAttached, 0)]),
        (Add, &[(P::Reserving, 0)]),
        // The lines of an ADD: reserved, attached. Only the second one is waited for.
        (Add, &[(P::JournalAppending, 0)]),
        (Add, &[(P::JournalAppended, 0)]),
        (Add, &[(P::JournalAppending, 1)]),
        (Add, &[(P::JournalAppended, 1)]),
        (Add, &[(P::JournalSynced, 0)]),
        (Add, &[(P::Answering, 0)]),
        (Add, &[(P::Answering, 1)]),
        (Add, &[(P::Attaching, 0)]),
        (Add, &[(P::ProgramsAttached, 0)]),
        (Add, &[(P::RowsWritten, 0)]),
        (Add, &[(P::EndpointEffective, 0)]),
        (Del, &[(P::DelStarted, 0)]),
        (Del, &[(P::DelLinkDeleted, 0)]),
        (Del, &[(P::DelReleased, 0)]),
        (Del, &[(P::Releasing, 0)]),
        (Del, &[(P::RowsRemoved, 0)]),
        (Del, &[(P::EndpointDetached, 0)]),
        (Del, &[(P::JournalAppending, 0)]),
        (Del, &[(P::JournalAppended, 0)]),
        (Del, &[(P::JournalSynced, 0)]),
        (Del, &[(P::Answering, 0)]),
        (DelAlone, &[(P::RecordWritten, 0)]),
        (DelAlone, &[(P::RecordRenamed, 0)]),
        (Gc, &[(P::GcListed, 0)]),
        (Start, &[(P::JournalRead, 0)]),
        (Start, &[(P::JournalRewritten, 0)]),
        (Start, &[(P::JournalReplaced, 0)]),
        (Start, &[(P::Listening, 0)]),
        (StartWithRecord, &[(P::RecordCarriedOut, 0)]),
        (StartWithRecord, &[(P::RowsRemoved, 0)]),
    ]
};

/// Walks at the same time, each in a cluster of its own: most of a walk is waiting for restarted agents.
const PARTS: usize = 3;

/// What may fail at the agent's start without ending it: the journal is written, and the record carried out, later.
const GOES_ON: &[Point] =
    &[Point::JournalRewritten, Point::JournalReplaced, Point::RecordCarriedOut, Point::RowsRemoved];

/// Every point, killed and failing; prints the sums.
pub(crate) fn every_point() -> Result<()> {
    let reached: BTreeSet<Point> =
        STEPS.iter().flat_map(|(_, points)| *points).map(|(point, _)| *point).collect();
    let never: Vec<_> = Point::ALL.iter().filter(|point| !reached.contains(point)).collect();
    ensure!(never.is_empty(), "no step comes by {never:?}");

    let walks: Result<Vec<usize>> = thread::scope(|scope| {
        let start = |part| scope.spawn(move || Walk::start(part)?.every(part));
        let walks: Vec<_> = (0..PARTS).map(start).collect();
        walks.into_iter().map(|walk| walk.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let interruptions: usize = walks?.iter().sum();
    println!(
        "fail-point walk: {} points, {interruptions} interruptions, leaks: 0, duplicates: 0",
        Point::ALL.len()
    );
    Ok(())
}

struct Walk {
    site: Site,
    /// A Pod that nothing of all this may touch.
    witness: Pod,
    its_addresses: Vec<String>,
    interruptions: usize,
}

impl Walk {
    fn start(part: usize) -> Result<Self> {
        let site = Site::start(&format!("faults-{part}"))?;
        let witness = site::pod(&format!("witness-{part}"))?;
        let its_addresses = addresses(&site.add(&witness)?);
        Ok(Self { site, witness, its_addresses, interruptions: 0 })
    }

    /// Every so manyth step; how many interruptions that were.
    fn every(mut self, part: usize) -> Result<usize> {
        for (number, (verb, points)) in STEPS.iter().enumerate().skip(part).step_by(PARTS) {
            for mode in ["kill", "fail"] {
                for then in [Then::Again, Then::Del] {
                    // A DEL again is a DEL.
                    if *verb == Verb::Add || then == Then::Again {
                        let id = format!("{number}-{mode}-{then:?}").to_lowercase();
                        self.take(&id, *verb, mode, points, then)
                            .with_context(|| format!("{points:?} {verb:?} {mode} {then:?}"))?;
                    }
                }
            }
        }
        self.site.cluster.stop()?;
        Ok(self.interruptions)
    }

    /// One interruption, and what comes after it.
    fn take(&mut self, id: &str, verb: Verb, mode: &str, points: &[(Point, u32)], then: Then) -> Result<()> {
        let pod = site::pod(&format!("faults-{id}"))?;
        let before = self.site.traces(&pod)?;
        self.interrupt(&pod, verb, mode, points)?;
        self.site.disarm()?;
        ensure!(self.site.hits() == points.len(), "{} hits", self.site.hits());
        self.interruptions += 1;
        if mode == "kill" && points.iter().any(|(point, _)| *point >= Point::Reserving) {
            self.site.agent_ends()?;
        }
        self.site.revive_agent()?;
        match then {
            Then::Again => self.again(&pod, verb)?,
            Then::Del => self.site.del(&pod)?,
        }
        let look = || match self.site.traces(&pod) {
            Ok(traces) => Ok(difference(&before, &traces)),
            Err(error) => Ok(format!("{error:#}")),
        };
        eventually::becomes("leak or loss", look, String::is_empty).map(drop)
    }

    fn interrupt(&mut self, pod: &Pod, verb: Verb, mode: &str, points: &[(Point, u32)]) -> Result<()> {
        if verb != Verb::Add {
            self.site.add(pod)?;
        }
        match verb {
            Verb::Add | Verb::Del | Verb::Gc => {
                self.site.arm(mode, points)?;
                let name = if verb == Verb::Add { "ADD" } else { "DEL" };
                if verb == Verb::Gc {
                    self.collect()?
                } else {
                    self.site.call(name, pod)?
                };
            }
            Verb::DelAlone => {
                self.site.kill_agent()?;
                self.site.arm(mode, points)?;
                self.site.call("DEL", pod)?;
            }
            Verb::Start | Verb::StartWithRecord => {
                self.site.kill_agent()?;
                if verb == Verb::StartWithRecord {
                    self.site.del(pod)?;
                }
                self.site.arm(mode, points)?;
                self.site.start_agent()?;
                eventually::becomes("hits", || Ok(self.site.hits()), |hits| *hits == points.len())?;
                if mode == "fail" && points.iter().all(|(point, _)| GOES_ON.contains(point)) {
                    self.site.goes_on()?;
                } else {
                    self.site.agent_ends()?;
                }
            }
        }
        Ok(())
    }

    /// GC that keeps the witness alone.
    fn collect(&self) -> Result<crate::node::Answer> {
        let mut config = self.site.config();
        config["cni.dev/valid-attachments"] = json!([{ "containerID": self.witness.id, "ifname": "eth0" }]);
        self.site.call_with("GC", &self.witness, &config)
    }

    fn again(&self, pod: &Pod, verb: Verb) -> Result<()> {
        match verb {
            Verb::Add | Verb::Start => {
                let result = self.site.add(pod)?;
                self.one_address(pod, &result)?;
            }
            Verb::Gc => self.collect()?.silence()?,
            Verb::Del | Verb::DelAlone | Verb::StartWithRecord => {}
        }
        self.site.del(pod)
    }

    /// CNI-12: ADD once more is the same answer, and nobody else has the addresses.
    fn one_address(&self, pod: &Pod, result: &Value) -> Result<()> {
        let given = addresses(result);
        ensure!(given.len() == 2 && given.iter().all(|one| !self.its_addresses.contains(one)), "{given:?}");
        ensure!(self.site.add(pod)? == *result, "another answer to the same ADD");
        let rows = self.site.endpoints()?;
        let leaks = rows.iter().filter(|row| row["state"] != "attached").count();
        ensure!(rows.len() == 2 && leaks == 0, "{rows:?}");
        Ok(())
    }
}

/// Lines that are in one of the two.
fn difference(before: &str, after: &str) -> String {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (before.lines().collect(), after.lines().collect());
    let lost = old.difference(&new).map(|line| format!("- {line}\n"));
    lost.chain(new.difference(&old).map(|line| format!("+ {line}\n"))).collect()
}

/// What dies on demand is only in the build for tests.
pub(crate) fn not_in_the_product() -> Result<()> {
    let holds = |path: std::path::PathBuf| -> Result<bool> {
        let program = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(program.windows(DIRECTORY.len()).any(|window| window == DIRECTORY.as_bytes()))
    };
    for name in ["quilla-cni", "quilla-agent"] {
        ensure!(holds(binary::with_failpoints(name)?)?, "{name} for tests has no fail-points");
        ensure!(!holds(binary::path(name)?)?, "{name} has fail-points");
    }
    Ok(())
}
