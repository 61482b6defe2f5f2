//! Changes, observations and connections, put together. An endpoint is *out* for a frontend from the first observation
//! without it to the write that makes it ready again; no connection that begins in between may reach it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::observe::Observation;
use super::write::{Change, Step};
use super::{Connection, Endpoint, Frontend};

/// What was done, and what came of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence<'a> {
    pub(super) endpoints: &'a [Endpoint],
    pub(super) frontends: &'a [Frontend],
    /// In the order in which they were written.
    pub(super) changes: &'a [Change],
    pub(super) observations: &'a [Observation],
    pub(super) connections: &'a [Connection],
}

/// An endpoint of a frontend became ready, or stopped being so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// When it was written.
    pub(super) at: u64,
    pub(super) ready: bool,
    /// When the next one was written.
    pub(super) until: u64,
    /// The first observation of it; none if the next one overtook it.
    pub(super) published: Option<u64>,
}

impl<'a> Evidence<'a> {
    /// The turns of each endpoint at each frontend.
    pub(super) fn turns(&self) -> impl Iterator<Item = (SocketAddr, &'a Endpoint, Vec<Turn>)> {
        let evidence = *self;
        let mut seen: BTreeMap<SocketAddr, Vec<&'a Observation>> = BTreeMap::new();
        for one in self.observations {
            seen.entry(one.frontend).or_default().push(one);
        }
        self.endpoints.iter().enumerate().flat_map(move |(index, endpoint)| {
            let written = written(evidence.changes.iter().filter(|change| change.endpoint == index));
            let behind = evidence.frontends.iter().filter(|frontend| endpoint.is_behind(frontend));
            let turns = behind.map(|frontend| {
                let seen = seen.get(&frontend.at).map_or(&[][..], Vec::as_slice);
                (frontend.at, endpoint, published(&written, endpoint, seen))
            });
            turns.collect::<Vec<_>>()
        })
    }
}

/// When an endpoint became ready, or stopped being so; its other changes do not matter to new connections.
fn written<'c>(changes: impl Iterator<Item = &'c Change>) -> Vec<(u64, bool)> {
    let mut turns: Vec<(u64, bool)> = Vec::new();
    for change in changes {
        let ready = change.step == Step::Ready;
        if turns.last().is_none_or(|(_, last)| *last != ready) {
            turns.push((change.at, ready));
        }
    }
    turns
}

fn published(written: &[(u64, bool)], endpoint: &Endpoint, seen: &[&Observation]) -> Vec<Turn> {
    let turn = |(place, &(at, ready)): (usize, &(u64, bool))| {
        let until = written.get(place + 1).map_or(u64::MAX, |(next, _)| *next);
        let first = seen.partition_point(|one| one.at < at);
        let mut in_time = seen[first..].iter().take_while(|one| one.at < until);
        let found = in_time.find(|one| one.members.contains(&endpoint.address) == ready);
        Turn { at, ready, until, published: found.map(|one| one.at) }
    };
    written.iter().enumerate().map(turn).collect()
}

/// A time without new connections.
#[derive(Clone, Copy, Debug)]
struct Out {
    from: u64,
    until: u64,
}

/// The times of each frontend and Pod.
type Outs<'a> = BTreeMap<(SocketAddr, &'a str), Vec<Out>>;

/// What was found.
#[derive(Debug)]
pub(super) struct Report {
    changes: usize,
    connections: usize,
    outs: usize,
    overtaken: usize,
    /// From a write that matters to new connections to its first observation, sorted, in nanoseconds.
    latencies: Vec<u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { changes, connections, outs, overtaken, latencies } = self;
        let at = |percent: usize| {
            let nanoseconds =
                latencies.get((latencies.len() - 1) * percent / 100).copied().unwrap_or_default();
            format!("{}.{:03} ms", nanoseconds / 1_000_000, nanoseconds / 1000 % 1000)
        };
        write!(
            f,
            "{changes} changes, {connections} connections, none of them to an endpoint after it was out, {outs} times; \
             a change is published after {} (p50), {} (p99), {} at most; seen {}, overtaken by the next {overtaken}",
            at(50),
            at(99),
            at(100),
            latencies.len(),
        )
    }
}

/// Fails if a connection went where none should, or too many changes were never seen for their times to mean something.
pub(super) fn judge(evidence: &Evidence<'_>) -> Result<Report> {
    let (mut outs, mut latencies, mut overtaken) = (Outs::new(), Vec::new(), 0);
    for (frontend, endpoint, turns) in evidence.turns() {
        let mut before = true;
        for turn in turns {
            match turn.published {
                // What was written last may end after the last look.
                None => overtaken += 1,
                Some(published) => {
                    latencies.push(published - turn.at);
                    // If nobody saw it become ready before, that may still come.
                    if !turn.ready && before {
                        let out = Out { from: published, until: turn.until };
                        outs.entry((frontend, endpoint.pod.as_str())).or_default().push(out);
                    }
                }
            }
            before = turn.published.is_some();
        }
    }
    latencies.sort_unstable();
    ensure!(latencies.len() >= 9 * overtaken, "{overtaken} changes never seen, {} seen", latencies.len());
    ensure!(!latencies.is_empty(), "no change was seen");
    faults(&outs, evidence.connections)?;
    sees_planted_faults(&outs)?;
    Ok(Report {
        changes: evidence.changes.len(),
        connections: evidence.connections.len(),
        outs: outs.values().map(Vec::len).sum(),
        overtaken,
        latencies,
    })
}

fn faults(outs: &Outs<'_>, connections: &[Connection]) -> Result<()> {
    let wrong: Vec<_> = connections.iter().filter(|one| is_wrong(outs, one)).collect();
    let shown = &wrong[..wrong.len().min(5)];
    ensure!(
        wrong.is_empty(),
        "{} connections to endpoints that were out, among them {shown:#?}",
        wrong.len()
    );
    Ok(())
}

fn is_wrong(outs: &Outs<'_>, one: &Connection) -> bool {
    let Some(times) = outs.get(&(one.target, one.server.as_str())) else { return false };
    // They are in order and apart: the last to begin before it is the only one that can contain it.
    let before = times.partition_point(|out| out.from < one.begun);
    before.checked_sub(1).is_some_and(|last| one.begun < times[last].until)
}

/// The judge is not blind: a connection in the middle of a time without is one too many.
fn sees_planted_faults(outs: &Outs<'_>) -> Result<()> {
    let mut all = outs.iter().flat_map(|(key, times)| times.iter().map(move |out| (key, out)));
    let ((target, server), out) =
        all.rfind(|(_, out)| out.until < u64::MAX).context("nothing was ever out")?;
    let begun = out.from + (out.until - out.from) / 2;
    let planted =
        Connection { client: "planted", begun, done: begun, target: *target, server: (*server).to_owned() };
    ensure!(faults(outs, &[planted]).is_err(), "a planted fault was not seen");
    Ok(())
}
