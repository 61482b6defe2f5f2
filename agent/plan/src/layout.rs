//! Where everything is in the kernel's maps: ids, slot ranges, node slots. Owned by the agent's reconciler.
//!
//! What did not change keeps its place; a changed set of backends gets a new range of slots, so that the old one stays
//! intact for readers until the Service row is flipped. The identity of a thing is in its row (a backend's address, a
//! node's underlay address, an endpoint's ifindex), so that a layout can be rebuilt from the maps alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quilla_abi::backend::Backend;
use quilla_abi::endpoint::Interface;
use quilla_abi::epoch;
use quilla_abi::map::capacity;
use quilla_abi::service::{Service, ServiceKey};
use quilla_model::{ObjectRef, Problem, Reason};

use crate::desired::{BackendKey, BackendSet, Desired, Frontend, FrontendKey, Member, SetKey, Tunnel};
use crate::facts::LocalEndpoint;
use crate::family::AddressFamily;
use crate::pool::{IdPool, RangePool};
use crate::tables::{FamilyTables, LaidService, Tables};

mod recover;
mod row;

use row::{
    backend_row, endpoint_rows, interface_row, marker_row, node_row, node_slots, route_rows, service_key,
    underlay_addresses,
};

/// Frontends of one family. New rows are written before old ones are removed, so the map must never be quite full.
const MAX_SERVICES: usize = (capacity::SERVICES - capacity::SERVICES / 16) as usize;

/// The places of everything, and what is free.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Counts layouts; the clock of the quarantine.
    age: u64,
    tables: Arc<Tables>,
    service_ids: IdPool,
    slots: RangePool,
    backend_ids_v4: IdPool,
    backend_ids_v6: IdPool,
    endpoint_ids: IdPool,
    node_slots: IdPool,
}

impl Layout {
    /// The tables of the last layout.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// The tables that do what is desired, as close to the last ones as can be. What finds no room is left out and
    /// reported.
    pub fn lay_out(&mut self, desired: &Desired) -> (Arc<Tables>, Vec<Problem>) {
        self.age += 1;
        self.mature();
        let old = Arc::clone(&self.tables);
        let mut problems = Vec::new();
        let slots = self.place_nodes(&desired.tunnels, &old, &mut problems);
        let interfaces = self.place_interfaces(&desired.endpoints, &old, &mut problems);
        let tables = Tables {
            v4: self.family(desired, &old.v4, &interfaces, &slots, &mut problems),
            v6: self.family(desired, &old.v6, &interfaces, &slots, &mut problems),
            nodes: slots.iter().map(|(name, &slot)| (slot, node_row(&desired.tunnels[*name]))).collect(),
            node_slots: node_slots(&desired.tunnels, &slots),
            interfaces,
            config: desired.config,
        };
        self.tables = Arc::new(tables);
        (Arc::clone(&self.tables), problems)
    }

    fn mature(&mut self) {
        let ids = [&mut self.service_ids, &mut self.backend_ids_v4, &mut self.backend_ids_v6];
        for pool in ids.into_iter().chain([&mut self.endpoint_ids, &mut self.node_slots]) {
            pool.mature(self.age);
        }
        self.slots.mature(self.age);
    }

    fn backend_pool<A: AddressFamily>(&mut self) -> &mut IdPool {
        if A::GENERATIONS == epoch::BACKENDS_V4 { &mut self.backend_ids_v4 } else { &mut self.backend_ids_v6 }
    }

    fn family<A: AddressFamily>(
        &mut self,
        desired: &Desired,
        old: &FamilyTables<A>,
        interfaces: &BTreeMap<u32, Interface>,
        node_slots: &BTreeMap<&str, u32>,
        problems: &mut Vec<Problem>,
    ) -> FamilyTables<A> {
        let backend_ids = self.place_backends(&desired.backends, old);
        FamilyTables {
            services: self.place_services(desired, old, &backend_ids, problems),
            backends: backend_ids.iter().map(|(&row, &id)| (id, row)).collect(),
            backend_ids,
            endpoints: endpoint_rows(&desired.endpoints, interfaces, problems),
            routes: route_rows(&desired.routes, node_slots),
        }
    }

    fn place_backends<A: AddressFamily>(
        &mut self,
        backends: &[BackendKey],
        old: &FamilyTables<A>,
    ) -> BTreeMap<Backend<A>, u32> {
        let age = self.age;
        let pool = self.backend_pool::<A>();
        let place =
            |row: Backend<A>| Some((row, old.backend_ids.get(&row).copied().or_else(|| pool.take())?));
        let placed: BTreeMap<_, _> = backends.iter().filter_map(backend_row).filter_map(place).collect();
        for (row, &id) in &old.backend_ids {
            if !placed.contains_key(row) {
                pool.give_back(id, age);
            }
        }
        placed
    }

    fn place_services<A: AddressFamily>(
        &mut self,
        desired: &Desired,
        old: &FamilyTables<A>,
        backend_ids: &BTreeMap<Backend<A>, u32>,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<ServiceKey<A>, LaidService> {
        let mut placed: BTreeMap<_, _> = desired.markers.iter().filter_map(marker_row).collect();
        let mut sets: BTreeMap<&SetKey, Option<LaidService>> = BTreeMap::new();
        let mut previous = previous_sets(&desired.frontends, &old.services);
        for (key, frontend) in &desired.frontends {
            let Some(service_key) = service_key(key) else { continue };
            let mut complete = true;
            let room = placed.len() < MAX_SERVICES;
            let laid = room.then(|| {
                sets.entry(&frontend.set).or_insert_with(|| {
                    let set = &desired.sets[&frontend.set];
                    let slots = set.slots(frontend.set.maglev, desired.maglev_density);
                    let ids = slot_ids(set, &slots, backend_ids);
                    complete = ids.len() == slots.len();
                    self.place_set(previous.remove(frontend.set.as_ref()), set, ids)
                })
            });
            let laid = laid.and_then(|laid| laid.clone());
            if laid.is_none() || !complete {
                let detail = format!("no room for all of port {} on {}", key.port, key.address);
                problems.push(Problem::new(frontend.set.owner.clone(), Reason::Capacity, detail));
            }
            placed.extend(laid.map(|mut laid| {
                laid.row.flags |= frontend.flags;
                (service_key, laid)
            }));
        }
        self.give_back_sets(&old.services, &placed);
        placed
    }

    /// The same place if the slots are the same; else the same id and a new range.
    fn place_set(
        &mut self,
        old: Option<&LaidService>,
        set: &BackendSet,
        slots: Vec<u32>,
    ) -> Option<LaidService> {
        let slot_count = u32::try_from(slots.len()).ok()?;
        let kept = old.filter(|old| *old.slots == *slots);
        let slot_base = match kept {
            Some(old) => old.row.slot_base,
            None if slots.is_empty() => 0,
            None => self.slots.take(slot_count)?,
        };
        let id = match old {
            Some(old) => old.row.id,
            None => self.service_ids.take()?,
        };
        let slots = kept.map_or_else(|| slots.into(), |old| Arc::clone(&old.slots));
        let BackendSet { affinity_seconds, slow_start_seconds, flags, .. } = *set;
        let row = Service { id, slot_base, slot_count, affinity_seconds, slow_start_seconds, flags };
        Some(LaidService { row, slots })
    }

    /// Ids that no row has any more, and ranges that no row names any more.
    fn give_back_sets<A: AddressFamily>(
        &mut self,
        old: &BTreeMap<ServiceKey<A>, LaidService>,
        new: &BTreeMap<ServiceKey<A>, LaidService>,
    ) {
        let now: BTreeMap<u32, u32> = new.values().map(|laid| (laid.row.id, laid.row.slot_base)).collect();
        let before: BTreeMap<u32, &LaidService> = old.values().map(|laid| (laid.row.id, laid)).collect();
        for (id, laid) in before.range(1..) {
            if !now.contains_key(id) {
                self.service_ids.give_back(*id, self.age);
            }
            if now.get(id) != Some(&laid.row.slot_base) {
                self.give_back_slots(laid);
            }
        }
    }

    fn give_back_slots(&mut self, laid: &LaidService) {
        if laid.row.slot_count > 0 {
            self.slots.give_back(laid.row.slot_base, laid.row.slot_count, self.age);
        }
    }

    /// A node is known by either of its addresses.
    fn place_nodes<'a>(
        &mut self,
        tunnels: &'a BTreeMap<String, Tunnel>,
        old: &Tables,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<&'a str, u32> {
        let mut used = BTreeSet::new();
        let mut placed = BTreeMap::new();
        for (name, tunnel) in tunnels {
            let known = underlay_addresses(tunnel).find_map(|address| old.node_slots.get(&address).copied());
            let slot = known.filter(|slot| !used.contains(slot)).or_else(|| self.node_slots.take());
            match slot {
                Some(slot) => {
                    used.insert(slot);
                    placed.insert(name.as_str(), slot);
                }
                None => problems.push(Problem::new(
                    ObjectRef::cluster("Node", name),
                    Reason::Capacity,
                    "no free node slot",
                )),
            }
        }
        let previous: BTreeSet<u32> = old.nodes.keys().chain(old.node_slots.values()).copied().collect();
        for &slot in previous.difference(&used) {
            self.node_slots.give_back(slot, self.age);
        }
        placed
    }

    fn place_interfaces(
        &mut self,
        endpoints: &BTreeMap<u32, LocalEndpoint>,
        old: &Tables,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<u32, Interface> {
        let mut placed = BTreeMap::new();
        for (ifindex, endpoint) in endpoints {
            let known = old.interfaces.get(ifindex).map(|interface| interface.id);
            match known.or_else(|| self.endpoint_ids.take()) {
                Some(id) => {
                    placed.insert(*ifindex, interface_row(id, endpoint));
                }
                None => problems.push(Problem::new(
                    ObjectRef::new("Pod", &endpoint.pod),
                    Reason::Capacity,
                    "no free endpoint id",
                )),
            }
        }
        for (_, gone) in old.interfaces.iter().filter(|(ifindex, _)| !placed.contains_key(ifindex)) {
            self.endpoint_ids.give_back(gone.id, self.age);
        }
        placed
    }
}

/// The place that each set had, by any of its frontends; no two sets get the same.
fn previous_sets<'a, A: AddressFamily>(
    frontends: &'a BTreeMap<FrontendKey, Frontend>,
    old: &'a BTreeMap<ServiceKey<A>, LaidService>,
) -> BTreeMap<&'a SetKey, &'a LaidService> {
    let mut previous: BTreeMap<&SetKey, &LaidService> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for (key, frontend) in frontends {
        let Some(laid) = service_key(key).and_then(|key| old.get(&key)) else { continue };
        if laid.row.id != 0 && !previous.contains_key(frontend.set.as_ref()) && taken.insert(laid.row.id) {
            previous.insert(&frontend.set, laid);
        }
    }
    previous
}

/// The ids of the backends in `slots`; those without an id are left out.
fn slot_ids<A: AddressFamily>(
    set: &BackendSet,
    slots: &[u32],
    backend_ids: &BTreeMap<Backend<A>, u32>,
) -> Vec<u32> {
    let id = |member: &Member| backend_ids.get(&backend_row(&member.backend)?).copied();
    let ids: Vec<Option<u32>> = set.members.iter().map(id).collect();
    slots.iter().filter_map(|&index| *ids.get(index as usize)?).collect()
}

impl Default for Layout {
    fn default() -> Self {
        Self::recover(&Tables::default())
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
