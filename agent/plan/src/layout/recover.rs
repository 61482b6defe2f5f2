//! A layout from maps that a previous run of the agent left, or that somebody else wrote into. Called at start and after
//! an apply that failed half-way.
//!
//! Invariant: no two things in the recovered layout share a number, whatever the maps said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quilla_abi::backend::Backend;
use quilla_abi::endpoint::Interface;
use quilla_abi::epoch;
use quilla_abi::map::capacity;
use quilla_abi::node::UnderlayAddress;
use quilla_abi::service::{Service, ServiceKey};

use super::Layout;
use crate::family::AddressFamily;
use crate::pool::{IdPool, RangePool};
use crate::tables::{FamilyTables, LaidService, Tables};

impl Layout {
    /// The layout of maps as they were read back. Rows that contradict others have no place in it: the next layout
    /// replaces or removes them.
    pub fn recover(tables: &Tables) -> Self {
        let mut recovery = Recovery { slots: RangePool::new(capacity::SLOTS), sets: BTreeMap::new() };
        let known = Tables {
            v4: recovery.family(&tables.v4),
            v6: recovery.family(&tables.v6),
            interfaces: consistent_interfaces(&tables.interfaces),
            nodes: tables.nodes.range(1..).map(|(slot, row)| (*slot, *row)).collect(),
            node_slots: consistent_node_slots(tables),
            config: tables.config,
        };
        let endpoint_ids = known.interfaces.values().map(|interface| interface.id).collect();
        let node_slots = tables.nodes.keys().chain(tables.node_slots.values()).copied().collect();
        let service_ids = recovery.sets.keys().copied().collect();
        Self {
            age: 0,
            service_ids: IdPool::new(1, u32::MAX, &service_ids),
            slots: recovery.slots,
            backend_ids_v4: backend_pool(&tables.v4, &known.v4),
            backend_ids_v6: backend_pool(&tables.v6, &known.v6),
            endpoint_ids: IdPool::new(1, epoch::MAX_ENDPOINTS, &endpoint_ids),
            node_slots: IdPool::new(1, epoch::MAX_NODES, &node_slots),
            tables: Arc::new(known),
        }
    }
}

/// Collects what is taken while rows are checked.
struct Recovery {
    slots: RangePool,
    /// Slot ranges by the id of their set.
    sets: BTreeMap<u32, (u32, u32)>,
}

impl Recovery {
    /// The rows that agree with one another.
    fn family<A: AddressFamily>(&mut self, found: &FamilyTables<A>) -> FamilyTables<A> {
        let agrees =
            |(row, id): &(&Backend<A>, &u32)| found.backends.get(id) == Some(row) && valid_backend(**id);
        let backend_ids: BTreeMap<_, _> =
            found.backend_ids.iter().filter(agrees).map(|(row, id)| (*row, *id)).collect();
        FamilyTables {
            services: found
                .services
                .iter()
                .filter(|(key, laid)| self.takes(key, laid))
                .map(|(key, laid)| (*key, laid.clone()))
                .collect(),
            backends: backend_ids.iter().map(|(row, id)| (*id, *row)).collect(),
            backend_ids,
            endpoints: found.endpoints.clone(),
            routes: found.routes.clone(),
        }
    }

    /// A marker has nothing; rows of one set have the same id and the same slots.
    fn takes<A>(&mut self, key: &ServiceKey<A>, laid: &LaidService) -> bool {
        let Service { id, slot_base, slot_count, .. } = laid.row;
        if key.port.get() == 0 || key.proto == 0 {
            return (key.port.get(), key.proto) == (0, 0) && laid.row == Service::default();
        }
        let complete = usize::try_from(slot_count).is_ok_and(|count| count == laid.slots.len());
        if let Some(known) = self.sets.get(&id) {
            return *known == (slot_base, slot_count);
        }
        let valid = id != 0 && id != u32::MAX;
        let taken = complete && valid && (slot_count == 0 || self.slots.reserve(slot_base, slot_count));
        if taken {
            self.sets.insert(id, (slot_base, slot_count));
        }
        taken
    }
}

fn valid_backend(id: u32) -> bool {
    (1..epoch::MAX_BACKENDS).contains(&id)
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
    for &id in mentioned.iter().filter(|id| !known.backends.contains_key(id)) {
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
