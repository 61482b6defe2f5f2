//! Who has which address and port where several objects ask for the same. Called by [`crate::planner`].
//!
//! The more entitled kind of address has it, then the first by name of its object. The loser is named in a problem and
//! keeps everything else. Invariant: the result does not depend on what was there before, so every node and every
//! restart decides alike.

use std::collections::{BTreeMap, BTreeSet};

use quilla_model::{ObjectName, Problem, Reason, SharedMap};

use crate::desired::{Frontend, FrontendKey, FrontendKind};
use crate::frontend::describe;

/// Who claims: Services come before Pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// A Service.
    Service(ObjectName),
    /// A Pod with host ports, and the number of its interface: a Pod of the same name may not be quite gone.
    Pod(ObjectName, u32),
}

type Claimants = BTreeMap<(FrontendKind, Owner), Frontend>;

/// The frontends that more than one object claims, each with all who do.
#[derive(Debug, Default)]
pub(crate) struct Claims(BTreeMap<FrontendKey, Claimants>);

impl Claims {
    /// Adds a claim. `incumbent` says who has the address now, if anybody has.
    pub(crate) fn add(
        &mut self,
        key: FrontendKey,
        (owner, frontend): (&Owner, &Frontend),
        incumbent: impl FnOnce(&Frontend) -> Owner,
        frontends: &mut SharedMap<FrontendKey, Frontend>,
    ) {
        let claim = ((frontend.kind, owner.clone()), frontend.clone());
        let Some(first) = frontends.get(&key) else {
            frontends.insert(key, claim.1);
            return;
        };
        let claimants = self.0.entry(key).or_insert_with(|| {
            let first_claim = ((first.kind, incumbent(first)), first.clone());
            Claimants::from([first_claim])
        });
        claimants.insert(claim.0, claim.1);
        settle(key, claimants, frontends);
    }

    /// Takes a claim back.
    pub(crate) fn remove(
        &mut self,
        key: FrontendKey,
        owner: &Owner,
        frontends: &mut SharedMap<FrontendKey, Frontend>,
    ) {
        let Some(claimants) = self.0.get_mut(&key) else {
            frontends.remove(&key);
            return;
        };
        claimants.retain(|(_, claimant), _| claimant != owner);
        settle(key, claimants, frontends);
        if claimants.len() < 2 {
            self.0.remove(&key);
        }
    }

    /// One problem for each loser; both scopes of an address are lost together.
    pub(crate) fn conflicts(&self) -> BTreeSet<Problem> {
        let losers = |(key, claimants): (&FrontendKey, &Claimants)| {
            let winner = claimants.values().next().map(|winner| winner.set.owner.clone());
            let conflict = move |key: FrontendKey, loser: &Frontend| {
                let owner = winner.as_ref().map_or_else(String::new, ToString::to_string);
                let detail = format!("{} belongs to {owner}", describe(key, loser.kind));
                Problem::new(loser.set.owner.clone(), Reason::Conflict, detail)
            };
            claimants.values().skip(1).map(|loser| conflict(*key, loser)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(losers).collect()
    }
}

/// Gives the address to the first.
fn settle(key: FrontendKey, claimants: &Claimants, frontends: &mut SharedMap<FrontendKey, Frontend>) {
    match claimants.values().next() {
        Some(winner) if frontends.get(&key) == Some(winner) => {}
        Some(winner) => drop(frontends.insert(key, winner.clone())),
        None => drop(frontends.remove(&key)),
    }
}
