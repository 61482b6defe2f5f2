//! Rows of frontends and markers. Called by the layout; asks for backends and sets first.

use std::collections::BTreeSet;
use std::sync::Arc;

use quilla_abi::map::capacity;
use quilla_abi::service::{Service, ServiceKey};
use quilla_model::{ObjectRef, Problem, Reason};

use super::Layout;
use super::row::{marker_key, service_key};
use super::set::usable;
use crate::desired::{BackendKey, Desired, FrontendKey, SetKey};
use crate::family::AddressFamily;
use crate::tables::Tables;

/// What found no room; tried again in each layout, because room comes with time.
#[derive(Clone, Debug, Default)]
pub(super) struct Crowded {
    pub(super) backends: BTreeSet<BackendKey>,
    pub(super) sets: BTreeSet<Arc<SetKey>>,
    pub(super) frontends: BTreeSet<FrontendKey>,
}

impl Layout {
    /// Everything that Services need.
    pub(super) fn place_services(
        &mut self,
        desired: &Desired,
        tables: &mut Tables,
        problems: &mut Vec<Problem>,
    ) {
        self.place_backends(desired, tables);
        let mut touched = self.follow_frontends(desired);
        self.place_sets(desired, tables, &mut touched);
        touched.sort_unstable();
        touched.dedup();
        self.place_markers::<[u8; 4]>(desired, tables);
        self.place_markers::<[u8; 16]>(desired, tables);
        self.place_frontends::<[u8; 4]>(&touched, desired, tables);
        self.place_frontends::<[u8; 16]>(&touched, desired, tables);
        self.complain(desired, problems);
    }

    /// Tells sets of the frontends that came to them and left them. Those whose rows may change.
    fn follow_frontends(&mut self, desired: &Desired) -> Vec<FrontendKey> {
        let mut touched: Vec<_> = std::mem::take(&mut self.crowded.frontends).into_iter().collect();
        for change in self.desired.frontends.difference(&desired.frontends) {
            touched.push(*change.key);
            if let Some(set) = change.old.and_then(|old| self.sets.get_mut(&old.set)) {
                set.remove_frontend(change.key);
            }
            if let Some(new) = change.new {
                self.sets.entry(Arc::clone(&new.set)).or_default().add_frontend(*change.key);
            }
        }
        touched
    }

    /// Removals first: they may make the room that others need.
    fn place_frontends<A: AddressFamily>(
        &mut self,
        touched: &[FrontendKey],
        desired: &Desired,
        tables: &mut Tables,
    ) {
        let keys = || touched.iter().filter_map(|key| Some((key, service_key::<A>(key)?)));
        let services = &mut A::tables_mut(tables).services;
        let mut rows = Vec::new();
        for (key, service_key) in keys() {
            match self.frontend_row(key, desired) {
                Some(row) => rows.push((key, service_key, row)),
                None => drop(services.remove(&service_key)),
            }
        }
        for (key, service_key, row) in rows {
            if services.len() < usable(capacity::SERVICES) || services.contains_key(&service_key) {
                services.insert(service_key, row);
            } else {
                self.crowded.frontends.insert(*key);
            }
        }
    }

    fn frontend_row(&self, key: &FrontendKey, desired: &Desired) -> Option<Service> {
        let frontend = desired.frontends.get(key)?;
        self.sets.get(&frontend.set)?.row(desired.sets.get(&frontend.set)?, frontend.flags)
    }

    /// An address without its marker is only less polite to those who mistake the port.
    fn place_markers<A: AddressFamily>(&mut self, desired: &Desired, tables: &mut Tables) {
        let services = &mut A::tables_mut(tables).services;
        for change in self.desired.markers.difference(&desired.markers) {
            let Some(key) = marker_key::<A>(change.key) else { continue };
            if change.new.is_none() {
                services.remove(&key);
            } else if services.len() < usable(capacity::SERVICES) {
                services.insert(key, Service::default());
            }
        }
    }

    fn complain(&self, desired: &Desired, problems: &mut Vec<Problem>) {
        let problem = |object: &ObjectRef, detail| Problem::new(object.clone(), Reason::Capacity, detail);
        for key in &self.crowded.sets {
            let detail = format!("no room for all backends of port {:?}", key.port_name);
            problems.push(problem(&key.owner, detail));
        }
        for key in &self.crowded.frontends {
            let Some(frontend) = desired.frontends.get(key) else { continue };
            let detail = format!("no room for port {} on {}", key.port, key.address);
            problems.push(problem(&frontend.set.owner, detail));
        }
    }
}

/// Whether a row stands for an address and not for a frontend.
pub(super) fn is_marker<A>(key: &ServiceKey<A>) -> bool {
    key.port.get() == 0 && key.proto == 0
}
