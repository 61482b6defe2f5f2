//! Which backend a new connection gets.

use quilla_abi::service::Service;

use crate::hash::jhash;

/// Seed of the hash that decides a second time.
const AGAIN: u32 = 0x6167_6169;
/// The longest slow start (seconds): a day. Windows are [`Service::slow_start_seconds`].
const SLOW_START_MAX_SECONDS: u32 = 86_400;
/// Seed of the hash that decides whether a young backend is spared.
const SPARE: u32 = 0x7370_6172;

/// The index into `slots` for a tuple's hash; `None` without usable endpoints.
#[inline(always)]
pub fn slot(service: &Service, hash: u32) -> Option<u32> {
    if service.slot_count == 0 {
        return None;
    }
    let offset = (u64::from(hash) * u64::from(service.slot_count)) >> 32;
    Some(service.slot_base.wrapping_add(offset as u32))
}

/// Another slot for the same hash, if there is another one, as likely as any.
#[inline(always)]
pub fn other_slot(service: &Service, hash: u32) -> Option<u32> {
    let count = service.slot_count;
    let first = slot(service, hash)?.wrapping_sub(service.slot_base);
    let step = (u64::from(jhash(&[hash], AGAIN)) * u64::from(count.wrapping_sub(1))) >> 32;
    let mut offset = first.wrapping_add(1).wrapping_add(step as u32);
    if offset >= count {
        offset = offset.wrapping_sub(count);
    }
    Some(service.slot_base.wrapping_add(offset))
}

/// Whether a backend of this age (ticks) is spared this connection: over its first `window` ticks its share grows from
/// nothing to that of the others.
#[inline(always)]
pub fn is_spared(age: u32, window: u32, hash: u32) -> bool {
    let draw = (u64::from(jhash(&[hash], SPARE)) * u64::from(window)) >> 32;
    u64::from(age) <= draw && age < window
}

/// Whether a backend of this age (ticks) is older than any window. An age beyond half of the clock's range is of a time
/// that is yet to come, or long past.
#[inline(always)]
pub const fn is_grown(age: u32, hz: u32) -> bool {
    age >= 1 << 31 || age as u64 > SLOW_START_MAX_SECONDS as u64 * hz as u64
}

/// Whether a client's last use is recent enough for it to come back to the same backend (S18).
#[inline(always)]
pub const fn remembers(service: &Service, age: u32, hz: u32) -> bool {
    (age as u64) < service.affinity_seconds as u64 * hz as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slots_stay_in_their_range(hash: u32, base in 0_u32..1_000_000, count in 1_u32..100_000) {
            let service = Service { slot_base: base, slot_count: count, ..Service::default() };
            let slot = slot(&service, hash).expect("there are slots");
            prop_assert!((base..base + count).contains(&slot));
            let other = other_slot(&service, hash).expect("there are slots");
            prop_assert!((base..base + count).contains(&other));
            prop_assert!(count == 1 || other != slot);
        }

        #[test]
        fn nobody_is_spared_for_longer_than_the_window(age: u32, window: u32, hash: u32) {
            prop_assert!(age < window || !is_spared(age, window, hash));
        }
    }

    #[test]
    fn the_whole_range_is_used() {
        let service = Service { slot_base: 10, slot_count: 3, ..Service::default() };
        let of = |hash| slot(&service, hash);
        assert_eq!([of(0), of(u32::MAX / 2), of(u32::MAX)], [Some(10), Some(11), Some(12)]);
        assert_eq!(slot(&Service::default(), 5), None);
    }

    /// A backend's share grows evenly with its age, and does not depend on which slot the hash means.
    #[test]
    fn a_slow_start_is_even() {
        let window = 7500;
        for (age, least, most) in
            [(0, 0, 0), (1, 0, 10), (1875, 230, 270), (3750, 475, 525), (7500, 1000, 1000)]
        {
            let taken = (0..1000).filter(|n| !is_spared(age, window, *n << 22)).count();
            assert!((least..=most).contains(&taken), "{taken} at the age of {age}");
        }
    }

    /// The second choice of tuples that share the first one is spread over all other slots.
    #[test]
    fn a_second_choice_is_another_one() {
        let service = Service { slot_count: 8, ..Service::default() };
        let mut slots = [0_u32; 8];
        for hash in (0..7000).map(|n| n << 12) {
            assert_eq!(slot(&service, hash), Some(0));
            slots[other_slot(&service, hash).expect("there are slots") as usize] += 1;
        }
        assert!(slots[0] == 0 && slots[1..].iter().all(|count| (850..1150).contains(count)), "{slots:?}");
        assert_eq!(other_slot(&Service::default(), 5), None);
    }

    #[test]
    fn affinity_ends() {
        let service = Service { affinity_seconds: 86_400, ..Service::default() };
        assert!(remembers(&service, 86_399_999, 1000) && !remembers(&service, 86_400_000, 1000));
        assert!(!remembers(&Service::default(), 0, 1000));
    }
}
