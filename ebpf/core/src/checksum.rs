//! The Internet checksum as arithmetic on differences (RFC 1071, RFC 1624).
//!
//! A translation changes a few words of a packet; the difference of their sums is computed once per flow and applied
//! to every packet. Sums are 32-bit one's complement, as `bpf_l4_csum_replace` takes them.

/// Adds with end-around carry.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    // The carry cannot overflow again: the largest sum with a carry ends in ...fe.
    sum.wrapping_add(carry as u32)
}

/// What `new` adds to a sum from which `old` is taken away.
#[inline(always)]
pub const fn difference(old: u32, new: u32) -> u32 {
    add(new, !old)
}

/// Brings a 32-bit sum down to 16 bits.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

/// The checksum field (as loaded, in network order) after the words it covers changed by `difference`.
#[inline(always)]
pub const fn replace(check: u16, difference: u32) -> u16 {
    !fold(add(!check as u32, difference))
}

/// The checksum of `bytes`: the slow reference, for tests and for packets made from scratch.
pub fn of(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let word = match *pair {
            [high, low] => [high, low],
            [high] => [high, 0],
            _ => [0, 0],
        };
        sum = add(sum, u32::from(u16::from_ne_bytes(word)));
    }
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// E7: the incremental result verifies like the one computed from scratch.
        #[test]
        fn replacing_equals_summing_again(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..60),
            at in 0_usize..4,
            new in any::<[u8; 4]>(),
        ) {
            let before = of(&bytes);
            let at = at * 4;
            let old = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
            bytes[at..at + 4].copy_from_slice(&new);
            let delta = difference(u32::from_ne_bytes(old), u32::from_ne_bytes(new));
            let incremental = replace(before, delta);
            let reference = of(&bytes);
            // Zero has two representations in one's complement; both verify.
            prop_assert!(incremental == reference || (incremental ^ reference) == 0xffff && bytes.iter().all(|b| *b == 0));
        }

        #[test]
        fn addition_is_modulo_all_ones(a in any::<u32>(), b in any::<u32>()) {
            let exact = (u64::from(a) + u64::from(b)) % 0xffff_ffff;
            prop_assert_eq!(u64::from(add(a, b)) % 0xffff_ffff, exact);
        }
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(of(&bytes), !u16::from_ne_bytes([0xdd, 0xf2]));
    }
}
