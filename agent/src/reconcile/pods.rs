//! Endpoints that come, go or are asked about, as the CNI server has it.
//!
//! Any number of them take one round together. Their programs are attached before and detached after it, by whoever asks.
//! Invariant: nobody is told of success before a round with his endpoint, or without it, is over.

use quilla_cni_protocol::failpoint;

use super::{Answer, ReconcileError, Reconciler, effective};
use crate::cni::AttachedEndpoint;

/// An endpoint that is to come or to go, and who waits for it.
#[derive(Debug)]
pub(super) enum Wish {
    Attach(Box<AttachedEndpoint>, Answer),
    Detach(Box<AttachedEndpoint>, Answer),
}

/// What wishes need of the reconciler.
trait Rounds {
    /// The next round has this endpoint, or is without it.
    fn take(&mut self, wish: &Wish);
    /// The next round is without this one again.
    fn take_back(&mut self, arrival: &Wish);
    fn round(&mut self) -> Result<(), ReconcileError>;
    /// Whether the last round made the endpoint effective.
    fn arrived(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError>;
}

/// One round for all wishes. When it fails, those who come may be why, or none of them: one without them tells.
fn fulfil(rounds: &mut impl Rounds, wishes: Vec<Wish>) {
    let Err(error) = attempt(rounds, &wishes) else { return conclude(rounds, wishes) };
    let (arrivals, departures): (Vec<_>, Vec<_>) =
        wishes.into_iter().partition(|wish| matches!(wish, Wish::Attach(..)));
    if departures.is_empty() && arrivals.len() == 1 {
        return refuse(arrivals, &error);
    }
    let without = if arrivals.is_empty() { Err(error.for_another()) } else { rounds.round() };
    match without {
        Ok(()) => {
            conclude(rounds, departures);
            narrow(rounds, arrivals, &error);
        }
        Err(error) => {
            refuse(arrivals, &error);
            refuse(departures, &error);
        }
    }
}

/// One of them is to blame: halves are tried until it is alone.
fn narrow(rounds: &mut impl Rounds, mut arrivals: Vec<Wish>, error: &ReconcileError) {
    if arrivals.len() == 1 {
        return refuse(arrivals, error);
    }
    let rest = arrivals.split_off(arrivals.len() / 2);
    for half in [arrivals, rest] {
        match attempt(rounds, &half) {
            Ok(()) => conclude(rounds, half),
            Err(error) => narrow(rounds, half, &error),
        }
    }
}

/// A round with these; when it fails, those who come have not come.
fn attempt(rounds: &mut impl Rounds, wishes: &[Wish]) -> Result<(), ReconcileError> {
    for wish in wishes {
        rounds.take(wish);
    }
    let done = rounds.round();
    if done.is_err() {
        let arrivals = wishes.iter().filter(|wish| matches!(wish, Wish::Attach(..)));
        arrivals.for_each(|wish| rounds.take_back(wish));
    }
    done
}

fn conclude(rounds: &mut impl Rounds, wishes: Vec<Wish>) {
    for wish in wishes {
        let done = match &wish {
            Wish::Attach(endpoint, _) => rounds.arrived(endpoint),
            Wish::Detach(..) => Ok(()),
        };
        if done.is_err() {
            // Whoever asked takes it back, which is the round that removes what rows it has.
            rounds.take_back(&wish);
        }
        wish.answer(done);
    }
}

fn refuse(wishes: Vec<Wish>, error: &ReconcileError) {
    for wish in wishes {
        wish.answer(Err(error.for_another()));
    }
}

impl Wish {
    const fn endpoint(&self) -> &AttachedEndpoint {
        let (Self::Attach(endpoint, _) | Self::Detach(endpoint, _)) = self;
        endpoint
    }

    /// Before anything was written in this run there is nothing to remove.
    fn answer(self, result: Result<(), ReconcileError>) {
        match (self, result) {
            (Self::Detach(_, answer), Err(ReconcileError::NoSnapshot)) => answer.give(Ok(())),
            (Self::Attach(_, answer) | Self::Detach(_, answer), result) => answer.give(result),
        }
    }
}

impl Rounds for Reconciler {
    fn take(&mut self, wish: &Wish) {
        let key = wish.endpoint().attachment();
        self.absent.remove(&key);
        match wish {
            Wish::Attach(endpoint, _) => drop(self.endpoints.insert(key, endpoint.as_ref().clone())),
            Wish::Detach(..) => drop(self.endpoints.remove(&key)),
        }
    }

    fn take_back(&mut self, arrival: &Wish) {
        self.endpoints.remove(&arrival.endpoint().attachment());
    }

    fn round(&mut self) -> Result<(), ReconcileError> {
        self.try_round()
    }

    fn arrived(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
        failpoint!(RowsWritten, |error| ReconcileError::Missing { what: error.to_string() });
        effective::require(&self.actual, endpoint)?;
        self.require_untouched(endpoint)
    }
}

impl Reconciler {
    pub(super) fn fulfil(&mut self, wishes: Vec<Wish>) {
        fulfil(self, wishes);
    }

    pub(super) fn check(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
        let missing =
            |what: &str| ReconcileError::Missing { what: format!("{what} of {}", endpoint.host_ifname) };
        let known = self.endpoints.get(&endpoint.attachment());
        if known.is_none_or(|known| known != endpoint) {
            return Err(missing("endpoint"));
        }
        let row = self.datapath.maps().interfaces.get(&endpoint.host_ifindex)?;
        if row.as_ref() != self.actual.interfaces.get(&endpoint.host_ifindex) {
            return Err(missing("interface row"));
        }
        effective::require(&self.actual, endpoint)?;
        self.require_programs(endpoint)
    }
}

#[cfg(test)]
mod tests;
