use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

use super::{BUDGET, DENSITIES, Demand, FULL_DENSITY, SIZES, size, table};
use crate::desired::{BackendKey, Member};

fn member(number: u32, weight: u8) -> Member {
    let address = IpAddr::V4((0x0a00_0000 + number).into());
    Member { backend: BackendKey { address, port: 8080, protocol: 6 }, weight }
}

fn members(count: u32) -> Vec<Member> {
    (0..count).map(|number| member(number, 1)).collect()
}

/// How many slots each backend has.
fn shares(members: &[Member], table: &[u32]) -> BTreeMap<BackendKey, usize> {
    let mut shares: BTreeMap<_, _> = members.iter().map(|member| (member.backend, 0)).collect();
    for &index in table {
        *shares.get_mut(&members[index as usize].backend).unwrap() += 1;
    }
    shares
}

fn backends(members: &[Member], table: &[u32]) -> Vec<BackendKey> {
    table.iter().map(|&index| members[index as usize].backend).collect()
}

#[test]
fn sizes_are_primes_and_fit_the_members() {
    for prime in SIZES {
        assert!(
            (2..prime).take_while(|divisor| divisor * divisor <= prime).all(|d| prime % d != 0),
            "{prime}"
        );
    }
    assert_eq!([0, 1, 2, 3, 100].map(|members| size(members, FULL_DENSITY)), [0, 1, 251, 509, 16_381]);
    assert_eq!([2, 3, 100].map(|members| size(members, 1)), [2, 3, 127]);
    assert_eq!(size(u32::MAX, FULL_DENSITY), 262_139, "there is no larger one");
}

#[test]
fn all_tables_together_fit_the_map() {
    let fits = |tables: &[u32]| {
        let mut demand = Demand::default();
        demand.replace(&[], tables);
        let density = demand.density();
        let slots: u64 = tables.iter().map(|members| u64::from(size(*members, density))).sum();
        assert!(slots <= BUDGET || density == 1, "{slots} slots of density {density}");
        density
    };
    assert_eq!(fits(&[]), FULL_DENSITY);
    assert_eq!(fits(&[5_000, 100, 1]), FULL_DENSITY);
    assert_eq!(fits(&vec![5; 20_000]), 6, "10,000 Services of two ports, all reached from outside");
    assert_eq!(fits(&[100_000]), FULL_DENSITY, "the largest table takes nothing from the others");
    assert_eq!(fits(&vec![3; 1_000_000]), 1);
}

#[test]
fn no_member_or_one_is_no_choice() {
    assert_eq!(table(&[], FULL_DENSITY), [0; 0]);
    assert_eq!(table(&members(1), FULL_DENSITY), [0]);
}

/// The table of 160 slots per member: nobody has 2 % more than another, and when one of them leaves, 1.5 % of the
/// connections of the others move at most; in small tables somewhat more.
#[test]
fn a_share_is_even_and_a_member_that_leaves_moves_little_else() {
    for (count, slots, per_mille) in [(12, 2039, 40), (100, 16_381, 15), (409, 65_521, 15)] {
        let all = members(count);
        let before = table(&all, FULL_DENSITY);
        assert_eq!(before.len(), slots);
        let shares = shares(&all, &before);
        let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
        assert!(most * 100 <= least * 102, "{count}: {least} to {most} slots");
        for gone in [0, count / 2, count - 1] {
            let rest: Vec<_> = all.iter().copied().filter(|other| *other != all[gone as usize]).collect();
            let after = backends(&rest, &table(&rest, FULL_DENSITY));
            let before = backends(&all, &before);
            let needless = before
                .iter()
                .zip(&after)
                .filter(|(before, after)| before != after && **before != all[gone as usize].backend);
            let share = needless.count() * 1000 / slots;
            assert!(share <= per_mille, "{count}: {share} per mille moved without need");
        }
    }
}

#[test]
fn five_thousand_members_have_even_shares() {
    let all = members(5_000);
    let shares = shares(&all, &table(&all, FULL_DENSITY));
    assert!(shares.values().all(|share| (52..=53).contains(share)));
}

/// Every node must have the same table, whatever its version: a change of any slot breaks flows that change nodes.
#[test]
fn the_table_is_the_one_it_always_was() {
    let v6 = |host: u16| Member {
        backend: BackendKey {
            address: IpAddr::V6([0xfd00, 0, 0, 0, 0, 0, 0, host].into()),
            port: 53,
            protocol: 17,
        },
        weight: 1,
    };
    assert_eq!(table(&members(3), 3), [1, 2, 0, 2, 1, 0, 2, 0, 1, 0, 0, 2, 1]);
    assert_eq!(table(&[v6(1), v6(2), v6(3)], 3), [2, 0, 0, 2, 2, 1, 1, 2, 0, 1, 0, 0, 1]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_the_input_is_nothing(weights in vec(1..=100u8, 2..40), turn: usize, density in 0..DENSITIES.len()) {
        let members: Vec<_> = (0..).zip(weights).map(|(number, weight)| member(number, weight)).collect();
        let mut turned = members.clone();
        turned.rotate_left(turn % members.len());
        turned.reverse();
        let density = DENSITIES[density];
        prop_assert_eq!(backends(&members, &table(&members, density)), backends(&turned, &table(&turned, density)));
    }

    /// The share of a member is what its weight says, to one slot for each of the others: the last round is cut off.
    #[test]
    fn shares_follow_weights(weights in vec(1..=100u8, 2..20), seed in any::<u16>()) {
        let member = |(number, weight): (u32, u8)| member(number + u32::from(seed) * 100, weight);
        let members: Vec<_> = (0..).zip(weights).map(member).collect();
        let table = table(&members, FULL_DENSITY);
        let total: usize = members.iter().map(|member| usize::from(member.weight)).sum();
        for (member, share) in members.iter().zip(shares(&members, &table).into_values()) {
            let fair = table.len() * usize::from(member.weight) / total;
            prop_assert!(share.abs_diff(fair) <= members.len(), "{share} slots instead of {fair} of {}", table.len());
        }
    }
}
