//! Changes, observations and connections, put together. An endpoint is *out* for a frontend from the first observation
//! without it to the write that makes it ready again; no connection that begins in between may reach it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::observe::Observation;
use super::write::{Change, Step};
use super::{Connection, Endpoint};

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
    superseded: usize,
    /// From a write that matters to new connections to its first observation, sorted, in nanoseconds.
    latencies: Vec<u64>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { changes, connections, outs, superseded, latencies } = self;
        let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied().unwrap_or_default();
        let tell =
            |nanoseconds: u64| format!("{}.{:03} ms", nanoseconds / 1_000_000, nanoseconds / 1000 % 1000);
        write!(
            f,
            "{changes} changes, {connections} connections, none of them to one of {outs} endpoints after it was out; \
             a change is published after {} (p50), {} (p99); {superseded} were overtaken by the next",
            tell(at(50)),
            tell(at(99)),
        )
    }
}

/// Fails if a connection went where none should, or a change was never seen.
pub(super) fn judge(
    endpoints: &[Endpoint],
    changes: &[Change],
    observations: &[Observation],
    connections: &[Connection],
) -> Result<Report> {
    let frontends: BTreeSet<SocketAddr> = observations.iter().map(|one| one.frontend).collect();
    let (mut outs, mut latencies, mut superseded) = (Outs::new(), Vec::new(), 0);
    for (index, endpoint) in endpoints.iter().enumerate() {
        let turns = turns(changes.iter().filter(|change| change.endpoint == index));
        for frontend in frontends.iter().filter(|one| one.is_ipv6() == endpoint.address.is_ipv6()) {
            let seen: Vec<_> = observations.iter().filter(|one| one.frontend == *frontend).collect();
            for (place, (at, ready)) in turns.iter().enumerate() {
                let until = turns.get(place + 1).map_or(u64::MAX, |(next, _)| *next);
                let first = seen.partition_point(|one| one.at < *at);
                let mut in_time = seen[first..].iter().take_while(|one| one.at < until);
                let published = in_time.find(|one| one.members.contains(&endpoint.address) == *ready);
                let Some(published) = published else {
                    // What was written last may end after the last look.
                    superseded += 1;
                    continue;
                };
                latencies.push(published.at - at);
                if !ready {
                    let out = Out { from: published.at, until };
                    outs.entry((*frontend, &endpoint.pod)).or_default().push(out);
                }
            }
        }
    }
    latencies.sort_unstable();
    ensure!(latencies.len() > superseded, "{superseded} changes never seen, {} seen", latencies.len());
    faults(&outs, connections)?;
    sees_planted_faults(&outs)?;
    Ok(Report {
        changes: changes.len(),
        connections: connections.len(),
        outs: outs.values().map(Vec::len).sum(),
        superseded,
        latencies,
    })
}

/// When an endpoint became ready, or stopped being so; its other changes do not matter to new connections.
fn turns<'c>(changes: impl Iterator<Item = &'c Change>) -> Vec<(u64, bool)> {
    let mut turns: Vec<(u64, bool)> = Vec::new();
    for change in changes {
        let ready = change.step == Step::Ready;
        if turns.last().is_none_or(|(_, last)| *last != ready) {
            turns.push((change.at, ready));
        }
    }
    turns
}

fn faults(outs: &Outs<'_>, connections: &[Connection]) -> Result<()> {
    let wrong: Vec<_> = connections.iter().filter(|one| is_wrong(outs, one)).take(5).collect();
    ensure!(wrong.is_empty(), "connections to endpoints that were out, among others {wrong:#?}");
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
    let planted = Connection { begun, target: *target, server: (*server).to_owned() };
    ensure!(faults(outs, &[planted]).is_err(), "a planted fault was not seen");
    Ok(())
}
