//! Weights of a set's members, reduced so that they need as few slots as possible. Called by [`crate::frontend`].

use crate::desired::Member;

/// Divides all weights by their greatest common divisor and leaves out members that get nothing.
pub(crate) fn reduce(members: &mut Vec<Member>) {
    members.retain(|member| member.weight > 0);
    let divisor = members.iter().fold(0, |divisor, member| gcd(divisor, member.weight));
    for member in members {
        member.weight /= divisor;
    }
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
