//! Weights of a set's members, and the slots of sets that choose at random, of which there are as few as shares allow.
//! Called by [`crate::frontend`] and [`crate::desired`].

use crate::desired::Member;

/// Divides all weights by their greatest common divisor and leaves out members that get nothing.
pub(crate) fn reduce(members: &mut Vec<Member>) {
    members.retain(|member| member.weight > 0);
    let divisor = members.iter().fold(0, |divisor, member| gcd(divisor, member.weight));
    for member in members {
        member.weight /= divisor;
    }
}

/// Sets with more slots than this get coarser shares.
const FINE_SLOTS: u32 = 16_384;
/// Slots of the heaviest member of such a set, if there is room for that many.
const COARSE_SLOTS: u32 = 16;
/// What such a set may have at most, beyond one slot for each member.
const MOST_SLOTS: u32 = 131_072;

/// Indices into `members`, each as often as its weight says. Nobody is left out.
pub(crate) fn slots(members: &[Member]) -> Vec<u32> {
    let sum = members.iter().map(|member| u32::from(member.weight)).fold(0, u32::saturating_add);
    let heaviest = members.iter().map(|member| u32::from(member.weight)).max().unwrap_or(0).max(1);
    let count = u32::try_from(members.len()).unwrap_or(u32::MAX).max(1);
    let coarse = COARSE_SLOTS.min(MOST_SLOTS / count).clamp(1, heaviest);
    let slots = |weight: u32| match weight {
        0 => 0,
        _ if sum <= FINE_SLOTS => weight,
        _ => ((weight * coarse + heaviest / 2) / heaviest).max(1),
    };
    let of_member = |(index, member): (u32, &Member)| {
        std::iter::repeat_n(index, slots(u32::from(member.weight)) as usize)
    };
    (0..).zip(members).flat_map(of_member).collect()
}

fn gcd(a: u8, b: u8) -> u8 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::reduce;
    use crate::desired::{BackendKey, BackendSet, Member};

    fn members(weights: &[u8]) -> Vec<Member> {
        let backend = |index: usize| BackendKey {
            address: [10, 0, 0, u8::try_from(index).unwrap()].into(),
            port: 80,
            protocol: 6,
        };
        weights
            .iter()
            .enumerate()
            .map(|(index, &weight)| Member { backend: backend(index), weight })
            .collect()
    }

    fn slots(weights: &[u8]) -> Vec<u32> {
        let mut members = members(weights);
        reduce(&mut members);
        BackendSet { members, ..BackendSet::default() }.slots(false, 1)
    }

    /// How many slots members of these weights have, each weight so many times.
    fn many(weights: &[(u8, u32)]) -> Vec<usize> {
        let members: Vec<Member> = weights
            .iter()
            .flat_map(|&(weight, count)| (0..count).map(move |number| (weight, number)))
            .map(|(weight, number)| {
                let address = [10, weight, (number >> 8).to_le_bytes()[0], number.to_le_bytes()[0]].into();
                Member { backend: BackendKey { address, port: 80, protocol: 6 }, weight }
            })
            .collect();
        let mut counts = vec![0; members.len()];
        for index in super::slots(&members) {
            counts[index as usize] += 1;
        }
        counts.dedup();
        counts
    }

    #[test]
    fn a_large_set_has_coarser_shares_and_leaves_nobody_out() {
        assert_eq!(many(&[(99, 60), (100, 60)]), [99, 100], "a small one is exact");
        assert_eq!(many(&[(99, 2_500), (100, 2_500)]), [16], "80,000 slots and not 500,000");
        assert_eq!(many(&[(1, 2_500), (50, 2_500), (100, 100)]), [1, 8, 16]);
        assert_eq!(many(&[(99, 30_000), (100, 30_000)]), [2], "as many as there is room for");
        assert_eq!(many(&[(1, 60_000)]), [1]);
    }

    #[test]
    fn a_backend_has_as_many_slots_as_its_share_needs() {
        assert_eq!(slots(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(slots(&[100, 100]), [0, 1]);
        assert_eq!(slots(&[20, 10, 30]), [0, 0, 1, 2, 2, 2]);
        assert_eq!(slots(&[0, 5]), [0], "weight 0 gets no new connections");
        assert_eq!(slots(&[0, 0]), [0; 0]);
        assert_eq!(slots(&[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn shares_stay_what_they_were(weights in vec(0..=100u8, 0..20)) {
            let before = members(&weights);
            let mut after = before.clone();
            reduce(&mut after);
            for (a, b) in after.iter().flat_map(|a| after.iter().map(move |b| (a, b))) {
                let of = |member: &Member| {
                    let found = before.iter().find(|other| other.backend == member.backend);
                    u32::from(found.expect("a member").weight)
                };
                prop_assert_eq!(u32::from(a.weight) * of(b), u32::from(b.weight) * of(a));
            }
        }
    }
}
