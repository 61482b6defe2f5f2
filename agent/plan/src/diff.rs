//! The steps from one state of the kernel to another, in an order that never shows half a change.
//!
//! Additions go from what is pointed at to what points: backends, slots, members and source ranges of sets, Services;
//! nodes, routes. Removals go the other way, so that a restriction is there before the row that relies on it and goes
//! after it; only members go before, for a client that is not remembered chooses by the row alone. Epochs of what
//! changed are bumped when the maps hold the new truth. Backend ids are the last thing to go: a run that dies between
//! freeing a backend and starting its id's new generation leaves the id behind, and the next run starts that
//! generation. Invariant: every prefix of the steps, and of the rows within a step, is consistent.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quilla_abi::affinity::MemberKey;
use quilla_abi::backend::Backend;
use quilla_abi::config::{self, Config};
use quilla_abi::endpoint::Endpoint;
use quilla_abi::epoch;
use quilla_abi::node::Node;
use quilla_abi::route::{Route, RouteKey, kind};
use quilla_abi::service::{Service, ServiceKey, SourceRangeKey, flag};
use quilla_model::{Difference, SharedMap};

use crate::family::AddressFamily;
use crate::step::{Appearance, FamilyStep, Step};
use crate::tables::{FamilyTables, Tables};

/// The steps from `old` to `new`; none if they are equal.
pub fn diff(old: &Tables, new: &Tables) -> Vec<Step> {
    let mut steps = Vec::new();
    let (v4, v6) = (FamilyChange::between(old, new), FamilyChange::between(old, new));
    let sets = SetChange::between(old, new);
    add_services(&mut steps, &sets, &v4, &v6);
    remove_services(&mut steps, &v4, &v6);
    let mut bumps = BTreeSet::new();
    change_reachability(&mut steps, &mut bumps, (old, new), &v4, &v6);
    if old.config != new.config {
        steps.push(Step::SetConfig(new.config));
        if without_reach(old.config) != without_reach(new.config) {
            bumps.insert(epoch::GLOBAL);
        }
    }
    steps.push(Step::Bump(bumps.into_iter().collect()));
    steps.retain(|step| step.rows() > 0);
    steps
}

/// What flows are computed from: which packets of the uplinks are looked at is asked for each of them.
fn without_reach(config: Config) -> Config {
    let flags = config.flags & !config::flag::NODE_BACKENDS;
    Config { flags, frontend_port_min: 0, frontend_port_max: 0, ..config }
}

/// The step that makes every flow look again, whatever it was computed from: after a start, when nobody knows what a
/// previous run left unsaid.
pub fn refresh() -> Step {
    Step::Bump(vec![epoch::GLOBAL])
}

fn add_services(
    steps: &mut Vec<Step>,
    sets: &SetChange<'_>,
    v4: &FamilyChange<'_, [u8; 4]>,
    v6: &FamilyChange<'_, [u8; 16]>,
) {
    steps.extend([v4.set_backends(), v6.set_backends()]);
    steps.extend([v4.set_backend_ids(), v6.set_backend_ids()]);
    steps.extend([v4.start_loads(), v6.start_loads()]);
    steps.push(sets.set_slots());
    steps.push(Step::SetMembers(sets.members.set_keys().collect()));
    steps.extend([v4.set_source_ranges(), v6.set_source_ranges()]);
    // Before the rows that leave them: nobody comes back to a backend once its row no longer chooses it (E17).
    steps.push(Step::RemoveMembers(sets.members.removed_keys().collect()));
    steps.extend([v4.set_services(), v6.set_services()]);
}

fn remove_services(steps: &mut Vec<Step>, v4: &FamilyChange<'_, [u8; 4]>, v6: &FamilyChange<'_, [u8; 16]>) {
    steps.extend([v4.remove_services(), v6.remove_services()]);
    steps.extend([v4.remove_source_ranges(), v6.remove_source_ranges()]);
    steps.extend([v4.free_backends(), v6.free_backends()]);
    steps.push(Step::Bump(v4.ended_generations().chain(v6.ended_generations()).collect()));
    steps.extend([v4.remove_backend_ids(), v6.remove_backend_ids()]);
}

/// Nodes, endpoints and routes, and the epochs of those that changed.
fn change_reachability(
    steps: &mut Vec<Step>,
    bumps: &mut BTreeSet<u32>,
    (old, new): (&Tables, &Tables),
    v4: &FamilyChange<'_, [u8; 4]>,
    v6: &FamilyChange<'_, [u8; 16]>,
) {
    let nodes = Change::between(&old.nodes, &new.nodes);
    let node_slots = Change::between(&old.node_slots, &new.node_slots);
    let interfaces = Change::between(&old.interfaces, &new.interfaces);

    steps.push(Step::SetNodes(nodes.set_rows().collect()));
    steps.push(Step::SetNodeSlots(node_slots.set_rows().collect()));
    steps.push(Step::SetInterfaces(interfaces.set_rows().collect()));
    steps.extend([v4.set_endpoints(), v6.set_endpoints()]);
    steps.extend([v4.set_routes(), v6.set_routes()]);

    steps.extend([v4.remove_routes(), v6.remove_routes()]);
    steps.extend([v4.remove_endpoints(), v6.remove_endpoints()]);
    steps.push(Step::RemoveInterfaces(interfaces.removed_keys().collect()));
    steps.push(Step::RemoveNodeSlots(node_slots.removed_keys().collect()));
    steps.push(Step::SetNodes(nodes.removed_keys().map(|slot| (slot, Node::default())).collect()));

    if v4.changes_a_way() || v6.changes_a_way() {
        bumps.insert(epoch::GLOBAL);
    }
    bumps.extend(nodes.keys().map(|slot| epoch::NODES + slot));
    let endpoints = v4.endpoints.values().chain(v6.endpoints.values()).map(|endpoint: &Endpoint| endpoint.id);
    bumps.extend(
        endpoints.chain(interfaces.values().map(|interface| interface.id)).map(|id| epoch::ENDPOINTS + id),
    );
}

/// What differs between two maps. Rows are borrowed: most of both maps is equal.
struct Change<'a, K, V> {
    /// Key, new value, old value.
    set: Vec<(&'a K, &'a V, Option<&'a V>)>,
    removed: Vec<(&'a K, &'a V)>,
}

impl<'a, K: Ord + Copy, V: PartialEq> Change<'a, K, V> {
    /// Walks both maps once, side by side.
    fn between(old: &'a BTreeMap<K, V>, new: &'a BTreeMap<K, V>) -> Self {
        let mut change = Self { set: Vec::new(), removed: Vec::new() };
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return change,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old_key, _)), Some((new_key, _))) => old_key.cmp(new_key),
            };
            let before = if order.is_le() { old.next() } else { None };
            let after = if order.is_ge() { new.next() } else { None };
            match (before, after) {
                (Some(gone), None) => change.removed.push(gone),
                (before, Some((key, value))) if before.is_none_or(|(_, old_value)| old_value != value) => {
                    change.set.push((key, value, before.map(|(_, old_value)| old_value)));
                }
                _ => {}
            }
        }
    }

    /// Walks only what the maps do not share.
    fn shared(old: &'a SharedMap<K, V>, new: &'a SharedMap<K, V>) -> Self {
        let mut change = Self { set: Vec::new(), removed: Vec::new() };
        for Difference { key, old, new } in old.difference(new) {
            match (old, new) {
                (Some(old), None) => change.removed.push((key, old)),
                (old, Some(new)) => change.set.push((key, new, old)),
                (None, None) => {}
            }
        }
        change
    }

    fn set_rows(&self) -> impl Iterator<Item = (K, V)>
    where
        V: Clone,
    {
        self.set.iter().map(|&(key, value, _)| (*key, value.clone()))
    }

    fn set_keys(&self) -> impl Iterator<Item = K> {
        self.set.iter().map(|&(key, ..)| *key)
    }

    fn removed_keys(&self) -> impl Iterator<Item = K> {
        self.removed.iter().map(|&(key, _)| *key)
    }

    fn keys(&self) -> impl Iterator<Item = K> {
        self.set_keys().chain(self.removed_keys())
    }

    /// Every value that came or went.
    fn values(&self) -> impl Iterator<Item = &'a V> {
        let set = self.set.iter().flat_map(|&(_, new, old)| [Some(new), old]);
        set.chain(self.removed.iter().map(|&(_, old)| Some(old))).flatten()
    }
}

/// What differs between the maps that both families share.
struct SetChange<'a> {
    slots: Change<'a, u32, Arc<[u32]>>,
    members: Change<'a, MemberKey, u32>,
}

impl<'a> SetChange<'a> {
    fn between(old: &'a Tables, new: &'a Tables) -> Self {
        Self {
            slots: Change::shared(&old.slots, &new.slots),
            members: Change::shared(&old.affinity_members, &new.affinity_members),
        }
    }

    /// Ranges that no row names any more keep their contents.
    fn set_slots(&self) -> Step {
        let ranges = self.slots.set.iter();
        Step::SetSlots(ranges.flat_map(|&(base, slots, _)| (*base..).zip(slots.iter().copied())).collect())
    }
}

/// What differs between the maps of one family.
struct FamilyChange<'a, A> {
    backends: Change<'a, u32, Backend<A>>,
    backend_ids: Change<'a, Backend<A>, u32>,
    services: Change<'a, ServiceKey<A>, Service>,
    source_ranges: Change<'a, SourceRangeKey<A>, u32>,
    endpoints: Change<'a, A, Endpoint>,
    routes: Change<'a, RouteKey<A>, Route>,
    old: &'a Tables,
    new: &'a Tables,
}

impl<'a, A: AddressFamily> FamilyChange<'a, A> {
    fn between(old: &'a Tables, new: &'a Tables) -> Self {
        let (of_old, of_new): (&FamilyTables<A>, &FamilyTables<A>) = (A::tables(old), A::tables(new));
        Self {
            backends: Change::shared(&of_old.backends, &of_new.backends),
            backend_ids: Change::shared(&of_old.backend_ids, &of_new.backend_ids),
            services: Change::shared(&of_old.services, &of_new.services),
            source_ranges: Change::shared(&of_old.source_ranges, &of_new.source_ranges),
            endpoints: Change::between(&of_old.endpoints, &of_new.endpoints),
            routes: Change::shared(&of_old.routes, &of_new.routes),
            old,
            new,
        }
    }

    fn set_backends(&self) -> Step {
        A::step(FamilyStep::SetBackends(self.backends.set_rows().collect()))
    }

    fn set_backend_ids(&self) -> Step {
        A::step(FamilyStep::SetBackendIds(self.backend_ids.set_rows().collect()))
    }

    /// Backends that a set which looks at loads did not have before.
    fn start_loads(&self) -> Step {
        let mut appeared = BTreeMap::new();
        for &(_, row, before) in self.services.set.iter().filter(|(_, row, _)| looks_at_loads(row)) {
            let Some(slots) = self.new.slots_of(row) else { continue };
            let before = before.filter(|before| looks_at_loads(before) && before.id == row.id);
            let before = before.and_then(|before| self.old.slots_of(before)).unwrap_or_default();
            if Arc::ptr_eq(&slots, &before) {
                continue;
            }
            let before: BTreeSet<u32> = before.iter().copied().collect();
            for &id in slots.iter().filter(|id| !before.contains(id)) {
                let known = A::tables(self.old).backends.contains_key(&id);
                appeared.insert(id, if known { Appearance::Again } else { Appearance::First });
            }
        }
        A::step(FamilyStep::StartLoads(appeared.into_iter().collect()))
    }

    fn set_source_ranges(&self) -> Step {
        A::step(FamilyStep::SetSourceRanges(self.source_ranges.set_keys().collect()))
    }

    fn remove_source_ranges(&self) -> Step {
        A::step(FamilyStep::RemoveSourceRanges(self.source_ranges.removed_keys().collect()))
    }

    /// Rows that only mark an address come before those that use it.
    fn set_services(&self) -> Step {
        let mut rows: Vec<_> = self.services.set_rows().collect();
        rows.sort_by_key(|(key, _)| key.port.get() != 0);
        A::step(FamilyStep::SetServices(rows))
    }

    /// And go after them.
    fn remove_services(&self) -> Step {
        let mut keys: Vec<_> = self.services.removed_keys().collect();
        keys.sort_by_key(|key| key.port.get() == 0);
        A::step(FamilyStep::RemoveServices(keys))
    }

    fn free_backends(&self) -> Step {
        let rows = self.backends.removed_keys().map(|id| (id, Backend::default()));
        A::step(FamilyStep::SetBackends(rows.collect()))
    }

    /// Counters of the backends that are gone or replaced, whether their row or only their id was still there.
    fn ended_generations(&self) -> impl Iterator<Item = u32> {
        let replaced = self.backends.set.iter().filter(|(.., old)| old.is_some()).map(|&(id, ..)| *id);
        let renamed = self.backend_ids.set.iter().filter_map(|&(.., old)| old.copied());
        let named = self.backend_ids.removed.iter().map(|&(_, id)| *id).chain(renamed);
        let orphaned = named.filter(|id| !A::tables(self.new).backends.contains_key(id));
        let ended: BTreeSet<u32> = self.backends.removed_keys().chain(replaced).chain(orphaned).collect();
        ended.into_iter().filter(|&id| id < epoch::MAX_BACKENDS).map(|id| A::GENERATIONS + id)
    }

    fn remove_backend_ids(&self) -> Step {
        A::step(FamilyStep::RemoveBackendIds(self.backend_ids.removed_keys().collect()))
    }

    fn set_endpoints(&self) -> Step {
        A::step(FamilyStep::SetEndpoints(self.endpoints.set_rows().collect()))
    }

    fn remove_endpoints(&self) -> Step {
        A::step(FamilyStep::RemoveEndpoints(self.endpoints.removed_keys().collect()))
    }

    /// Whether flows may go another way. Not for an address that becomes a Service's or ceases to be: flows to its
    /// backends depend on these, and what was spoken to before may go on.
    fn changes_a_way(&self) -> bool {
        let of_service = |key: &RouteKey<A>, route: &Route| {
            route.kind == kind::SERVICES && key.prefix_len == 8 * u32::try_from(size_of::<A>()).unwrap_or(0)
        };
        let set = &self.routes.set;
        set.iter().any(|(key, new, old)| old.is_some() || !of_service(key, new))
            || self.routes.removed.iter().any(|(key, old)| !of_service(key, old))
    }

    fn set_routes(&self) -> Step {
        A::step(FamilyStep::SetRoutes(self.routes.set_rows().collect()))
    }

    fn remove_routes(&self) -> Step {
        A::step(FamilyStep::RemoveRoutes(self.routes.removed_keys().collect()))
    }
}

/// Whether the kernel asks how busy or how new the row's backends are.
fn looks_at_loads(row: &Service) -> bool {
    row.slow_start_seconds > 0 || row.flags & flag::LEAST_CONNECTIONS != 0
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
