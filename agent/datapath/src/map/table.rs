//! Hashes and tries: rows that come and go.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;

use aya::Pod;

use crate::error::Result;
use crate::map::raw::{RawMap, bytes, bytes_mut};

/// A hash, LRU hash or longest-prefix-match trie with rows of known types.
#[derive(Debug)]
pub struct Table<K, V> {
    raw: RawMap,
    rows: PhantomData<fn() -> (K, V)>,
}

impl<K: Pod + Default, V: Pod + Default> Table<K, V> {
    /// Takes a map of any of these types, which must have rows of these sizes.
    pub fn new(name: &str, fd: OwnedFd) -> Result<Self> {
        Ok(Self { raw: RawMap::new(name, fd, size_of::<K>(), size_of::<V>())?, rows: PhantomData })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.raw.name()
    }

    /// How many rows it can hold.
    pub fn capacity(&self) -> u32 {
        self.raw.capacity()
    }

    /// How many rows it holds. The kernel does not count: this reads the whole map.
    pub fn len(&self) -> Result<usize> {
        let mut rows = 0;
        self.for_each(|_, _| rows += 1)?;
        Ok(rows)
    }

    /// Whether it holds no row; reads the whole map.
    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|rows| rows == 0)
    }

    /// The row of `key`; of a trie, of the longest prefix that covers it.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = [V::default()];
        let found = self.raw.get(bytes(slice::from_ref(key)), bytes_mut(&mut value))?;
        Ok(found.then_some(value[0]))
    }

    /// Writes one row, new or not.
    pub fn insert(&self, key: &K, value: &V) -> Result<()> {
        self.raw.set(bytes(slice::from_ref(key)), bytes(slice::from_ref(value)))
    }

    /// Writes rows, new or not, in the order given. Each row changes at once; a failure leaves the rows before it.
    pub fn insert_batch(&self, rows: &[(K, V)]) -> Result<()> {
        let (keys, values): (Vec<K>, Vec<V>) = rows.iter().copied().unzip();
        self.raw.set_all(&keys, &values)
    }

    /// Removes one row; says whether it was there.
    pub fn remove(&self, key: &K) -> Result<bool> {
        self.raw.delete(bytes(slice::from_ref(key)))
    }

    /// Removes the rows that are there; says how many were.
    pub fn remove_batch(&self, keys: &[K]) -> Result<usize> {
        self.raw.delete_all(keys)
    }

    /// All rows. Not a snapshot: a row that changes meanwhile may be seen before or after the change.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut rows = Vec::new();
        self.for_each(|key, value| rows.push((*key, *value)))?;
        Ok(rows)
    }

    /// The same without keeping them.
    pub fn for_each(&self, visitor: impl FnMut(&K, &V)) -> Result<()> {
        self.raw.visit(visitor)
    }
}

impl<K, V> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.fd()
    }
}
