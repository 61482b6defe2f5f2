//! Session affinity: whom a client used last (S18).
//!
//! Of a packet that went no further than this node nobody can see for whom it was, so what is remembered is a list of
//! candidates, most often of one.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use crate::service::{Frontend, SetId};

#[derive(Debug, Default)]
pub(crate) struct Affinity {
    clients: HashMap<(SetId, IpAddr), Last>,
}

#[derive(Clone, Debug)]
struct Last {
    /// `None` is an endpoint that was deleted: one that comes back under its address is another.
    candidates: Vec<Option<SocketAddr>>,
    used: u64,
}

impl Affinity {
    /// What is known of a client for which a set is to choose: a word of [`crate::coverage`].
    pub(crate) fn story(&self, frontend: &Frontend, client: IpAddr, now: u64) -> &'static str {
        match self.clients.get(&(frontend.set.clone(), client)) {
            None => "first",
            Some(last) if now - last.used >= frontend.affinity => "too old",
            Some(last) if last.candidates.iter().flatten().any(|known| frontend.backends.contains(known)) => {
                "kept"
            }
            Some(_) => "endpoint left",
        }
    }

    /// Whom a new connection of the client may get.
    pub(crate) fn allowed(&self, frontend: &Frontend, client: IpAddr, now: u64) -> Vec<SocketAddr> {
        let last = self.clients.get(&(frontend.set.clone(), client));
        match last.filter(|last| now - last.used < frontend.affinity) {
            None => frontend.backends.clone(),
            Some(last) => {
                let usable = |candidate: &Option<SocketAddr>| {
                    candidate.filter(|candidate| frontend.backends.contains(candidate))
                };
                let kept: Vec<Option<SocketAddr>> = last.candidates.iter().map(usable).collect();
                if kept.contains(&None) {
                    frontend.backends.clone()
                } else {
                    kept.into_iter().flatten().collect()
                }
            }
        }
    }

    /// The client has a new connection, to one of these.
    pub(crate) fn note(&mut self, frontend: &Frontend, client: IpAddr, backends: &[SocketAddr], now: u64) {
        if frontend.affinity > 0 && !backends.is_empty() {
            let candidates = backends.iter().copied().map(Some).collect();
            self.clients.insert((frontend.set.clone(), client), Last { candidates, used: now });
        }
    }

    /// The cluster has changed.
    pub(crate) fn settle(&mut self, sets: &HashSet<SetId>, gone: &HashSet<(SocketAddr, u8)>) {
        self.clients.retain(|(set, _), _| sets.contains(set));
        for ((set, _), last) in &mut self.clients {
            for candidate in &mut last.candidates {
                if candidate.is_some_and(|backend| gone.contains(&(backend, set.proto()))) {
                    *candidate = None;
                }
            }
        }
    }
}
