//! Per-CPU arrays of counters: written by the kernel without locks, summed here.

use std::marker::PhantomData;
use std::os::fd::OwnedFd;

use aya::Pod;
use quilla_abi::counter::Counter;

use crate::error::{DatapathError, Result};
use crate::map::raw::{RawMap, bytes, bytes_mut};

/// Values of which the total over all CPUs means something.
pub trait Sum: Pod + Default {
    /// Adds what another CPU counted.
    fn add(&mut self, other: &Self);
}

impl Sum for u64 {
    fn add(&mut self, other: &Self) {
        *self = self.wrapping_add(*other);
    }
}

impl Sum for Counter {
    fn add(&mut self, other: &Self) {
        self.packets.add(&other.packets);
        self.bytes.add(&other.bytes);
    }
}

/// A per-CPU array of counters.
#[derive(Debug)]
pub struct Counters<V> {
    raw: RawMap,
    cpus: usize,
    rows: PhantomData<fn() -> V>,
}

impl<V: Sum> Counters<V> {
    /// The kernel lays the values of the CPUs out at multiples of 8 bytes; ours have no gaps between them.
    const WITHOUT_GAPS: () = assert!(size_of::<V>().is_multiple_of(8));

    /// Takes a per-CPU array, which must have rows of this size.
    pub fn new(name: &str, fd: OwnedFd) -> Result<Self> {
        let () = Self::WITHOUT_GAPS;
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, source)| DatapathError::kernel("count the processors in", path, source))?;
        Ok(Self { raw: RawMap::new(name, fd, size_of::<u32>(), size_of::<V>())?, cpus, rows: PhantomData })
    }

    /// The total of one row; zero beyond the end.
    pub fn total(&self, index: u32) -> Result<V> {
        let mut values = vec![V::default(); self.cpus];
        let mut total = V::default();
        if self.raw.get(bytes(&[index]), bytes_mut(&mut values))? {
            for value in &values {
                total.add(value);
            }
        }
        Ok(total)
    }

    /// The totals of all rows, in order.
    pub fn totals(&self) -> Result<Vec<V>> {
        (0..self.raw.capacity()).map(|index| self.total(index)).collect()
    }

    /// Starts a row anew. For tests: a count that other programs are writing may survive.
    pub fn reset(&self, index: u32) -> Result<()> {
        self.raw.set(bytes(&[index]), bytes(&vec![V::default(); self.cpus]))
    }
}
