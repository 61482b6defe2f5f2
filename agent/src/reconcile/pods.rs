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

impl Reconciler {
    /// One round for all wishes. When it fails, one of them may be why: then each has a round of its own.
    pub(super) fn fulfil(&mut self, wishes: Vec<Wish>) {
        let programmed = self.view.borrow().programmed;
        let (wishes, early): (Vec<_>, Vec<_>) =
            wishes.into_iter().partition(|wish| programmed || matches!(wish, Wish::Detach(..)));
        for wish in early {
            wish.answer(Err(ReconcileError::NoSnapshot));
        }
        if wishes.is_empty() {
            return;
        }
        for wish in &wishes {
            self.take(wish);
        }
        match self.try_round() {
            Ok(()) => wishes.into_iter().for_each(|wish| self.conclude(wish)),
            Err(error) => self.blame(wishes, error),
        }
    }

    fn take(&mut self, wish: &Wish) {
        let (Wish::Attach(endpoint, _) | Wish::Detach(endpoint, _)) = wish;
        let key = endpoint.attachment();
        self.absent.remove(&key);
        match wish {
            Wish::Attach(..) => drop(self.endpoints.insert(key, endpoint.as_ref().clone())),
            Wish::Detach(..) => drop(self.endpoints.remove(&key)),
        }
    }

    fn blame(&mut self, wishes: Vec<Wish>, error: ReconcileError) {
        for wish in &wishes {
            if let Wish::Attach(endpoint, _) = wish {
                self.endpoints.remove(&endpoint.attachment());
            }
        }
        match <[Wish; 1]>::try_from(wishes) {
            Ok([only]) => only.answer(Err(error)),
            Err(many) => many.into_iter().for_each(|wish| self.fulfil(vec![wish])),
        }
    }

    fn conclude(&mut self, wish: Wish) {
        let done = match &wish {
            Wish::Attach(endpoint, _) => self.arrived(endpoint),
            Wish::Detach(..) => Ok(()),
        };
        if let (Wish::Attach(endpoint, _), Err(_)) = (&wish, &done) {
            // Whoever asked takes it back, which is the round that removes what rows it has.
            self.endpoints.remove(&endpoint.attachment());
        }
        wish.answer(done);
    }

    fn arrived(&self, endpoint: &AttachedEndpoint) -> Result<(), ReconcileError> {
        failpoint!(RowsWritten, |error| ReconcileError::Missing { what: error.to_string() });
        effective::require(&self.actual, endpoint)
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
        let suffix = format!("-{}", endpoint.host_ifname);
        let links = self.datapath.links()?;
        let attached = links.iter().filter(|link| link.name.ends_with(&suffix) && !link.defunct).count();
        if self.datapath.status().tcx && attached < 2 {
            return Err(missing("programs"));
        }
        Ok(())
    }
}

impl Wish {
    /// Before anything was written in this run there is nothing to remove.
    fn answer(self, result: Result<(), ReconcileError>) {
        match (self, result) {
            (Self::Detach(_, answer), Err(ReconcileError::NoSnapshot)) => answer.give(Ok(())),
            (Self::Attach(_, answer) | Self::Detach(_, answer), result) => answer.give(result),
        }
    }
}
