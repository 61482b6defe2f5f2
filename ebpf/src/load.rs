//! How busy backends are: connections counted up when a flow begins, down when it ends.
//!
//! Called by `flow` for connections through the data path, by `socket` for those of the node's own sockets. Counts are
//! added to atomically and never fall below nothing; what evicted entries leave behind is user space's to correct.

use core::arch::asm;

use quilla_abi::load::Load;
use quilla_ebpf_core::service::is_grown;

use crate::helper;
use crate::maps::Maps;

/// A connection to the backend begins.
#[inline(always)]
pub(crate) fn join<F: Maps>(backend: u32) {
    add::<F>(backend, 1);
}

/// One is over.
#[inline(always)]
pub(crate) fn leave<F: Maps>(backend: u32) {
    if open::<F>(backend) != 0 {
        add::<F>(backend, u32::MAX);
    }
}

/// How many there are.
#[inline(always)]
pub(crate) fn open<F: Maps>(backend: u32) -> u32 {
    row::<F>(backend).map_or(0, |load| load.connections)
}

/// How long ago the backend appeared, in ticks; `None`: long ago. That is written down before the clock has gone round.
#[inline(always)]
pub(crate) fn age<F: Maps>(backend: u32) -> Option<u32> {
    let load = row::<F>(backend)?;
    if load.since == 0 {
        return None;
    }
    let age = helper::now().wrapping_sub(load.since);
    if is_grown(age, helper::hz()) {
        load.since = 0;
        return None;
    }
    Some(age)
}

#[inline(always)]
fn row<F: Maps>(backend: u32) -> Option<&'static mut Load> {
    helper::row(F::loads(), backend)
}

#[inline(always)]
fn add<F: Maps>(backend: u32, difference: u32) {
    if let Some(load) = row::<F>(backend) {
        let count = &raw mut load.connections;
        // SAFETY: an aligned word of a row that the kernel never frees.
        unsafe {
            asm!("lock *(u32 *)({0} + 0) += {1}", in(reg) count, in(reg) u64::from(difference), options(nostack));
        };
    }
}
