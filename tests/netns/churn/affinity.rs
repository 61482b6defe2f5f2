//! Clients of a Service with affinity: each connection goes where the one before went, unless that endpoint may have been
//! out meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};

use super::judge::{Evidence, Turn};
use super::{Connection, STICKY};

/// When an endpoint may have been out: from the write that takes it away to the observation that it is back.
type Doubts<'a> = BTreeMap<(SocketAddr, &'a str), Vec<(u64, u64)>>;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Report {
    stayed: usize,
    moved: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stayed, moved } = self;
        write!(
            f,
            "clients with affinity: {stayed} connections to the server of the one before, {moved} to another, each \
             because that one was out"
        )
    }
}

/// Fails if a client left its server without need, or none ever had to.
pub(super) fn judge(evidence: &Evidence<'_>) -> Result<Report> {
    let doubts = doubts(evidence);
    let mut groups: BTreeMap<(&str, SocketAddr), Vec<&Connection>> = BTreeMap::new();
    let sticky = evidence.frontends.iter().filter(|one| one.service == STICKY).map(|one| one.at);
    let sticky: Vec<SocketAddr> = sticky.collect();
    for one in evidence.connections.iter().filter(|one| sticky.contains(&one.target)) {
        groups.entry((one.client, one.target)).or_default().push(one);
    }
    let mut report = Report::default();
    for group in groups.values_mut() {
        group.sort_unstable_by_key(|one| one.done);
        let found = follow(&doubts, group)?;
        ensure!(found.moved > 0, "a client never had to leave its server: nothing was proven");
        sees_a_planted_fault(&doubts, group)?;
        report.stayed += found.stayed;
        report.moved += found.moved;
    }
    // Two families and three clients, each of which asks for both.
    ensure!(groups.len() == 6, "clients and addresses: {:?}", groups.keys());
    Ok(report)
}

fn doubts<'a>(evidence: &Evidence<'a>) -> Doubts<'a> {
    let all = evidence.turns().filter(|(_, endpoint, _)| endpoint.service == STICKY);
    all.map(|(frontend, endpoint, turns)| ((frontend, endpoint.pod.as_str()), of(&turns))).collect()
}

fn of(turns: &[Turn]) -> Vec<(u64, u64)> {
    let (mut times, mut open) = (Vec::new(), None);
    for turn in turns {
        if !turn.ready {
            open.get_or_insert(turn.at);
        } else if let (Some(published), Some(from)) = (turn.published, open) {
            times.push((from, published));
            open = None;
        }
    }
    times.extend(open.map(|from| (from, u64::MAX)));
    times
}

/// Looks at the connections of a client to an address, in the order in which they were answered.
fn follow(doubts: &Doubts<'_>, group: &[&Connection]) -> Result<Report> {
    let mut report = Report::default();
    for one in group {
        let Some(before) = before(group, one) else { continue };
        if before.server == one.server {
            report.stayed += 1;
            continue;
        }
        let reason = was_doubtful(doubts, before, one) || is_disputed(group, before);
        ensure!(reason, "{one:?} left the server of {before:?} without need");
        report.moved += 1;
    }
    Ok(report)
}

/// The last connection that was answered before this one began.
fn before<'g>(group: &[&'g Connection], one: &Connection) -> Option<&'g Connection> {
    let place = group.partition_point(|other| other.done < one.begun);
    Some(group[place.checked_sub(1)?])
}

/// Whether the server of the earlier one may have been out before the later one was answered.
fn was_doubtful(doubts: &Doubts<'_>, earlier: &Connection, later: &Connection) -> bool {
    let times = doubts.get(&(earlier.target, earlier.server.as_str()));
    times
        .is_some_and(|times| times.iter().any(|(from, until)| *from <= later.done && earlier.begun <= *until))
}

/// Whether another one at the same time went elsewhere: which of two that choose anew is remembered is chance.
fn is_disputed(group: &[&Connection], one: &Connection) -> bool {
    let others = group.iter().filter(|other| other.begun <= one.done && one.begun <= other.done);
    others.into_iter().any(|other| other.server != one.server)
}

/// The judge is not blind: a client that goes elsewhere while its server is there is one too many.
fn sees_a_planted_fault(doubts: &Doubts<'_>, group: &[&Connection]) -> Result<()> {
    let calm = |one: &&&Connection| {
        let earlier = before(group, one)?;
        let calm = earlier.server == one.server
            && !was_doubtful(doubts, earlier, one)
            && !is_disputed(group, earlier);
        calm.then_some(earlier)
    };
    let (earlier, one) = group
        .iter()
        .find_map(|one| Some((calm(&one)?, one)))
        .context("no client was ever at ease: nothing was proven")?;
    let planted = Connection { server: "nobody".to_owned(), ..(*one).clone() };
    ensure!(follow(doubts, &[earlier, &planted]).is_err(), "a planted move was not seen");
    Ok(())
}
