//! A model of the kernel's maps: carries steps out row by row and checks after each row what a packet could see.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::sync::Arc;

use quilla_abi::affinity::MemberKey;
use quilla_abi::backend::Backend;
use quilla_abi::config::Config;
use quilla_abi::endpoint::{Endpoint, Interface};
use quilla_abi::node::Node;
use quilla_abi::route::{Route, RouteKey, kind};
use quilla_abi::service::{Service, ServiceKey, SourceRangeKey, flag};
use quilla_model::SharedMap;
use quilla_plan::{Appearance, FamilyStep, FamilyTables, Step, Tables};

/// The maps, slots included.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) v4: FamilyMaps<[u8; 4]>,
    pub(crate) v6: FamilyMaps<[u8; 16]>,
    slots: BTreeMap<u32, u32>,
    members: BTreeSet<MemberKey>,
    /// Those that the steps take away.
    leaving: BTreeSet<MemberKey>,
    /// What rows chose without a member when the steps began: a death in their middle may leave some, to be put right.
    forgotten: BTreeSet<MemberKey>,
    interfaces: BTreeMap<u32, Interface>,
    nodes: BTreeMap<u32, Node>,
    node_slots: BTreeMap<[u8; 16], u32>,
    config: Config,
    pub(crate) epochs: BTreeMap<u32, u32>,
}

#[derive(Debug)]
pub(crate) struct FamilyMaps<A> {
    pub(crate) services: BTreeMap<ServiceKey<A>, Service>,
    pub(crate) backends: BTreeMap<u32, Backend<A>>,
    pub(crate) backend_ids: BTreeMap<Backend<A>, u32>,
    /// Backends that were said to appear, and how often for the first time and again.
    pub(crate) loads: BTreeMap<u32, (u32, u32)>,
    source_ranges: BTreeSet<SourceRangeKey<A>>,
    endpoints: BTreeMap<A, Endpoint>,
    routes: BTreeMap<RouteKey<A>, Route>,
    /// Rows that the steps are yet to write or to remove.
    pending: Keys<A>,
    /// Rows that they wrote.
    written: Keys<A>,
}

impl<A> Default for FamilyMaps<A> {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            backend_ids: BTreeMap::new(),
            loads: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            routes: BTreeMap::new(),
            pending: BTreeSet::new(),
            written: BTreeSet::new(),
        }
    }
}

impl Kernel {
    /// Carries the steps out, or the first `limit` rows of them; returns how many rows it wrote.
    pub(crate) fn apply(&mut self, steps: &[Step], limit: usize) -> usize {
        let removed = |step: &Step| match step {
            Step::RemoveMembers(keys) => keys.clone(),
            _ => Vec::new(),
        };
        let chosen: BTreeSet<_> = self.v4.chosen(&self.slots).chain(self.v6.chosen(&self.slots)).collect();
        self.leaving = steps.iter().flat_map(removed).collect();
        self.forgotten = chosen.difference(&self.members).copied().collect();
        (self.v4.pending, self.v6.pending) = pending(steps);
        self.v4.written.clear();
        self.v6.written.clear();
        let mut written = 0;
        for step in steps {
            for row in 0..step.rows() {
                if written == limit {
                    return written;
                }
                self.write(step, row);
                self.check(&format!("after row {row} of {}", step.map()));
                written += 1;
            }
        }
        self.leaving.clear();
        self.forgotten.clear();
        self.check("at the end");
        written
    }

    /// The maps as the agent would read them back.
    pub(crate) fn dump(&self) -> Tables {
        let mut slots = SharedMap::new();
        self.v4.add_ranges(&self.slots, &mut slots);
        self.v6.add_ranges(&self.slots, &mut slots);
        Tables {
            v4: self.v4.dump(),
            v6: self.v6.dump(),
            slots,
            affinity_members: self.members.iter().map(|key| (*key, 1)).collect(),
            interfaces: self.interfaces.clone(),
            nodes: self.nodes.clone(),
            node_slots: self.node_slots.clone(),
            config: self.config,
        }
    }

    fn write(&mut self, step: &Step, row: usize) {
        match step {
            Step::V4(step) => self.v4.write(step, row),
            Step::V6(step) => self.v6.write(step, row),
            Step::SetSlots(rows) => {
                let (index, id) = rows[row];
                assert!(!self.v4.names(index) && !self.v6.names(index), "slot {index} is in use");
                self.slots.insert(index, id);
            }
            Step::SetMembers(keys) => drop(self.members.insert(keys[row])),
            Step::RemoveMembers(keys) => drop(self.members.remove(&keys[row])),
            Step::SetInterfaces(rows) => drop(self.interfaces.insert(rows[row].0, rows[row].1)),
            Step::RemoveInterfaces(keys) => drop(self.interfaces.remove(&keys[row])),
            Step::SetNodes(rows) => set_or_free(&mut self.nodes, rows[row]),
            Step::SetNodeSlots(rows) => drop(self.node_slots.insert(rows[row].0, rows[row].1)),
            Step::RemoveNodeSlots(keys) => drop(self.node_slots.remove(&keys[row])),
            Step::SetConfig(config) => self.config = *config,
            Step::Bump(indices) => *self.epochs.entry(indices[row]).or_default() += 2,
        }
    }

    fn check(&self, at: &str) {
        self.v4.check(self, at);
        self.v6.check(self, at);
        for (address, slot) in &self.node_slots {
            assert!(self.nodes.contains_key(slot), "{at}: {address:?} names the free node slot {slot}");
        }
    }
}

type Keys<A> = BTreeSet<ServiceKey<A>>;

/// The Service rows of either family that steps write or remove.
fn pending(steps: &[Step]) -> (Keys<[u8; 4]>, Keys<[u8; 16]>) {
    fn keys<A: quilla_abi::Address>(step: &FamilyStep<A>) -> Vec<ServiceKey<A>> {
        match step {
            FamilyStep::SetServices(rows) => rows.iter().map(|(key, _)| *key).collect(),
            FamilyStep::RemoveServices(keys) => keys.clone(),
            _ => Vec::new(),
        }
    }
    let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
    for step in steps {
        match step {
            Step::V4(step) => v4.extend(keys(step)),
            Step::V6(step) => v6.extend(keys(step)),
            _ => {}
        }
    }
    (v4, v6)
}

fn set_or_free<V: Default + PartialEq>(map: &mut BTreeMap<u32, V>, (index, row): (u32, V)) {
    if row == V::default() {
        map.remove(&index);
    } else {
        map.insert(index, row);
    }
}

impl<A: quilla_abi::Address + Ord + Hash> FamilyMaps<A> {
    fn names(&self, slot: u32) -> bool {
        self.services.values().any(|row| (row.slot_base..row.slot_base + row.slot_count).contains(&slot))
    }

    /// What rows with affinity choose.
    fn chosen(&self, slots: &BTreeMap<u32, u32>) -> impl Iterator<Item = MemberKey> {
        let rows = self.services.values().filter(|row| row.affinity_seconds != 0);
        rows.flat_map(|row| {
            let indices = row.slot_base..row.slot_base + row.slot_count;
            indices.map(|index| MemberKey { service: row.id, backend: slots[&index] })
        })
    }

    fn write(&mut self, step: &FamilyStep<A>, row: usize) {
        match step {
            FamilyStep::SetBackends(rows) => set_or_free(&mut self.backends, rows[row]),
            FamilyStep::SetBackendIds(rows) => drop(self.backend_ids.insert(rows[row].0, rows[row].1)),
            FamilyStep::RemoveBackendIds(keys) => drop(self.backend_ids.remove(&keys[row])),
            FamilyStep::StartLoads(rows) => {
                let (first, again) = self.loads.entry(rows[row].0).or_default();
                match rows[row].1 {
                    Appearance::First => *first += 1,
                    Appearance::Again => *again += 1,
                }
            }
            FamilyStep::SetSourceRanges(keys) => drop(self.source_ranges.insert(keys[row])),
            FamilyStep::RemoveSourceRanges(keys) => drop(self.source_ranges.remove(&keys[row])),
            FamilyStep::SetServices(rows) => {
                self.pending.remove(&rows[row].0);
                self.written.insert(rows[row].0);
                self.services.insert(rows[row].0, rows[row].1);
            }
            FamilyStep::RemoveServices(keys) => {
                self.pending.remove(&keys[row]);
                self.services.remove(&keys[row]);
            }
            FamilyStep::SetEndpoints(rows) => drop(self.endpoints.insert(rows[row].0, rows[row].1)),
            FamilyStep::RemoveEndpoints(keys) => drop(self.endpoints.remove(&keys[row])),
            FamilyStep::SetRoutes(rows) => drop(self.routes.insert(rows[row].0, rows[row].1)),
            FamilyStep::RemoveRoutes(keys) => drop(self.routes.remove(&keys[row])),
        }
    }

    fn check(&self, kernel: &Kernel, at: &str) {
        for (key, row) in &self.services {
            for index in row.slot_base..row.slot_base + row.slot_count {
                let id = kernel.slots.get(&index);
                let id = id.unwrap_or_else(|| panic!("{at}: {key:?} names the unwritten slot {index}"));
                assert!(
                    self.backends.contains_key(id),
                    "{at}: {key:?} slot {index} names the free backend {id}"
                );
                let member = MemberKey { service: row.id, backend: *id };
                let known = row.affinity_seconds == 0 || kernel.members.contains(&member);
                let left = kernel.leaving.contains(&member) && self.pending.contains(key);
                let excused = left || kernel.forgotten.contains(&member);
                assert!(known || excused, "{at}: {key:?} chooses {id}, which is no member");
            }
            // E17: nobody comes back to whom the row no longer chooses.
            let left =
                kernel.leaving.iter().filter(|one| one.service == row.id && kernel.members.contains(one));
            for member in left.filter(|_| row.affinity_seconds != 0 && self.written.contains(key)) {
                let mut indices = row.slot_base..row.slot_base + row.slot_count;
                let chosen = indices.any(|index| kernel.slots[&index] == member.backend);
                assert!(chosen, "{at}: {key:?} no longer chooses {member:?}, but its clients come back");
            }
            let guarded = row.flags & flag::SOURCE_RANGES != 0;
            let ranged = || self.source_ranges.iter().any(|range| range.id == row.id.to_be_bytes());
            assert!(!guarded || ranged(), "{at}: {key:?} is open before its source ranges are there");
        }
        for route in
            self.routes.values().filter(|route| route.kind == kind::REMOTE_PODS && route.node_slot != 0)
        {
            let known = kernel.nodes.contains_key(&u32::from(route.node_slot));
            assert!(known, "{at}: a route names a free node slot");
        }
    }

    fn add_ranges(&self, slots: &BTreeMap<u32, u32>, ranges: &mut SharedMap<u32, Arc<[u32]>>) {
        for row in self.services.values().filter(|row| row.slot_count > 0) {
            let indices = row.slot_base..row.slot_base + row.slot_count;
            ranges.insert(row.slot_base, indices.map(|index| slots[&index]).collect());
        }
    }

    fn dump(&self) -> FamilyTables<A> {
        let shared = |(key, value): (&ServiceKey<A>, &Service)| (*key, *value);
        FamilyTables {
            services: self.services.iter().map(shared).collect(),
            source_ranges: self.source_ranges.iter().map(|key| (*key, 1)).collect(),
            backends: self.backends.iter().map(|(id, row)| (*id, *row)).collect(),
            backend_ids: self.backend_ids.iter().map(|(row, id)| (*row, *id)).collect(),
            endpoints: self.endpoints.clone(),
            routes: self.routes.iter().map(|(key, row)| (*key, *row)).collect(),
        }
    }
}
