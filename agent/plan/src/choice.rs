//! Which endpoints get new connections: the rules of kube-proxy (S10-S15), for one Service port on one node.

use quilla_model::{Hints, TrafficPolicy};

use crate::desired::{BackendKey, Member};

/// An endpoint of a Service port, as a candidate for selection.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "the conditions that the API knows")]
pub struct Candidate<'a> {
    /// Where it listens.
    pub key: BackendKey,
    /// May get new connections.
    pub ready: bool,
    /// Can answer.
    pub serving: bool,
    /// Is about to go.
    pub terminating: bool,
    /// Runs on this node.
    pub local: bool,
    /// Whom it is meant for.
    pub hints: Option<&'a Hints>,
    /// Its share; 0 = no new connections.
    pub weight: u8,
}

/// The fallback when nothing is ready: still answering while it terminates.
fn last_resort(candidate: &Candidate<'_>) -> bool {
    candidate.serving && candidate.terminating
}

/// Where the clients are.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// This node's name.
    pub node: &'a str,
    /// Its zone.
    pub zone: Option<&'a str>,
}

/// The endpoints that a traffic policy allows to clients at a place.
pub fn choose(candidates: &[Candidate<'_>], policy: TrafficPolicy, place: Place<'_>) -> Vec<Member> {
    match policy {
        TrafficPolicy::Cluster => cluster_set(candidates, place),
        TrafficPolicy::Local => local_set(candidates),
    }
}

/// Whether the Service port has any endpoint anywhere (S12): without one it rejects, with one elsewhere it drops (S21).
pub fn has_any(candidates: &[Candidate<'_>]) -> bool {
    candidates.iter().any(|candidate| candidate.ready || last_resort(candidate))
}

/// S10: ready endpoints as topology allows, else those that still serve while terminating, wherever they are.
fn cluster_set(candidates: &[Candidate<'_>], place: Place<'_>) -> Vec<Member> {
    let topology = Topology::of(candidates, place);
    let ready = members(candidates, |candidate| candidate.ready && topology.allows(candidate, place));
    if ready.is_empty() { members(candidates, last_resort) } else { ready }
}

/// S11: the same among local endpoints; hints never apply (S15).
fn local_set(candidates: &[Candidate<'_>]) -> Vec<Member> {
    let ready = members(candidates, |candidate| candidate.local && candidate.ready);
    if ready.is_empty() {
        members(candidates, |candidate| candidate.local && last_resort(candidate))
    } else {
        ready
    }
}

fn members(candidates: &[Candidate<'_>], wanted: impl Fn(&Candidate<'_>) -> bool) -> Vec<Member> {
    let member = |candidate: &Candidate<'_>| Member { backend: candidate.key, weight: candidate.weight };
    candidates.iter().filter(|candidate| wanted(candidate)).map(member).collect()
}

/// How hints filter the ready endpoints (S14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Everywhere,
    SameNode,
    SameZone,
}

impl Topology {
    /// One ready endpoint without a hint disables the mode; a mode that names nobody here is not chosen.
    fn of(candidates: &[Candidate<'_>], place: Place<'_>) -> Self {
        let ready = || candidates.iter().filter(|candidate| candidate.ready);
        let all_hinted = |has: fn(&Hints) -> bool| ready().all(|candidate| candidate.hints.is_some_and(has));
        if all_hinted(|hints| !hints.nodes.is_empty()) && ready().any(|c| Self::SameNode.allows(c, place)) {
            Self::SameNode
        } else if all_hinted(|hints| !hints.zones.is_empty())
            && ready().any(|c| Self::SameZone.allows(c, place))
        {
            Self::SameZone
        } else {
            Self::Everywhere
        }
    }

    fn allows(self, candidate: &Candidate<'_>, place: Place<'_>) -> bool {
        match self {
            Self::Everywhere => true,
            Self::SameNode => {
                candidate.hints.is_some_and(|hints| hints.nodes.iter().any(|node| **node == *place.node))
            }
            Self::SameZone => candidate
                .hints
                .zip(place.zone)
                .is_some_and(|(hints, here)| hints.zones.iter().any(|zone| **zone == *here)),
        }
    }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
