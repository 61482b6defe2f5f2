//! Who has which address and port where several objects ask for the same. Called by [`crate::plan()`].
//!
//! The more entitled kind of address has it, then the first owner by name. The loser is named in a problem and keeps
//! everything else. Invariant: the result depends neither on the order of the plans nor on what was there before, so
//! every node and every restart decides alike.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quilla_model::{ObjectRef, Problem, Reason};

use crate::desired::{BackendSet, Desired, Frontend, FrontendKey, FrontendKind, SetKey};
use crate::frontend::{ServicePlan, describe};
use crate::maglev;

/// Fills in what Services and host ports decide: everything of `desired` but nodes, routes and endpoints.
pub(crate) fn merge<'a>(
    desired: &mut Desired,
    plans: impl Iterator<Item = &'a ServicePlan> + Clone,
    problems: &mut Vec<Problem>,
) {
    let mut losers = Vec::new();
    for plan in plans.clone() {
        for (key, frontend) in &plan.frontends {
            losers.extend(claim(&mut desired.frontends, *key, frontend));
        }
        desired.markers.extend(plan.markers.iter().copied());
        desired.backends.extend_from_slice(&plan.backends);
        desired.health_checks.extend(plan.health_check.clone());
    }
    desired.backends.sort_unstable();
    desired.backends.dedup();
    desired.sets = plans.clone().flat_map(|plan| used_sets(plan, &desired.frontends)).collect();
    let tables: Vec<u32> = plans.clone().flat_map(|plan| plan.maglev_members.iter().copied()).collect();
    desired.maglev_density = maglev::density(&tables);
    // Both scopes of an address, and all addresses of a node port, are lost together.
    let conflicts: BTreeSet<_> =
        losers.iter().map(|(key, loser)| conflict(*key, loser, &desired.frontends[key])).collect();
    let mut found: Vec<_> = plans.flat_map(|plan| plan.problems.iter().cloned()).chain(conflicts).collect();
    found.sort_unstable();
    problems.append(&mut found);
}

/// Gives the address to whoever is entitled; returns who is not.
fn claim(
    frontends: &mut BTreeMap<FrontendKey, Frontend>,
    key: FrontendKey,
    frontend: &Frontend,
) -> Option<(FrontendKey, Frontend)> {
    match frontends.entry(key) {
        Entry::Vacant(vacant) => {
            vacant.insert(frontend.clone());
            None
        }
        Entry::Occupied(mut occupied) if precedence(frontend) < precedence(occupied.get()) => {
            Some((key, occupied.insert(frontend.clone())))
        }
        Entry::Occupied(_) => Some((key, frontend.clone())),
    }
}

fn precedence(frontend: &Frontend) -> (FrontendKind, &ObjectRef) {
    (frontend.kind, &frontend.set.owner)
}

fn conflict(key: FrontendKey, loser: &Frontend, owner: &Frontend) -> Problem {
    let detail = format!("{} belongs to {}", describe(key, loser.kind), owner.set.owner);
    Problem::new(loser.set.owner.clone(), Reason::Conflict, detail)
}

/// The sets that at least one frontend has.
fn used_sets<'a>(
    plan: &'a ServicePlan,
    frontends: &BTreeMap<FrontendKey, Frontend>,
) -> impl Iterator<Item = (Arc<SetKey>, Arc<BackendSet>)> + 'a {
    let used = |key: &FrontendKey, frontend: &Frontend| {
        frontends.get(key).is_some_and(|owner| owner.set == frontend.set)
    };
    let mut sets: Vec<&Arc<SetKey>> = plan
        .frontends
        .iter()
        .filter(|(key, frontend)| used(key, frontend))
        .map(|(_, frontend)| &frontend.set)
        .collect();
    sets.sort_unstable();
    sets.dedup();
    sets.into_iter().filter_map(|key| {
        let (key, set) = plan.sets.get_key_value(key)?;
        Some((Arc::clone(key), Arc::clone(set)))
    })
}
