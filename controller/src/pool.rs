//! A range of numbers handed out one by one: the offsets of a service CIDR, the node ports. Owned by the allocator.
//! A number is held at most once. Automatic picks come from the upper band while it lasts, so that the lower band
//! stays free for numbers that people choose (KEP-3070, KEP-3668).

use std::collections::BTreeSet;

use rand::{Rng, RngExt};

/// Random probes before a linear scan takes over.
const PROBES: usize = 8;

/// The numbers from `first` to `last`, and which of them are held.
#[derive(Clone, Debug)]
pub struct Pool {
    first: u128,
    last: u128,
    /// The first number of the upper band.
    upper: u128,
    held: BTreeSet<u128>,
}

impl Pool {
    /// `reserved` numbers at the start make the lower band.
    pub fn new(first: u128, last: u128, reserved: u128) -> Self {
        Self { first, last, upper: first.saturating_add(reserved).min(last), held: BTreeSet::new() }
    }

    pub fn contains(&self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    pub fn is_held(&self, number: u128) -> bool {
        self.held.contains(&number)
    }

    /// Holds `number`; false if it was held already.
    pub fn hold(&mut self, number: u128) -> bool {
        self.held.insert(number)
    }

    pub fn release(&mut self, number: u128) {
        self.held.remove(&number);
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// A free number for which `fits` holds, not yet held; `None` when there is none.
    pub fn pick(&self, random: &mut impl Rng, fits: impl Fn(u128) -> bool) -> Option<u128> {
        let free = |number: u128| !self.held.contains(&number) && fits(number);
        pick_within(random, self.upper, self.last, &free).or_else(|| {
            self.upper.checked_sub(1).and_then(|last| pick_within(random, self.first, last, &free))
        })
    }
}

fn pick_within(random: &mut impl Rng, first: u128, last: u128, free: &impl Fn(u128) -> bool) -> Option<u128> {
    if first > last {
        return None;
    }
    (0..PROBES)
        .map(|_| random.random_range(first..=last))
        .find(|&number| free(number))
        .or_else(|| (first..=last).find(|&number| free(number)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Pool;

    #[test]
    fn the_upper_band_goes_first_and_every_number_is_found() {
        let mut pool = Pool::new(10, 29, 5);
        let mut random = rand::rng();
        for turn in 0..20 {
            let number = pool.pick(&mut random, |_| true).expect("twenty numbers");
            assert_eq!(number >= 15, turn < 15, "{number} in turn {turn}");
            assert!(pool.hold(number));
        }
        assert_eq!(pool.pick(&mut random, |_| true), None);
        pool.release(12);
        assert_eq!(pool.pick(&mut random, |_| true), Some(12));
        assert_eq!(pool.pick(&mut random, |number| number != 12), None);
    }

    proptest! {
        #[test]
        fn a_number_is_never_handed_out_twice(steps in prop::collection::vec((any::<bool>(), 0u128..40), 0..200)) {
            let mut pool = Pool::new(0, 39, 8);
            let mut model = std::collections::HashSet::new();
            let mut random = rand::rng();
            for (pick, number) in steps {
                if pick {
                    if let Some(number) = pool.pick(&mut random, |_| true) {
                        prop_assert!(pool.contains(number) && model.insert(number));
                        pool.hold(number);
                    } else {
                        prop_assert_eq!(model.len(), 40);
                    }
                } else {
                    model.remove(&number);
                    pool.release(number);
                }
                prop_assert_eq!(pool.len(), model.len());
            }
        }
    }
}
