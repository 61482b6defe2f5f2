//! Arrays: rows that are always there, all zero until written.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;

use aya::Pod;

use crate::error::Result;
use crate::map::raw::{RawMap, bytes, bytes_mut};

/// An array with rows of a known type.
#[derive(Debug)]
pub struct ArrayTable<V> {
    raw: RawMap,
    rows: PhantomData<fn() -> V>,
}

impl<V: Pod + Default> ArrayTable<V> {
    /// Takes an array, which must have rows of this size.
    pub fn new(name: &str, fd: OwnedFd) -> Result<Self> {
        Ok(Self { raw: RawMap::new(name, fd, size_of::<u32>(), size_of::<V>())?, rows: PhantomData })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.raw.name()
    }

    /// How many rows it has.
    pub fn capacity(&self) -> u32 {
        self.raw.capacity()
    }

    /// The row at `index`, or nothing beyond the end.
    pub fn get(&self, index: u32) -> Result<Option<V>> {
        let mut value = [V::default()];
        let found = self.raw.get(bytes(&[index]), bytes_mut(&mut value))?;
        Ok(found.then_some(value[0]))
    }

    /// Writes one row.
    pub fn set(&self, index: u32, value: &V) -> Result<()> {
        self.raw.set(bytes(&[index]), bytes(slice::from_ref(value)))
    }

    /// Writes rows in the order given. A failure leaves the rows before it.
    pub fn set_batch(&self, rows: &[(u32, V)]) -> Result<()> {
        let (indices, values): (Vec<u32>, Vec<V>) = rows.iter().copied().unzip();
        self.raw.set_all(&indices, &values)
    }

    /// All rows, in order.
    pub fn rows(&self) -> Result<Vec<V>> {
        let mut rows = vec![V::default(); self.capacity() as usize];
        self.raw.visit(|index: &u32, value: &V| {
            if let Some(row) = rows.get_mut(*index as usize) {
                *row = *value;
            }
        })?;
        Ok(rows)
    }
}

impl<V> AsFd for ArrayTable<V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.fd()
    }
}
