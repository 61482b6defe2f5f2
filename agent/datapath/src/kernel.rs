//! What this kernel is: its release, and how fast its clock ticks.
//!
//! Read once when the object is loaded. Nothing here depends on privileges.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use crate::error::{DatapathError, Result};

/// Frequencies that kernels are built with.
const FREQUENCIES: [u32; 4] = [100, 250, 300, 1000];

/// Major and minor number of a kernel release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32);

impl Release {
    /// The first kernel with tcx links.
    pub const TCX: Self = Self(6, 6);
    /// The first kernel with `BPF_F_IPV6` in `bpf_l4_csum_replace`.
    pub const IPV6_CHECKSUM: Self = Self(6, 16);

    /// Of the running kernel.
    pub fn current() -> Result<Self> {
        let failed = |source| DatapathError::kernel("read", "the kernel's release", source);
        // SAFETY: all zero bytes are a value of this struct of byte arrays.
        let mut name: libc::utsname = unsafe { std::mem::zeroed() };
        // SAFETY: `name` is valid for writes.
        if unsafe { libc::uname(&raw mut name) } != 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        // SAFETY: the kernel ends the field with a zero byte, and it outlives the borrow.
        let release = unsafe { CStr::from_ptr(name.release.as_ptr()) }.to_string_lossy();
        Self::parse(&release).ok_or_else(|| failed(io::Error::other(release.into_owned())))
    }

    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// Ticks of `jiffies` per second. The coarse clocks advance once per tick, and their resolution says so.
pub fn ticks_per_second() -> Result<u32> {
    let mut resolution = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `resolution` is valid for writes.
    if unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut resolution) } != 0 {
        return Err(DatapathError::kernel(
            "read the resolution of",
            "the coarse clock",
            io::Error::last_os_error(),
        ));
    }
    Ok(nearest_frequency(resolution.tv_nsec.unsigned_abs()))
}

/// The low 32 bits of `jiffies64`, as the programs read them; never 0, which rows take for no time at all.
///
/// The kernel advances them by the monotonic clock, from five minutes before they overflow (`INITIAL_JIFFIES`).
pub fn jiffies() -> Result<u32> {
    let hz = ticks_per_second()?;
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writes.
    if unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) } != 0 {
        return Err(DatapathError::kernel("read", "the coarse clock", io::Error::last_os_error()));
    }
    let since_boot = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    Ok(ticks_at(since_boot, hz))
}

fn ticks_at(since_boot: Duration, hz: u32) -> u32 {
    let ticks = since_boot.as_nanos() * u128::from(hz) / 1_000_000_000;
    let start = 0_u32.wrapping_sub(300 * hz);
    let low = u32::try_from(ticks & u128::from(u32::MAX)).unwrap_or(0);
    start.wrapping_add(low).max(1)
}

fn nearest_frequency(tick_nanoseconds: u64) -> u32 {
    let measured = 1_000_000_000 / tick_nanoseconds.max(1);
    let distance = |frequency: u32| u64::from(frequency).abs_diff(measured);
    FREQUENCIES.into_iter().min_by_key(|&frequency| distance(frequency)).unwrap_or(FREQUENCIES[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_and_ordered() {
        assert_eq!(Release::parse("6.18.44"), Some(Release(6, 18)));
        assert_eq!(Release::parse("5.10.0-32-amd64"), Some(Release(5, 10)));
        assert_eq!(Release::parse("rolling"), None);
        assert!(Release(6, 18) > Release::TCX && Release(5, 19) < Release::TCX);
    }

    #[test]
    fn jiffies_start_five_minutes_before_they_overflow() {
        assert_eq!(ticks_at(Duration::ZERO, 250), u32::MAX - 75_000 + 1);
        assert_eq!(ticks_at(Duration::from_mins(5), 250), 1, "0 is no time");
        assert_eq!(ticks_at(Duration::from_secs(301), 250), 250);
    }

    /// The kernel's own number, where it tells it.
    #[test]
    fn jiffies_are_those_of_the_kernel() {
        let list = std::fs::read_to_string("/proc/timer_list").expect("this test needs root");
        let before = jiffies().unwrap();
        let told = list.lines().find_map(|line| line.strip_prefix("jiffies: ")).expect("a line of jiffies");
        #[expect(clippy::cast_possible_truncation, reason = "the low half is asked for")]
        let told = told.parse::<u64>().unwrap() as u32;
        let apart = before.wrapping_sub(told).cast_signed().unsigned_abs();
        assert!(apart < 60 * ticks_per_second().unwrap(), "{apart} ticks apart");
    }

    #[test]
    fn a_tick_names_its_frequency() {
        for (nanoseconds, frequency) in
            [(10_000_000, 100), (4_000_000, 250), (3_333_333, 300), (1_000_000, 1000)]
        {
            assert_eq!(nearest_frequency(nanoseconds), frequency);
        }
    }
}
