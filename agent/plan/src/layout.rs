//! Where everything is in the kernel's maps: ids, slot ranges, node slots. Owned by the agent's reconciler.
//!
//! What did not change keeps its place; a changed set of backends gets a new range of slots, so that the old one stays
//! intact for readers until the rows of all its frontends are flipped; only where there is no room for both is it
//! overwritten. The identity of a thing is in its row (a
//! backend's address, a set's frontends, a node's underlay address, an endpoint's ifindex), so that a layout can be
//! rebuilt from the maps alone. A layout looks only at what is not shared with what it laid out last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quilla_abi::config::{Config, flag};
use quilla_abi::endpoint::Interface;
use quilla_abi::version::SCHEMA;
use quilla_model::{ObjectRef, Problem, Reason};

use crate::desired::{Desired, Tunnel};
use crate::facts::LocalEndpoint;
use crate::family::AddressFamily;
use crate::pool::{IdPool, RangePool};
use crate::tables::{FamilyTables, Tables};

mod backend;
mod frontend;
mod recover;
mod row;
mod set;

use recover::Recovered;
use row::{endpoint_rows, interface_row, node_row, node_slots, route_row, underlay_addresses};
use set::Sets;

/// The places of everything, and what is free.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Counts layouts; the clock of the quarantine.
    age: u64,
    tables: Arc<Tables>,
    /// What the tables do.
    desired: Desired,
    /// Only before the first layout.
    recovered: Option<Recovered>,
    sets: Sets,
    /// Backends without an id and frontends without a row: tried again each time.
    crowded: frontend::Crowded,
    slots: RangePool,
    service_ids: IdPool,
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
        // Recovered rows count only as far as somebody asks for them again.
        let mut tables = if self.recovered.is_some() { Tables::default() } else { Tables::clone(&old) };
        let mut problems = Vec::new();
        self.place_services(desired, &mut tables, &mut problems);
        let slots = self.place_nodes(&desired.tunnels, &old, &mut problems);
        tables.interfaces = self.place_interfaces(&desired.endpoints, &old, &mut problems);
        tables.nodes = slots.iter().map(|(name, &slot)| (slot, node_row(&desired.tunnels[*name]))).collect();
        tables.node_slots = node_slots(&desired.tunnels, &slots);
        tables.v4.endpoints = endpoint_rows(&desired.endpoints, &tables.interfaces, &mut problems);
        tables.v6.endpoints = endpoint_rows(&desired.endpoints, &tables.interfaces, &mut problems);
        // Nodes that exchange addresses exchange slots; that alone is seen neither in the routes nor in the slots.
        let moved = desired.tunnels != self.desired.tunnels || tables.node_slots != old.node_slots;
        if moved || !desired.routes.is_same(&self.desired.routes) {
            place_routes(desired, &slots, &mut tables.v4);
            place_routes(desired, &slots, &mut tables.v6);
        }
        tables.config = widened(desired.config, &old.config);
        self.forget_recovered();
        self.desired = desired.clone();
        self.tables = Arc::new(tables);
        (Arc::clone(&self.tables), problems)
    }

    /// Whether something found no room that may find it in another layout of the same: numbers still rest.
    pub fn awaits_room(&self) -> bool {
        let ids = [&self.service_ids, &self.backend_ids_v4, &self.backend_ids_v6];
        let resting = self.slots.is_resting() || ids.into_iter().any(IdPool::is_resting);
        resting && !(self.crowded.sets.is_empty() && self.crowded.backends.is_empty())
    }

    fn mature(&mut self) {
        let ids = [&mut self.service_ids, &mut self.backend_ids_v4, &mut self.backend_ids_v6];
        for pool in ids.into_iter().chain([&mut self.endpoint_ids, &mut self.node_slots]) {
            pool.mature(self.age);
        }
        self.slots.mature(self.age);
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

/// What the uplinks look at only becomes more while maps live: a connection that a Service began outlives the Service's
/// port. A row of another schema says nothing.
fn widened(new: Config, old: &Config) -> Config {
    if old.schema != SCHEMA {
        return new;
    }
    let ports = |config: &Config| config.frontend_port_min..=config.frontend_port_max;
    let both = [ports(old), ports(&new)];
    let used = || both.iter().filter(|ports| !ports.is_empty());
    let first = used().map(|ports| *ports.start()).min();
    let last = used().map(|ports| *ports.end()).max();
    Config {
        flags: new.flags | old.flags & flag::NODE_BACKENDS,
        frontend_port_min: first.unwrap_or(new.frontend_port_min),
        frontend_port_max: last.unwrap_or(new.frontend_port_max),
        ..new
    }
}

/// Changes only rows that are not what they should be.
fn place_routes<A: AddressFamily>(
    desired: &Desired,
    node_slots: &BTreeMap<&str, u32>,
    tables: &mut FamilyTables<A>,
) {
    let rows: BTreeMap<_, _> =
        desired.routes.iter().filter_map(|(net, target)| route_row(net, target, node_slots)).collect();
    let gone: Vec<_> = tables.routes.keys().filter(|key| !rows.contains_key(key)).copied().collect();
    for key in gone {
        tables.routes.remove(&key);
    }
    for (key, row) in rows {
        if tables.routes.get(&key) != Some(&row) {
            tables.routes.insert(key, row);
        }
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::recover(&Tables::default())
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
