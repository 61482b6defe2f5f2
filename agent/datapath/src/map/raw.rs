//! A map as bytes: the only caller of the row and batch calls of [`crate::sys`].
//!
//! The typed tables are built on it. Sizes are checked once, when a table is made, against what the kernel says the map
//! is; every slice given to the kernel afterwards comes from typed rows of exactly those sizes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::Pod;

use crate::error::{DatapathError, Result};
use crate::sys::{self, MapInfo, Progress};

/// Rows per call: beyond some hundreds the call itself no longer counts.
const BATCH: usize = 4096;
/// A bucket of a hash that is longer than this is not believable; the doubling stops there.
const MAX_BATCH: usize = 1 << 20;
/// How often a dump of a map that changes underneath is begun anew before the kernel's answer is passed on.
const RESTARTS: u32 = 8;

#[derive(Debug)]
pub(crate) struct RawMap {
    name: String,
    fd: OwnedFd,
    info: MapInfo,
}

/// The bytes of typed rows.
pub(crate) fn bytes<T: Pod>(rows: &[T]) -> &[u8] {
    // SAFETY: `Pod` types are plain data without padding; the length is that of the slice.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
}

/// The same for writing.
pub(crate) fn bytes_mut<T: Pod>(rows: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and any bytes are a value of a `Pod` type.
    unsafe { std::slice::from_raw_parts_mut(rows.as_mut_ptr().cast(), size_of_val(rows)) }
}

impl RawMap {
    /// Takes a map whose rows are `key` and `value` bytes long.
    pub(crate) fn new(name: &str, fd: OwnedFd, key: usize, value: usize) -> Result<Self> {
        let info: MapInfo =
            sys::info(fd.as_fd()).map_err(|source| DatapathError::kernel("inspect map", name, source))?;
        let found = (info.key_size as usize, info.value_size as usize);
        if found != (key, value) {
            return Err(DatapathError::MapShape { map: name.to_owned(), expected: (key, value), found });
        }
        Ok(Self { name: name.to_owned(), fd, info })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.info.max_entries
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn error(&self, operation: &'static str, source: io::Error) -> DatapathError {
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) if operation == WRITE => {
                DatapathError::MapFull { map: self.name.clone(), capacity: self.capacity() }
            }
            _ => DatapathError::kernel(operation, &self.name, source),
        }
    }

    /// `value` may be longer than the map's value size: per-CPU maps give one value per CPU.
    pub(crate) fn get(&self, key: &[u8], value: &mut [u8]) -> Result<bool> {
        // SAFETY: the typed tables pass rows of the sizes checked in `new`.
        unsafe { sys::lookup(self.fd(), key, value) }.map_err(|source| self.error(READ, source))
    }

    pub(crate) fn set(&self, key: &[u8], value: &[u8]) -> Result<()> {
        // SAFETY: as in `get`.
        unsafe { sys::update(self.fd(), key, value) }.map_err(|source| self.error(WRITE, source))
    }

    pub(crate) fn delete(&self, key: &[u8]) -> Result<bool> {
        // SAFETY: as in `get`.
        unsafe { sys::delete(self.fd(), key) }.map_err(|source| self.error(REMOVE, source))
    }

    /// Writes all rows, in order. Without batches in the kernel, one by one.
    pub(crate) fn set_all<K: Pod, V: Pod>(&self, keys: &[K], values: &[V]) -> Result<()> {
        for (keys, values) in keys.chunks(BATCH).zip(values.chunks(BATCH)) {
            // SAFETY: the chunks have equally many rows, of the sizes checked in `new`.
            let Progress { result, .. } =
                unsafe { sys::update_batch(self.fd(), bytes(keys), bytes(values), count(keys.len())) };
            match result {
                Ok(()) => {}
                Err(source) if unsupported(&source) => {
                    for (key, value) in keys.iter().zip(values) {
                        self.set(bytes(std::slice::from_ref(key)), bytes(std::slice::from_ref(value)))?;
                    }
                }
                Err(source) => return Err(self.error(WRITE, source)),
            }
        }
        Ok(())
    }

    /// Removes the rows that are there; says how many were.
    pub(crate) fn delete_all<K: Pod>(&self, keys: &[K]) -> Result<usize> {
        let mut removed = 0;
        let mut rest = keys;
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(BATCH)];
            // SAFETY: `chunk` holds keys of the size checked in `new`.
            let Progress { done, result } =
                unsafe { sys::delete_batch(self.fd(), bytes(chunk), count(chunk.len())) };
            let done = done.min(chunk.len());
            match result {
                Ok(()) => {
                    removed += chunk.len();
                    rest = &rest[chunk.len()..];
                }
                // The row after the last one done is not there, which is what we want.
                Err(source) if source.raw_os_error() == Some(libc::ENOENT) && done < chunk.len() => {
                    removed += done;
                    rest = &rest[done + 1..];
                }
                Err(source) if unsupported(&source) => {
                    for key in chunk {
                        removed += usize::from(self.delete(bytes(std::slice::from_ref(key)))?);
                    }
                    rest = &rest[chunk.len()..];
                }
                Err(source) => return Err(self.error(REMOVE, source)),
            }
        }
        Ok(removed)
    }

    /// Visits every row. Rows that change meanwhile may be seen before or after the change, or twice.
    pub(crate) fn visit<K, V>(&self, mut visitor: impl FnMut(&K, &V)) -> Result<()>
    where
        K: Pod + Default,
        V: Pod + Default,
    {
        if self.visit_batches(&mut visitor)? { Ok(()) } else { self.visit_singly(&mut visitor) }
    }

    /// `false`: no batches for this type of map in this kernel, and nothing was visited.
    fn visit_batches<K, V>(&self, visitor: &mut impl FnMut(&K, &V)) -> Result<bool>
    where
        K: Pod + Default,
        V: Pod + Default,
    {
        // A position is a bucket number (4 bytes) for hashes and a key for the other types.
        let mut position = vec![0_u8; size_of::<K>().max(4)];
        let mut next = position.clone();
        let mut started = false;
        let mut size = BATCH.min(self.capacity() as usize).max(1);
        let (mut keys, mut values) = (vec![K::default(); size], vec![V::default(); size]);
        let mut restarts = 0;
        loop {
            let from = started.then_some(position.as_slice());
            let (key_bytes, value_bytes) = (bytes_mut(&mut keys), bytes_mut(&mut values));
            // SAFETY: both vectors have room for `size` rows, the positions for a key and for 4 bytes.
            let Progress { done, result } =
                unsafe { sys::lookup_batch(self.fd(), from, &mut next, key_bytes, value_bytes, count(size)) };
            let Err(source) = result else {
                keys.iter().zip(&values).take(done).for_each(|(key, value)| visitor(key, value));
                position.copy_from_slice(&next);
                started = true;
                continue;
            };
            match source.raw_os_error() {
                // The end.
                Some(libc::ENOENT) => {
                    keys.iter().zip(&values).take(done).for_each(|(key, value)| visitor(key, value));
                    return Ok(true);
                }
                // One bucket holds more rows than fit.
                Some(libc::ENOSPC) if size < MAX_BATCH => {
                    size *= 2;
                    keys.resize(size, K::default());
                    values.resize(size, V::default());
                }
                // The row at the position was removed meanwhile.
                Some(libc::EINTR | libc::EAGAIN) if restarts < RESTARTS => restarts += 1,
                Some(sys::ENOTSUPP | libc::EOPNOTSUPP) if !started => return Ok(false),
                _ => return Err(self.error(READ, source)),
            }
        }
    }

    fn visit_singly<K, V>(&self, visitor: &mut impl FnMut(&K, &V)) -> Result<()>
    where
        K: Pod + Default,
        V: Pod + Default,
    {
        let (mut key, mut next, mut value) = ([K::default()], [K::default()], [V::default()]);
        let mut started = false;
        // A key that vanishes sends the walk back to the beginning; twice the size of the map bounds that.
        for _ in 0..2 * u64::from(self.capacity()) {
            // SAFETY: all three have the sizes checked in `new`.
            let found =
                unsafe { sys::next_key(self.fd(), started.then_some(bytes(&key)), bytes_mut(&mut next)) }
                    .map_err(|source| self.error(READ, source))?;
            if !found {
                break;
            }
            key = next;
            started = true;
            if self.get(bytes(&key), bytes_mut(&mut value))? {
                visitor(&key[0], &value[0]);
            }
        }
        Ok(())
    }
}

const READ: &str = "read map";
const WRITE: &str = "write map";
const REMOVE: &str = "remove from map";

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(sys::ENOTSUPP | libc::EOPNOTSUPP))
}

fn count(rows: usize) -> u32 {
    u32::try_from(rows).expect("batches are bounded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_the_rows() {
        assert_eq!(bytes(&[1_u16.to_be(), 2_u16.to_be()]), [0, 1, 0, 2]);
        let mut rows = [0_u32; 2];
        bytes_mut(&mut rows)[4..].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(rows, [0, 7]);
    }
}
