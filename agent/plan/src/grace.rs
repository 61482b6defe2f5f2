//! Backends that just went, and stay for a moment longer. Owned by the agent's reconciler; between plan and layout.
//!
//! Whoever writes slices writes one after the other: an endpoint that moves from one to another may be in neither for
//! some milliseconds, and one whose slice or Service is replaced for as long. A flow must not end for that. So a backend
//! that is in no slice any more ends only when it has been missing for [`PERIOD`]; rows lose it at once, so no new
//! connection goes there. Invariant: what is planned is never touched, only added to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quilla_model::SharedMap;

use crate::desired::{BackendKey, Desired};
use crate::tables::Tables;

/// How long a backend that is in no slice keeps its flows, from the round on that misses it first.
///
/// Long enough for a controller to write a few more slices: kube-controller-manager's client writes 20 a second when it
/// is throttled. Not longer than a client waits until it sends again what was not answered (Linux `TCP_RTO_MIN`), so that
/// whose endpoint is really gone loses little by it.
pub const PERIOD: Duration = Duration::from_millis(200);

/// Which backends were planned last, and which are not any more.
#[derive(Clone, Debug, Default)]
pub struct Grace {
    planned: SharedMap<BackendKey, u32>,
    /// When those that went end.
    ends: BTreeMap<BackendKey, Instant>,
}

impl Grace {
    /// What a previous run left: whatever of it nobody plans goes after the same period.
    pub fn recover(tables: &Tables) -> Self {
        let v4 = tables.v4.backend_ids.keys().map(BackendKey::of);
        let v6 = tables.v6.backend_ids.keys().map(BackendKey::of);
        Self { planned: v4.chain(v6).map(|backend| (backend, 1)).collect(), ends: BTreeMap::new() }
    }

    /// Adds the backends that just went to what is desired now. When the first of them ends: that is for the caller to
    /// remember, who is told of no change then.
    pub fn extend(&mut self, desired: &mut Desired, now: Instant) -> Option<Instant> {
        for change in self.planned.difference(&desired.backends) {
            if change.new.is_none() {
                self.ends.insert(*change.key, now + PERIOD);
            } else {
                self.ends.remove(change.key);
            }
        }
        self.planned = desired.backends.clone();
        self.ends.retain(|_, end| now < *end);
        desired.backends.extend(self.ends.keys().map(|backend| (*backend, 0)));
        self.ends.values().min().copied()
    }
}

#[cfg(test)]
#[path = "grace_tests.rs"]
mod tests;
