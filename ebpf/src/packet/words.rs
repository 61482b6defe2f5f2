//! Bytes of packets and of rows, taken as words whatever their alignment.
//!
//! The compiler assumes no alignment and would take bytes one by one; the machines that this runs on need not. Called by
//! `packet`, which knows where a packet's bytes lie. Invariant: what is loaded and stored is the same, byte by byte.

use core::arch::asm;
use core::ptr;

macro_rules! access {
    ($($read:ident, $write:ident, $type:ty, $size:literal;)+) => {$(
        /// Reads at a constant distance. For all the compiler knows it writes, too: or it would keep pointers into packets
        /// in halves, which are no pointers any more.
        ///
        /// # Safety
        /// The bytes must be readable.
        #[inline(always)]
        pub(crate) unsafe fn $read<const AT: usize>(from: *const u8) -> $type {
            let value: u64;
            // SAFETY: the caller's.
            unsafe {
                asm!(
                    concat!("{value} = *(", $size, " *)({from} + {at})"),
                    value = out(reg) value,
                    from = in(reg) from,
                    at = const AT,
                    options(nostack, preserves_flags)
                );
            }
            value as $type
        }

        /// Writes at a constant distance.
        ///
        /// # Safety
        /// The bytes must be writable.
        #[inline(always)]
        pub(crate) unsafe fn $write<const AT: usize>(to: *mut u8, value: $type) {
            // SAFETY: the caller's.
            unsafe {
                asm!(
                    concat!("*(", $size, " *)({to} + {at}) = {value}"),
                    value = in(reg) u64::from(value),
                    to = in(reg) to,
                    at = const AT,
                    options(nostack, preserves_flags)
                );
            }
        }
    )+};
}

access! {
    byte, set_byte, u8, "u8";
    half, set_half, u16, "u16";
    word, set_word, u32, "u32";
    double, set_double, u64, "u64";
}

/// Does something with every word of `$size` bytes, which the compiler knows, then with what is left.
macro_rules! each {
    ($size:expr, $word:ident, $half:ident, $byte:ident) => {
        const { assert!($size <= 40) };
        each!(@ $size, $word, $half, $byte, 0 4 8 12 16 20 24 28 32 36);
    };
    (@ $size:expr, $word:ident, $half:ident, $byte:ident, $($at:literal)+) => {$(
        if $at + 4 <= $size {
            $word!($at);
        } else {
            if $at + 2 <= $size {
                $half!($at);
            }
            if $at + 1 == $size {
                $byte!($at);
            } else if $at + 3 == $size {
                $byte!($at + 2);
            }
        }
    )+};
}

/// Reads bytes.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(crate) unsafe fn load<const N: usize>(from: *const [u8; N]) -> [u8; N] {
    let from = from.cast::<u8>();
    let mut bytes = [0; N];
    let to = bytes.as_mut_ptr();
    macro_rules! take {
        ($read:ident, $at:expr) => {
            // SAFETY: within the bytes of both, whose size was compared; the copy may have any alignment.
            unsafe { ptr::write_unaligned(to.add($at).cast(), $read::<{ $at }>(from)) }
        };
    }
    macro_rules! take_word {
        ($at:expr) => {
            take!(word, $at)
        };
    }
    macro_rules! take_half {
        ($at:expr) => {
            take!(half, $at)
        };
    }
    macro_rules! take_byte {
        ($at:expr) => {
            take!(byte, $at)
        };
    }
    each!(N, take_word, take_half, take_byte);
    bytes
}

/// Writes bytes.
///
/// # Safety
/// They must be writable, and `T` must have no padding.
#[inline(always)]
pub(crate) unsafe fn store<T: Copy>(to: *mut T, value: T) {
    let to = to.cast::<u8>();
    let from = (&raw const value).cast::<u8>();
    macro_rules! put {
        ($write:ident, $at:expr) => {
            // SAFETY: as in `load`.
            unsafe { $write::<{ $at }>(to, ptr::read_unaligned(from.add($at).cast())) }
        };
    }
    macro_rules! put_word {
        ($at:expr) => {
            put!(set_word, $at)
        };
    }
    macro_rules! put_half {
        ($at:expr) => {
            put!(set_half, $at)
        };
    }
    macro_rules! put_byte {
        ($at:expr) => {
            put!(set_byte, $at)
        };
    }
    each!(size_of::<T>(), put_word, put_half, put_byte);
}

/// Copies bytes of a row, an even number of them.
///
/// # Safety
/// They must be writable, and `T` must have no padding.
#[inline(always)]
pub(crate) unsafe fn copy<T>(from: &T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(2) && size_of::<T>() <= 88) };
    let (from, to) = (ptr::from_ref(from).cast::<u8>(), to.cast::<u8>());
    macro_rules! move_one {
        ($read:ident, $write:ident, $at:expr) => {
            // SAFETY: as in `load`.
            unsafe { $write::<{ $at }>(to, $read::<{ $at }>(from)) }
        };
    }
    macro_rules! move_each {
        ($($at:literal)+) => {$(
            if $at + 8 <= size_of::<T>() {
                move_one!(double, set_double, $at);
            } else {
                if $at + 4 <= size_of::<T>() {
                    move_one!(word, set_word, $at);
                }
                if $at + 6 == size_of::<T>() {
                    move_one!(half, set_half, $at + 4);
                }
                if $at + 2 == size_of::<T>() {
                    move_one!(half, set_half, $at);
                }
            }
        )+};
    }
    move_each!(0 8 16 24 32 40 48 56 64 72 80);
}

/// Whether bytes of two places are the same.
///
/// # Safety
/// They must be readable, and `T` must have no padding.
#[inline(always)]
pub(crate) unsafe fn are_equal<T>(a: *const T, b: *const T) -> bool {
    let (a, b) = (a.cast::<u8>(), b.cast::<u8>());
    let mut differences = 0;
    macro_rules! compare {
        ($read:ident, $at:expr) => {
            // SAFETY: as in `load`.
            differences |= unsafe { u32::from($read::<{ $at }>(a)) ^ u32::from($read::<{ $at }>(b)) }
        };
    }
    macro_rules! compare_word {
        ($at:expr) => {
            compare!(word, $at)
        };
    }
    macro_rules! compare_half {
        ($at:expr) => {
            compare!(half, $at)
        };
    }
    macro_rules! compare_byte {
        ($at:expr) => {
            compare!(byte, $at)
        };
    }
    each!(size_of::<T>(), compare_word, compare_half, compare_byte);
    differences == 0
}

/// Whether all bytes are 0.
///
/// # Safety
/// They must be readable, and `T` must have no padding.
#[inline(always)]
pub(crate) unsafe fn are_zero<T>(bytes: *const T) -> bool {
    let bytes = bytes.cast::<u8>();
    let mut all = 0;
    macro_rules! add {
        ($read:ident, $at:expr) => {
            // SAFETY: as in `load`.
            all |= unsafe { u32::from($read::<{ $at }>(bytes)) }
        };
    }
    macro_rules! add_word {
        ($at:expr) => {
            add!(word, $at)
        };
    }
    macro_rules! add_half {
        ($at:expr) => {
            add!(half, $at)
        };
    }
    macro_rules! add_byte {
        ($at:expr) => {
            add!(byte, $at)
        };
    }
    each!(size_of::<T>(), add_word, add_half, add_byte);
    all == 0
}
