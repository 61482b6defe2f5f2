//! A layout from maps that a previous run of the agent left, or that somebody else wrote into. Called at start and after
//! an apply that failed half-way.
//!
//! The maps do not say which rows belong to one set: a set that is laid out for the first time takes the id and the
//! range of the first of its frontends that has a row, and what nobody takes is given back. Invariant: no two things in
//! the recovered layout share a number, whatever the maps said.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use quilla_abi::backend::Backend;
use quilla_abi::endpoint::Interface;
use quilla_abi::epoch;
use quilla_abi::map::capacity;
use quilla_abi::node::UnderlayAddress;
use quilla_abi::service::{Service, ServiceKey};

use super::Layout;
use super::frontend::{Crowded, is_marker};
use super::row::service_key;
use super::set::{Place, Sets};
use crate::desired::{Desired, FrontendKey};
use crate::family::AddressFamily;
use crate::pool::{IdPool, RangePool};
use crate::tables::{FamilyTables, Tables};

/// Ids that sets can have.
const SERVICE_IDS: Range<u32> = 1..u32::MAX;

/// What a previous run left and nobody has asked for yet.
#[derive(Clone, Debug)]
pub(super) struct Recovered {
    tables: Arc<Tables>,
    backends_v4: BTreeSet<u32>,
    backends_v6: BTreeSet<u32>,
    ids: BTreeSet<u32>,
    /// Lengths of slot ranges by their first slot.
    ranges: BTreeMap<u32, u32>,
}

impl Recovered {
    /// The id of a backend.
    pub(super) fn backend<A: AddressFamily>(&mut self, row: &Backend<A>) -> Option<u32> {
        let id = *A::tables(&self.tables).backend_ids.get(row)?;
        let v4 = A::GENERATIONS == epoch::BACKENDS_V4;
        let left = if v4 { &mut self.backends_v4 } else { &mut self.backends_v6 };
        left.remove(&id).then_some(id)
    }

    /// The place of a set with these frontends.
    pub(super) fn set(&mut self, frontends: &[FrontendKey]) -> Option<Place> {
        let rows = frontends.iter().filter_map(|key| self.row(key));
        let row = rows.into_iter().find(|row| self.ids.contains(&row.id))?;
        self.ids.remove(&row.id);
        let slots = self.tables.slots_of(&row)?;
        let kept = slots.is_empty() || self.ranges.remove(&row.slot_base).is_some();
        Some(Place::recovered(&row, if kept { slots } else { [].into() }))
    }

    fn row(&self, key: &FrontendKey) -> Option<Service> {
        let v4 = || self.tables.v4.services.get(&service_key(key)?);
        let v6 = || self.tables.v6.services.get(&service_key(key)?);
        v4().or_else(v6).copied()
    }
}

impl Layout {
    /// The layout of maps as they were read back. Rows that contradict others have no place in it: the next layout
    /// replaces or removes them.
    pub fn recover(tables: &Tables) -> Self {
        let mut recovery = Recovery::new(tables);
        let (v4, v6) = (recovery.family(&tables.v4), recovery.family(&tables.v6));
        let known = Arc::new(Tables {
            v4,
            v6,
            slots: recovery.found.slots.clone(),
            affinity_members: tables.affinity_members.clone(),
            interfaces: consistent_interfaces(&tables.interfaces),
            nodes: tables.nodes.range(1..).map(|(slot, row)| (*slot, *row)).collect(),
            node_slots: consistent_node_slots(tables),
            config: tables.config,
        });
        let endpoint_ids = known.interfaces.values().map(|interface| interface.id).collect();
        let node_slots = tables.nodes.keys().chain(tables.node_slots.values()).copied().collect();
        Self {
            age: 0,
            desired: Desired::default(),
            sets: Sets::default(),
            crowded: Crowded::default(),
            service_ids: service_pool(tables, &recovery.ids),
            slots: recovery.slots,
            backend_ids_v4: backend_pool(&tables.v4, &known.v4),
            backend_ids_v6: backend_pool(&tables.v6, &known.v6),
            endpoint_ids: IdPool::new(1, epoch::MAX_ENDPOINTS, &endpoint_ids),
            node_slots: IdPool::new(1, epoch::MAX_NODES, &node_slots),
            recovered: Some(Recovered {
                backends_v4: known.v4.backends.keys().copied().collect(),
                backends_v6: known.v6.backends.keys().copied().collect(),
                ids: recovery.ids,
                ranges: recovery.ranges,
                tables: Arc::clone(&known),
            }),
            tables: known,
        }
    }

    /// Gives back what the first layout did not ask for.
    pub(super) fn forget_recovered(&mut self) {
        let Some(recovered) = self.recovered.take() else { return };
        let Recovered { backends_v4, backends_v6, ids, ranges, .. } = recovered;
        let pools = [
            (&mut self.backend_ids_v4, backends_v4),
            (&mut self.backend_ids_v6, backends_v6),
            (&mut self.service_ids, ids),
        ];
        for (pool, ids) in pools {
            for id in ids {
                pool.give_back(id, self.age);
            }
        }
        for (base, length) in ranges {
            self.slots.give_back(base, length, self.age);
        }
    }
}

/// Collects what is taken while rows are checked.
struct Recovery<'a> {
    found: &'a Tables,
    slots: RangePool,
    ids: BTreeSet<u32>,
    ranges: BTreeMap<u32, u32>,
}

impl<'a> Recovery<'a> {
    fn new(found: &'a Tables) -> Self {
        let slots = RangePool::new(capacity::SLOTS);
        Self { found, slots, ids: BTreeSet::new(), ranges: BTreeMap::new() }
    }

    /// The rows that agree with one another.
    fn family<A: AddressFamily>(&mut self, found: &FamilyTables<A>) -> FamilyTables<A> {
        let agrees =
            |(row, id): &(&Backend<A>, &u32)| found.backends.get(*id) == Some(*row) && valid_backend(**id);
        let backend_ids: Vec<_> =
            found.backend_ids.iter().filter(agrees).map(|(row, id)| (*row, *id)).collect();
        FamilyTables {
            services: found
                .services
                .sorted()
                .into_iter()
                .filter(|(key, row)| self.takes(key, row))
                .map(|(key, row)| (*key, *row))
                .collect(),
            source_ranges: found.source_ranges.clone(),
            backends: backend_ids.iter().map(|(row, id)| (*id, *row)).collect(),
            backend_ids: backend_ids.into_iter().collect(),
            endpoints: found.endpoints.clone(),
            routes: found.routes.clone(),
        }
    }

    /// Rows may share an id and a range, as the frontends of a set do.
    fn takes<A>(&mut self, key: &ServiceKey<A>, row: &Service) -> bool {
        if is_marker(key) {
            return true;
        }
        let Service { id, slot_base, slot_count, .. } = *row;
        let whole = self.found.slots_of(row).is_some() && SERVICE_IDS.contains(&id);
        let known = self.ranges.get(&slot_base) == Some(&slot_count);
        let taken = whole && (slot_count == 0 || known || self.slots.reserve(slot_base, slot_count));
        if taken {
            self.ids.insert(id);
            if slot_count > 0 {
                self.ranges.insert(slot_base, slot_count);
            }
        }
        taken
    }
}

fn valid_backend(id: u32) -> bool {
    (1..epoch::MAX_BACKENDS).contains(&id)
}

/// Ids that only members or source ranges mention rest first: what is written for them goes with the first layout.
fn service_pool(found: &Tables, known: &BTreeSet<u32>) -> IdPool {
    let members = found.affinity_members.keys().map(|key| key.service);
    let v4 = found.v4.source_ranges.keys().map(|key| u32::from_be_bytes(key.id));
    let v6 = found.v6.source_ranges.keys().map(|key| u32::from_be_bytes(key.id));
    let mentioned: BTreeSet<u32> =
        members.chain(v4).chain(v6).filter(|id| SERVICE_IDS.contains(id)).collect();
    let mut pool = IdPool::new(SERVICE_IDS.start, SERVICE_IDS.end, &(known | &mentioned));
    for &id in mentioned.difference(known) {
        pool.give_back(id, 0);
    }
    pool
}

/// Ids that the maps mention without agreeing on them rest first, as if they were freed now.
fn backend_pool<A: AddressFamily>(found: &FamilyTables<A>, known: &FamilyTables<A>) -> IdPool {
    let mentioned: BTreeSet<u32> = found
        .backends
        .keys()
        .chain(found.backend_ids.values())
        .copied()
        .filter(|&id| valid_backend(id))
        .collect();
    let mut pool = IdPool::new(1, epoch::MAX_BACKENDS, &mentioned);
    for &id in mentioned.iter().filter(|id| !known.backends.contains_key(*id)) {
        pool.give_back(id, 0);
    }
    pool
}

fn consistent_interfaces(found: &BTreeMap<u32, Interface>) -> BTreeMap<u32, Interface> {
    let mut ids = BTreeSet::new();
    let known =
        found.iter().filter(|(_, row)| (1..epoch::MAX_ENDPOINTS).contains(&row.id) && ids.insert(row.id));
    known.map(|(ifindex, row)| (*ifindex, *row)).collect()
}

fn consistent_node_slots(found: &Tables) -> BTreeMap<UnderlayAddress, u32> {
    let known = found.node_slots.iter().filter(|(_, slot)| (1..epoch::MAX_NODES).contains(slot));
    known.map(|(address, slot)| (*address, *slot)).collect()
}
