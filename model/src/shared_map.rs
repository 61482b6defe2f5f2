//! A map whose copies share what is equal: taking one costs nothing, and two of them are compared by what differs.
//!
//! Snapshots, plans and tables of a large cluster are made of these, so that a round costs what changed and a state that
//! somebody still looks at costs only the parts that changed since. Invariant: a key is always in the part that its
//! hash names, so equal parts of two maps are at the same place in both.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::iter;
use std::ops::Index;
use std::sync::Arc;

use foldhash::fast::FixedState;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};

/// Branches of the root, and parts of a branch: a change copies two arrays of this length and one part.
const FAN: usize = 32;

/// Sorted by key. Rows in one piece are smaller than a tree of them, and copied faster.
type Part<K, V> = Vec<(K, V)>;
type Branch<K, V> = [Arc<Part<K, V>>; FAN];

/// A map in parts. Iteration is in an order of its own, the same for equal maps; see [`SharedMap::sorted`].
pub struct SharedMap<K, V> {
    root: Arc<[Arc<Branch<K, V>>; FAN]>,
    len: usize,
}

/// How an entry differs between two maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference<'a, K, V> {
    /// The key.
    pub key: &'a K,
    /// Its value in the first map.
    pub old: Option<&'a V>,
    /// Its value in the second; never equal to `old`.
    pub new: Option<&'a V>,
}

impl<K, V> SharedMap<K, V> {
    /// An empty map.
    pub fn new() -> Self {
        let part = Arc::new(Part::new());
        let branch: Arc<Branch<K, V>> = Arc::new(std::array::from_fn(|_| Arc::clone(&part)));
        Self { root: Arc::new(std::array::from_fn(|_| Arc::clone(&branch))), len: 0 }
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether both are copies of one map that was not changed since; false says nothing.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        let rows = self.root.iter().flat_map(|branch| branch.iter()).flat_map(|part| part.iter());
        rows.map(|(key, value)| (key, value))
    }

    /// All keys, in the order of [`SharedMap::iter`].
    pub fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// All values, in the order of [`SharedMap::iter`].
    pub fn values(&self) -> impl Iterator<Item = &V> + Clone {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// All entries by key.
    pub fn sorted(&self) -> Vec<(&K, &V)> {
        let mut entries: Vec<_> = self.iter().collect();
        entries.sort_unstable_by_key(|(key, _)| *key);
        entries
    }

    /// What differs, at the cost of what differs when one map was made from the other.
    pub fn difference<'a>(&'a self, new: &'a Self) -> Vec<Difference<'a, K, V>>
    where
        V: PartialEq,
    {
        let mut found = Vec::new();
        for (old_branch, new_branch) in unshared(&*self.root, &*new.root) {
            for (old_part, new_part) in unshared(&**old_branch, &**new_branch) {
                compare(old_part, new_part, &mut found);
            }
        }
        found
    }
}

/// The pairs that are not the same allocation.
fn unshared<'a, T>(old: &'a [Arc<T>], new: &'a [Arc<T>]) -> impl Iterator<Item = (&'a Arc<T>, &'a Arc<T>)> {
    old.iter().zip(new).filter(|(old, new)| !Arc::ptr_eq(old, new))
}

/// Walks both parts once, side by side.
fn compare<'a, K: Ord, V: PartialEq>(
    old: &'a Part<K, V>,
    new: &'a Part<K, V>,
    found: &mut Vec<Difference<'a, K, V>>,
) {
    let rows = |part: &'a Part<K, V>| part.iter().map(|(key, value)| (key, value)).peekable();
    let (mut old, mut new) = (rows(old), rows(new));
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old_key, _)), Some((new_key, _))) => old_key.cmp(new_key),
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        let values = (before.map(|(_, value)| value), after.map(|(_, value)| value));
        if let Some((key, _)) = after.or(before)
            && values.0 != values.1
        {
            found.push(Difference { key, old: values.0, new: values.1 });
        }
    }
}

/// Which branch and which part of it. The hash has no secret: parts are sorted, so a crowded one costs only its copies.
fn place<Q: Hash + ?Sized>(key: &Q) -> (usize, usize) {
    let hash = FixedState::default().hash_one(key).to_ne_bytes();
    (usize::from(hash[0]) % FAN, usize::from(hash[1]) % FAN)
}

/// Where the key is in its part, or where it belongs.
fn find<K: Borrow<Q>, V, Q: Ord + ?Sized>(part: &[(K, V)], key: &Q) -> Result<usize, usize> {
    part.binary_search_by(|(other, _)| other.borrow().cmp(key))
}

/// Grows a part by less than the usual doubling: there are many parts, and each of them stays.
fn add<K, V>(part: &mut Part<K, V>, position: usize, row: (K, V)) {
    if part.len() == part.capacity() {
        part.reserve_exact(part.len() / 4 + 1);
    }
    part.insert(position, row);
}

/// The part with these changes, which are sorted by key.
fn merge<K: Ord, V, T>(
    part: Part<K, V>,
    changes: Vec<(K, T)>,
    change: impl Fn(Option<V>, T) -> Option<V>,
) -> Part<K, V> {
    let mut merged = Part::with_capacity(part.len() + changes.len());
    let mut rows = part.into_iter().peekable();
    for (key, value) in changes {
        while let Some(row) = rows.next_if(|(other, _)| *other < key) {
            merged.push(row);
        }
        let same = |(other, _): &(K, V)| *other == key;
        let before = rows.next_if(same).or_else(|| merged.pop_if(|row| same(row)));
        if let Some(value) = change(before.map(|(_, value)| value), value) {
            merged.push((key, value));
        }
    }
    merged.extend(rows);
    // Most of what was foreseen may have been removals; maps stay as they are for long.
    if merged.len() < merged.capacity() / 2 {
        merged.shrink_to_fit();
    }
    merged
}

impl<K: Ord + Hash, V> SharedMap<K, V> {
    fn part<Q: Hash + ?Sized>(&self, key: &Q) -> &Part<K, V> {
        let (branch, part) = place(key);
        &self.root[branch][part]
    }

    /// The value of a key.
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        let part = self.part(key);
        find(part, key).ok().map(|position| &part[position].1)
    }

    /// Whether there is such a key.
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        find(self.part(key), key).is_ok()
    }
}

impl<K: Ord + Hash + Clone, V: Clone> SharedMap<K, V> {
    fn part_mut<Q: Hash + ?Sized>(&mut self, key: &Q) -> &mut Part<K, V> {
        let (branch, part) = place(key);
        Arc::make_mut(&mut Arc::make_mut(&mut Arc::make_mut(&mut self.root)[branch])[part])
    }

    /// Adds or replaces an entry; the value it had before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let part = self.part_mut(&key);
        match find(part, &key) {
            Ok(position) => Some(std::mem::replace(&mut part[position].1, value)),
            Err(position) => {
                add(part, position, (key, value));
                self.len += 1;
                None
            }
        }
    }

    /// Removes an entry; its value. Without one, nothing is copied.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        if !self.contains_key(key) {
            return None;
        }
        self.len -= 1;
        let part = self.part_mut(key);
        find(part, key).ok().map(|position| part.remove(position).1)
    }

    /// The value of a key, to be changed.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Ord + Hash + ?Sized,
    {
        if !self.contains_key(key) {
            return None;
        }
        let part = self.part_mut(key);
        find(part, key).ok().map(|position| &mut part[position].1)
    }

    /// Changes entries, in whatever order: `change` makes the value that a key has then from the one that it has, if any.
    /// Of one key the changes follow each other. If there are many, each part is copied once.
    pub fn update<T>(
        &mut self,
        changes: impl IntoIterator<Item = (K, T)>,
        change: impl Fn(Option<V>, T) -> Option<V>,
    ) {
        let changes = changes.into_iter();
        if changes.size_hint().0 >= FAN * FAN {
            self.update_parts(changes, change);
            return;
        }
        for (key, value) in changes {
            let before = self.remove(&key);
            if let Some(value) = change(before, value) {
                self.insert(key, value);
            }
        }
    }

    fn update_parts<T>(
        &mut self,
        changes: impl Iterator<Item = (K, T)>,
        change: impl Fn(Option<V>, T) -> Option<V>,
    ) {
        let mut of_parts: Vec<Vec<(K, T)>> = iter::repeat_with(Vec::new).take(FAN * FAN).collect();
        for (key, value) in changes {
            let (branch, part) = place(&key);
            of_parts[branch * FAN + part].push((key, value));
        }
        let changed = of_parts.into_iter().enumerate().filter(|(_, changes)| !changes.is_empty());
        for (index, mut changes) in changed {
            changes.sort_by(|(key, _), (other, _)| key.cmp(other));
            let branch = Arc::make_mut(&mut Arc::make_mut(&mut self.root)[index / FAN]);
            let part = Arc::make_mut(&mut branch[index % FAN]);
            let before = part.len();
            *part = merge(std::mem::take(part), changes, &change);
            self.len = self.len + part.len() - before;
        }
    }

    /// The value of a key, made first if there is none.
    pub fn or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        let (branch, part) = place(&key);
        let branch = Arc::make_mut(&mut Arc::make_mut(&mut self.root)[branch]);
        let part = Arc::make_mut(&mut branch[part]);
        let position = find(part, &key).unwrap_or_else(|position| {
            self.len += 1;
            add(part, position, (key, V::default()));
            position
        });
        &mut part[position].1
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: Arc::clone(&self.root), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let mut branches = unshared(&*self.root, &*other.root);
        self.len == other.len
            && branches.all(|(old, new)| unshared(&**old, &**new).all(|(old, new)| old == new))
    }
}

impl<K: Eq, V: Eq> Eq for SharedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K, V, Q> Index<&Q> for SharedMap<K, V>
where
    K: Ord + Hash + Borrow<Q>,
    Q: Ord + Hash + ?Sized,
{
    type Output = V;

    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("an entry of this key")
    }
}

impl<K: Ord + Hash + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        self.update(entries, |_, value| Some(value));
    }
}

impl<K: Ord + Hash + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Hash + Clone, V: Clone, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K: Serialize, V: Serialize> Serialize for SharedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, K, V> Deserialize<'de> for SharedMap<K, V>
where
    K: Deserialize<'de> + Ord + Hash + Clone,
    V: Deserialize<'de> + Clone,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries(Self::new()))
    }
}

/// Collects entries as they are read, without holding them twice.
struct Entries<K, V>(SharedMap<K, V>);

impl<'de, K, V> Visitor<'de> for Entries<K, V>
where
    K: Deserialize<'de> + Ord + Hash + Clone,
    V: Deserialize<'de> + Clone,
{
    type Value = SharedMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Self::Value, A::Error> {
        while let Some((key, value)) = access.next_entry()? {
            self.0.insert(key, value);
        }
        Ok(self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Difference, SharedMap};

    fn numbers(count: u32) -> SharedMap<u32, u32> {
        (0..count).map(|number| (number, number)).collect()
    }

    /// Against one change after the other: keys that come, go, stay and come several times.
    #[test]
    fn many_changes_at_once_are_as_one_after_the_other() {
        let plain_numbers = || (0..500).map(|number| (number, number));
        let mut plain: BTreeMap<u32, u32> = plain_numbers().collect();
        let start = numbers(500);
        let (mut at_once, mut by_and_by) = (start.clone(), start.clone());
        let changes: Vec<(u32, u32)> =
            (0..3_000_u32).map(|step| (step.wrapping_mul(2_654_435_761) % 900, step)).collect();
        let change =
            |before: Option<u32>, step: u32| (!step.is_multiple_of(3)).then(|| before.unwrap_or(0) + step);
        for &(key, step) in &changes {
            if let Some(value) = change(plain.remove(&key), step) {
                plain.insert(key, value);
            }
        }
        changes.chunks(7).for_each(|some| by_and_by.update(some.iter().copied(), change));
        at_once.update(changes, change);
        for map in [&at_once, &by_and_by] {
            assert_eq!((map.sorted(), map.len()), (plain.iter().collect(), plain.len()));
        }
        assert_eq!(start.sorted(), plain_numbers().collect::<BTreeMap<_, _>>().iter().collect::<Vec<_>>());
    }

    /// Against a plain map, over a history of changes with a copy kept at each step.
    #[test]
    fn it_is_a_map_and_copies_do_not_change() {
        let (mut map, mut plain) = (SharedMap::new(), BTreeMap::new());
        let mut copies = Vec::new();
        for step in 0..2_000_u32 {
            let key = step.wrapping_mul(2_654_435_761) % 300;
            if step % 3 == 0 {
                assert_eq!(map.remove(&key), plain.remove(&key));
            } else {
                assert_eq!(map.insert(key, step), plain.insert(key, step));
            }
            *map.or_default(key / 2) += 1;
            *plain.entry(key / 2).or_default() += 1;
            if let Some(value) = map.get_mut(&7) {
                *value += 1;
                *plain.get_mut(&7).unwrap() += 1;
            }
            copies.push((map.clone(), plain.clone()));
        }
        for (map, plain) in &copies {
            assert_eq!(map.sorted(), plain.iter().collect::<Vec<_>>());
            assert_eq!((map.len(), map.is_empty()), (plain.len(), plain.is_empty()));
        }
        for pair in copies.windows(2) {
            assert_eq!(pair[0].0 == pair[1].0, pair[0].1 == pair[1].1);
        }
    }

    #[test]
    fn the_difference_is_what_differs_shared_or_not() {
        let old = numbers(1_000);
        let mut new = old.clone();
        new.insert(5, 50);
        new.insert(2_000, 1);
        new.remove(&6);
        let unrelated: SharedMap<u32, u32> = new.sorted().into_iter().map(|(k, v)| (*k, *v)).collect();
        for new in [&new, &unrelated] {
            let mut found = old.difference(new);
            found.sort_by_key(|difference| *difference.key);
            let expected = [
                Difference { key: &5, old: Some(&5), new: Some(&50) },
                Difference { key: &6, old: Some(&6), new: None },
                Difference { key: &2_000, old: None, new: Some(&1) },
            ];
            assert_eq!(found, expected);
        }
        assert!(old.is_same(&old.clone()) && !old.is_same(&new));
    }

    /// What a round costs at 100,000 entries: the parts that one change copies are all that is not shared.
    #[test]
    fn a_change_copies_one_part() {
        let old = numbers(100_000);
        let mut new = old.clone();
        new.insert(5, 50);
        let branches = super::unshared(&*old.root, &*new.root);
        let parts: Vec<_> = branches.flat_map(|(old, new)| super::unshared(&**old, &**new)).collect();
        assert_eq!(parts.len(), 1);
        assert!(parts[0].0.len() < 300, "keys spread over the parts");
    }

    #[test]
    fn it_survives_the_disk() {
        let map: SharedMap<String, u32> = [("a".to_owned(), 1), ("b".to_owned(), 2)].into();
        let text = serde_json::to_string(&map).unwrap();
        assert_eq!(serde_json::from_str::<SharedMap<String, u32>>(&text).unwrap(), map);
    }
}
