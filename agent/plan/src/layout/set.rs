//! Ids and slot ranges of sets of backends. Called by the layout, once backends have their ids.
//!
//! Invariant: every slot of a set that is placed names a backend that is there. A set that changes while there is no
//! room for a second range keeps the one it has, overwritten in place; only one that never had a range is not placed,
//! and none of its frontends has a row.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnet::IpNet;
use quilla_abi::affinity::MemberKey;
use quilla_abi::map::capacity;
use quilla_abi::service::{Service, SourceRangeKey};
use quilla_model::Difference;

use super::Layout;
use super::backend::id_of;
use crate::desired::{BackendKey, BackendSet, Desired, FrontendKey, Member, SetKey};
use crate::family::AddressFamily;
use crate::parallel;
use crate::tables::Tables;

/// All sets that frontends name or that are desired. Never shared, so found by their hash alone; tenants choose the names,
/// so the hash is seeded.
pub(super) type Sets = HashMap<Arc<SetKey>, Set, RandomState>;

/// A set, as far as it is laid out.
#[derive(Clone, Debug, Default)]
pub(super) struct Set {
    /// Its frontends, sorted.
    frontends: Vec<FrontendKey>,
    place: Option<Place>,
}

/// Where a set is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    id: u32,
    slot_base: u32,
    slots: Arc<[u32]>,
    /// Backend ids in `affinity_members`, sorted.
    members: Vec<u32>,
    /// What is in `source_ranges_*`.
    source_ranges: Vec<IpNet>,
}

/// A set that may need other rows.
struct Changed {
    key: Arc<SetKey>,
    /// What it was when all of it had its place.
    former: Option<Arc<BackendSet>>,
    /// What it is to be, if it stays.
    content: Option<Arc<BackendSet>>,
}

/// What a set's rows should hold.
struct Contents {
    slots: Vec<u32>,
    /// Backend ids that belong to `affinity_members`.
    members: Vec<u32>,
    /// Whether all backends have ids.
    complete: bool,
}

/// New rows are written before old ones are removed, so no map may be quite full.
pub(super) const fn usable(capacity: u32) -> usize {
    (capacity - capacity / 16) as usize
}

impl Set {
    pub(super) fn add_frontend(&mut self, key: FrontendKey) {
        if let Err(position) = self.frontends.binary_search(&key) {
            // Most sets have one and keep it.
            self.frontends.reserve_exact(1);
            self.frontends.insert(position, key);
        }
    }

    pub(super) fn remove_frontend(&mut self, key: &FrontendKey) {
        if let Ok(position) = self.frontends.binary_search(key) {
            self.frontends.remove(position);
        }
    }

    /// The members of a set that is placed as a whole, with their ids, where each of them has one slot; none elsewhere.
    fn ids(&self, content: &BackendSet) -> impl Iterator<Item = (BackendKey, u32)> {
        let slots = self.place.as_ref().map_or(&[][..], |place| &place.slots);
        let one_each = content.found.is_none() && slots.len() == content.members.len();
        let members = if one_each { &content.members[..] } else { &[] };
        members.iter().map(|member| member.backend).zip(slots.iter().copied())
    }

    /// The row of a frontend with these flags; `None` while the set has no place.
    pub(super) fn row(&self, set: &BackendSet, flags: u32) -> Option<Service> {
        let place = self.place.as_ref()?;
        Some(Service {
            id: place.id,
            slot_base: place.slot_base,
            slot_count: u32::try_from(place.slots.len()).ok()?,
            affinity_seconds: set.affinity_seconds,
            slow_start_seconds: set.slow_start_seconds,
            flags: set.flags | flags,
        })
    }
}

impl Layout {
    /// Places sets that came or changed and takes back the places of those that went. Adds the frontends of the sets that
    /// were looked at.
    pub(super) fn place_sets(
        &mut self,
        desired: &Desired,
        tables: &mut Tables,
        touched: &mut Vec<FrontendKey>,
    ) {
        let changed = self.changed_sets(desired);
        let density = desired.maglev_density;
        let contents = parallel::map(&changed, |changed| self.contents(changed, density, tables));
        for (Changed { key, content, .. }, contents) in changed.into_iter().zip(contents) {
            let mut set = self.sets.remove(&key).unwrap_or_default();
            touched.extend(&set.frontends);
            let whole = if let Some((content, contents)) = content.zip(contents) {
                self.place_set(&mut set, (&key, &content), contents, tables)
            } else {
                self.remove_place(set.place.take(), tables);
                true
            };
            if !whole {
                self.crowded.sets.insert(Arc::clone(&key));
            }
            if set.place.is_some() || !set.frontends.is_empty() {
                self.sets.insert(key, set);
            }
        }
    }

    /// Not in a tree: comparing that many names would take longer than anything else in a large layout.
    fn changed_sets(&mut self, desired: &Desired) -> Vec<Changed> {
        let crowded = std::mem::take(&mut self.crowded.sets);
        let differs = |change: Difference<'_, Arc<SetKey>, Arc<BackendSet>>| Changed {
            key: Arc::clone(change.key),
            former: change.old.filter(|_| !crowded.contains(change.key)).cloned(),
            content: change.new.cloned(),
        };
        let mut changed: Vec<Changed> =
            self.desired.sets.difference(&desired.sets).into_iter().map(differs).collect();
        let mut others = crowded;
        if self.desired.maglev_density != desired.maglev_density {
            others.extend(desired.sets.keys().filter(|key| key.maglev).map(Arc::clone));
        }
        others.retain(|key| self.desired.sets.get(key) == desired.sets.get(key));
        let again = |key| Changed { content: desired.sets.get(&key).cloned(), former: None, key };
        changed.extend(others.into_iter().map(again));
        changed
    }

    /// What the rows of a desired set should hold. The members that stay keep the ids that they have.
    fn contents(&self, changed: &Changed, density: u32, tables: &Tables) -> Option<Contents> {
        let Changed { key, former, content } = changed;
        let content = content.as_ref()?;
        let former = former.as_ref().filter(|_| !key.maglev);
        let known = former.and_then(|former| Some(self.sets.get(key)?.ids(former)));
        let ids = member_ids(&content.members, known.into_iter().flatten(), tables);
        let indices = content.slots(key.maglev, density);
        let slots: Vec<u32> = indices.iter().filter_map(|&index| ids.get(index as usize).copied()?).collect();
        let complete = slots.len() == indices.len();
        let members =
            if content.affinity_seconds > 0 { ids.into_iter().flatten().collect() } else { Vec::new() };
        Some(Contents { slots, members, complete })
    }

    /// The same place if the slots are the same; else the same id and a new range. Whether all of it found room.
    fn place_set(
        &mut self,
        set: &mut Set,
        (key, content): (&SetKey, &BackendSet),
        Contents { slots, members, complete }: Contents,
        tables: &mut Tables,
    ) -> bool {
        let old = set.place.take().or_else(|| self.recovered.as_mut()?.set(&set.frontends));
        let Some((mut place, moved)) = self.move_set(old, slots, key.maglev, tables) else { return false };
        let members = set_members(&mut place, &members, tables);
        let ranges = set_source_ranges(&mut place, &content.source_ranges, tables);
        set.place = Some(place);
        complete && moved && members && ranges
    }

    /// A range of its own for new slots, and whether they are all there. `None` if a set without a place finds no room.
    fn move_set(
        &mut self,
        old: Option<Place>,
        slots: Vec<u32>,
        maglev: bool,
        tables: &mut Tables,
    ) -> Option<(Place, bool)> {
        if let Some(old) = old.as_ref().filter(|old| *old.slots == *slots) {
            return Some((old.clone().with_slots(old.slots.to_vec(), tables), true));
        }
        let slot_base = match u32::try_from(slots.len()).ok()? {
            0 => Some(0),
            count => self.slots.take(count),
        };
        match (old, slot_base) {
            (Some(old), None) => Some(old.overwritten(slots, maglev, tables)),
            (Some(old), Some(slot_base)) => {
                self.give_back_slots(&old, tables);
                Some((Place { slot_base, ..old }.with_slots(slots, tables), true))
            }
            (None, slot_base) => {
                let (slot_base, id) = (slot_base?, self.service_ids.take()?);
                let (members, source_ranges) = (Vec::new(), Vec::new());
                let place = Place { id, slot_base, slots: [].into(), members, source_ranges };
                Some((place.with_slots(slots, tables), true))
            }
        }
    }

    fn remove_place(&mut self, place: Option<Place>, tables: &mut Tables) {
        let Some(mut place) = place else { return };
        self.give_back_slots(&place, tables);
        self.service_ids.give_back(place.id, self.age);
        set_members(&mut place, &[], tables);
        set_source_ranges(&mut place, &[], tables);
    }

    fn give_back_slots(&mut self, place: &Place, tables: &mut Tables) {
        if let Ok(count @ 1..) = u32::try_from(place.slots.len()) {
            tables.slots.remove(&place.slot_base);
            self.slots.give_back(place.slot_base, count, self.age);
        }
    }
}

impl Place {
    /// The place that a row of a previous run names.
    pub(super) fn recovered(row: &Service, slots: Arc<[u32]>) -> Self {
        Self { id: row.id, slot_base: row.slot_base, slots, members: Vec::new(), source_ranges: Vec::new() }
    }

    fn with_slots(self, slots: Vec<u32>, tables: &mut Tables) -> Self {
        let slots: Arc<[u32]> = slots.into();
        if !slots.is_empty() {
            tables.slots.insert(self.slot_base, Arc::clone(&slots));
        }
        Self { slots, ..self }
    }

    /// The old range with new contents, and whether these are what was wanted: a Maglev table of the same size is.
    /// Elsewhere those who stay share the slots of those who go, and nobody comes. Readers of the range find a backend
    /// in each slot at any time: those who come are there before the slots are written, those who go until after.
    fn overwritten(self, slots: Vec<u32>, maglev: bool, tables: &mut Tables) -> (Self, bool) {
        if maglev && slots.len() == self.slots.len() {
            return (self.with_slots(slots, tables), true);
        }
        let wanted: BTreeSet<u32> = slots.iter().copied().collect();
        let staying: Vec<u32> = self.slots.iter().copied().filter(|id| wanted.contains(id)).collect();
        let heirs = if staying.is_empty() { &slots } else { &staying };
        let slot = |(id, heir): (&u32, &u32)| if wanted.contains(id) { *id } else { *heir };
        let kept = self.slots.iter().zip(heirs.iter().cycle()).map(slot).collect();
        (self.with_slots(kept, tables), false)
    }
}

/// The ids of a set's members. Most of those of a large set are `known`, in the order of members: to look each of them up
/// would take longer than the rest of its layout.
fn member_ids(
    members: &[Member],
    known: impl Iterator<Item = (BackendKey, u32)>,
    tables: &Tables,
) -> Vec<Option<u32>> {
    let mut known = known.peekable();
    let id = |member: &Member| {
        while known.next_if(|(other, _)| *other < member.backend).is_some() {}
        let same = known.next_if(|(other, _)| *other == member.backend);
        same.map(|(_, id)| id).or_else(|| id_of(&member.backend, tables))
    };
    members.iter().map(id).collect()
}

/// Whether they found room. Without members a client's last backend is never used again, which is no affinity.
fn set_members(place: &mut Place, ids: &[u32], tables: &mut Tables) -> bool {
    let wanted: BTreeSet<u32> = ids.iter().copied().collect();
    let members = &mut tables.affinity_members;
    let key = |backend| MemberKey { service: place.id, backend };
    for &gone in place.members.iter().filter(|id| !wanted.contains(id)) {
        members.remove(&key(gone));
    }
    let new: Vec<u32> =
        wanted.iter().copied().filter(|id| place.members.binary_search(id).is_err()).collect();
    let room = members.len() + new.len() <= usable(capacity::AFFINITY_MEMBERS);
    if room {
        members.extend(new.into_iter().map(|id| (key(id), 1)));
        place.members = wanted.into_iter().collect();
    } else {
        place.members.retain(|id| wanted.contains(id));
    }
    room
}

/// Whether they found room. Rows that ask for ranges that are not there let nobody in.
fn set_source_ranges(place: &mut Place, wanted: &[IpNet], tables: &mut Tables) -> bool {
    let gone: Vec<IpNet> = place.source_ranges.extract_if(.., |range| !wanted.contains(range)).collect();
    for range in &gone {
        remove_source_range::<[u8; 4]>(place.id, range, tables);
        remove_source_range::<[u8; 16]>(place.id, range, tables);
    }
    let new: Vec<IpNet> =
        wanted.iter().copied().filter(|range| !place.source_ranges.contains(range)).collect();
    for range in new {
        let placed = add_source_range::<[u8; 4]>(place.id, &range, tables)
            || add_source_range::<[u8; 16]>(place.id, &range, tables);
        if !placed {
            return false;
        }
        place.source_ranges.push(range);
    }
    true
}

fn add_source_range<A: AddressFamily>(id: u32, range: &IpNet, tables: &mut Tables) -> bool {
    let ranges = &mut A::tables_mut(tables).source_ranges;
    let room = ranges.len() < usable(capacity::SOURCE_RANGES);
    let key = source_range::<A>(id, range).filter(|_| room);
    key.is_some_and(|key| {
        ranges.insert(key, 1);
        true
    })
}

fn remove_source_range<A: AddressFamily>(id: u32, range: &IpNet, tables: &mut Tables) {
    if let Some(key) = source_range::<A>(id, range) {
        A::tables_mut(tables).source_ranges.remove(&key);
    }
}

fn source_range<A: AddressFamily>(id: u32, range: &IpNet) -> Option<SourceRangeKey<A>> {
    let addr = A::from_ip(range.network())?;
    Some(SourceRangeKey { prefix_len: 32 + u32::from(range.prefix_len()), id: id.to_be_bytes(), addr })
}
