//! Which backend a new connection gets.

use quilla_abi::service::Service;

/// The index into `slots` for a tuple's hash; `None` without usable endpoints.
#[inline(always)]
pub fn slot(service: &Service, hash: u32) -> Option<u32> {
    if service.slot_count == 0 {
        return None;
    }
    let offset = (u64::from(hash) * u64::from(service.slot_count)) >> 32;
    Some(service.slot_base.wrapping_add(offset as u32))
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
        }
    }

    #[test]
    fn the_whole_range_is_used() {
        let service = Service { slot_base: 10, slot_count: 3, ..Service::default() };
        let of = |hash| slot(&service, hash);
        assert_eq!([of(0), of(u32::MAX / 2), of(u32::MAX)], [Some(10), Some(11), Some(12)]);
        assert_eq!(slot(&Service::default(), 5), None);
    }
}
