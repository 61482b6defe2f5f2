//! A model of the kernel's maps: carries steps out row by row and checks after each row what a packet could see.

use std::collections::BTreeMap;

use quilla_abi::backend::Backend;
use quilla_abi::config::Config;
use quilla_abi::endpoint::{Endpoint, Interface};
use quilla_abi::node::Node;
use quilla_abi::route::{Route, RouteKey, kind};
use quilla_abi::service::{Service, ServiceKey};
use quilla_plan::{FamilyStep, FamilyTables, LaidService, Step, Tables};

/// The maps, slots included.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) v4: FamilyMaps<[u8; 4]>,
    pub(crate) v6: FamilyMaps<[u8; 16]>,
    slots: BTreeMap<u32, u32>,
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
    endpoints: BTreeMap<A, Endpoint>,
    routes: BTreeMap<RouteKey<A>, Route>,
}

impl<A> Default for FamilyMaps<A> {
    fn default() -> Self {
        Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            backend_ids: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            routes: BTreeMap::new(),
        }
    }
}

impl Kernel {
    /// Carries the steps out, or the first `limit` rows of them; returns how many rows it wrote.
    pub(crate) fn apply(&mut self, steps: &[Step], limit: usize) -> usize {
        let mut written = 0;
        for step in steps {
            for row in 0..step.rows() {
                if written == limit {
                    return written;
                }
                self.write(step, row);
                self.check(step, row);
                written += 1;
            }
        }
        written
    }

    /// The maps as the agent would read them back.
    pub(crate) fn dump(&self) -> Tables {
        Tables {
            v4: self.v4.dump(&self.slots),
            v6: self.v6.dump(&self.slots),
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
            Step::SetInterfaces(rows) => drop(self.interfaces.insert(rows[row].0, rows[row].1)),
            Step::RemoveInterfaces(keys) => drop(self.interfaces.remove(&keys[row])),
            Step::SetNodes(rows) => set_or_free(&mut self.nodes, rows[row]),
            Step::SetNodeSlots(rows) => drop(self.node_slots.insert(rows[row].0, rows[row].1)),
            Step::RemoveNodeSlots(keys) => drop(self.node_slots.remove(&keys[row])),
            Step::SetConfig(config) => self.config = *config,
            Step::Bump(indices) => *self.epochs.entry(indices[row]).or_default() += 2,
        }
    }

    fn check(&self, step: &Step, row: usize) {
        let at = format!("after row {row} of {}", step.map());
        self.v4.check(&self.slots, &self.nodes, &at);
        self.v6.check(&self.slots, &self.nodes, &at);
        for (address, slot) in &self.node_slots {
            assert!(self.nodes.contains_key(slot), "{at}: {address:?} names the free node slot {slot}");
        }
    }
}

fn set_or_free<V: Default + PartialEq>(map: &mut BTreeMap<u32, V>, (index, row): (u32, V)) {
    if row == V::default() {
        map.remove(&index);
    } else {
        map.insert(index, row);
    }
}

impl<A: quilla_abi::Address + Ord> FamilyMaps<A> {
    fn names(&self, slot: u32) -> bool {
        self.services.values().any(|row| (row.slot_base..row.slot_base + row.slot_count).contains(&slot))
    }

    fn write(&mut self, step: &FamilyStep<A>, row: usize) {
        match step {
            FamilyStep::SetBackends(rows) => set_or_free(&mut self.backends, rows[row]),
            FamilyStep::SetBackendIds(rows) => drop(self.backend_ids.insert(rows[row].0, rows[row].1)),
            FamilyStep::RemoveBackendIds(keys) => drop(self.backend_ids.remove(&keys[row])),
            FamilyStep::SetServices(rows) => drop(self.services.insert(rows[row].0, rows[row].1)),
            FamilyStep::RemoveServices(keys) => drop(self.services.remove(&keys[row])),
            FamilyStep::SetEndpoints(rows) => drop(self.endpoints.insert(rows[row].0, rows[row].1)),
            FamilyStep::RemoveEndpoints(keys) => drop(self.endpoints.remove(&keys[row])),
            FamilyStep::SetRoutes(rows) => drop(self.routes.insert(rows[row].0, rows[row].1)),
            FamilyStep::RemoveRoutes(keys) => drop(self.routes.remove(&keys[row])),
        }
    }

    fn check(&self, slots: &BTreeMap<u32, u32>, nodes: &BTreeMap<u32, Node>, at: &str) {
        for (key, row) in &self.services {
            for index in row.slot_base..row.slot_base + row.slot_count {
                let id = slots
                    .get(&index)
                    .unwrap_or_else(|| panic!("{at}: {key:?} names the unwritten slot {index}"));
                assert!(
                    self.backends.contains_key(id),
                    "{at}: {key:?} slot {index} names the free backend {id}"
                );
            }
        }
        for route in
            self.routes.values().filter(|route| route.kind == kind::REMOTE_PODS && route.node_slot != 0)
        {
            assert!(nodes.contains_key(&u32::from(route.node_slot)), "{at}: a route names a free node slot");
        }
    }

    fn dump(&self, slots: &BTreeMap<u32, u32>) -> FamilyTables<A> {
        let laid = |row: &Service| LaidService {
            row: *row,
            slots: (row.slot_base..row.slot_base + row.slot_count).map(|index| slots[&index]).collect(),
        };
        FamilyTables {
            services: self.services.iter().map(|(key, row)| (*key, laid(row))).collect(),
            backends: self.backends.clone(),
            backend_ids: self.backend_ids.clone(),
            endpoints: self.endpoints.clone(),
            routes: self.routes.clone(),
        }
    }
}
