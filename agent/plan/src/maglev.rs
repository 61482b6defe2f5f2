//! Maglev tables: which member of a set each slot holds. Called through [`crate::desired::BackendSet::slots`].
//!
//! Every member walks the table in an order of its own, made from its address, and takes the first free slot in its turn;
//! who has twice the weight has two turns. Invariant: the table is a function of the members and the density alone, so
//! that every node has the same one and a flow that moves to another node finds its backend.
//!
//! Source: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4.

use std::hash::Hasher;
use std::net::IpAddr;

use quilla_abi::map::capacity;
use quilla_abi::service::MAGLEV_SEED;
use siphasher::sip::SipHasher13;

use crate::desired::{BackendKey, Member};
use crate::pool::QUARANTINE;

/// Sizes of tables. Each is about twice the one before: a set that grows moves most of its connections when it needs a
/// larger table, which must be rare.
///
/// The largest is one of which there may be several at once: a table that changes is written beside the old one, and
/// former ones rest for [`crate::pool::QUARANTINE`] layouts.
const SIZES: [u32; 18] =
    [2, 3, 7, 13, 31, 61, 127, 251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071, LARGEST];
const LARGEST: u32 = 262_139;
const _: () = assert!((QUARANTINE + 2) * (LARGEST as u64) <= capacity::SLOTS as u64);

/// Slots per member at best. The share of a member is exact to one slot, hence to 1 %, in all but the largest tables.
pub const FULL_DENSITY: u32 = 100;
/// What is left of the density as the tables of a cluster need more room.
const DENSITIES: [u32; 7] = [FULL_DENSITY, 50, 25, 12, 6, 3, 1];
/// All tables together may have this many slots: half of them. With the other half the largest can change in every
/// layout; where more change at once than there is room for, the layout overwrites them.
const BUDGET: u64 = (capacity::SLOTS / 2) as u64;

/// How many slots all tables together need, by density.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demand([u64; DENSITIES.len()]);

impl Demand {
    /// Tables of so many members each take the places of others, which were counted before.
    pub fn replace(&mut self, old: &[u32], new: &[u32]) {
        if old == new {
            return;
        }
        let slots = |tables: &[u32], density| -> u64 {
            tables.iter().map(|&members| u64::from(size(members, density))).sum()
        };
        for (need, density) in self.0.iter_mut().zip(DENSITIES) {
            *need = *need + slots(new, density) - slots(old, density);
        }
    }

    /// The density with which all of them fit the map.
    pub fn density(&self) -> u32 {
        let fitting = self.0.iter().zip(DENSITIES).find(|(need, _)| **need <= BUDGET);
        fitting.map_or(1, |(_, density)| density)
    }
}

/// The number of slots for so many members; the largest there is if no size is large enough.
pub fn size(members: u32, density: u32) -> u32 {
    let enough = |size: &u32| u64::from(*size) >= u64::from(members) * u64::from(density);
    match members {
        0 | 1 => members,
        _ => SIZES.into_iter().find(enough).unwrap_or(LARGEST),
    }
}

/// The table, as indices into `members`, in whatever order these are.
pub fn table(members: &[Member], density: u32) -> Vec<u32> {
    let size = size(u32::try_from(members.len()).unwrap_or(u32::MAX), density);
    if size < 2 {
        return vec![0; size as usize];
    }
    let heaviest = members.iter().map(|member| u32::from(member.weight)).max().unwrap_or(0).max(1);
    let mut walkers: Vec<_> =
        (0..).zip(members).map(|(index, member)| Walker::new(index, member, size)).collect();
    walkers.sort_unstable_by_key(|walker| walker.backend);
    let mut table = vec![FREE; size as usize];
    let mut free = table.len();
    while free > 0 {
        for walker in &mut walkers {
            if free > 0 && walker.has_turn(heaviest) {
                walker.take(&mut table);
                free -= 1;
            }
        }
    }
    table
}

/// In a slot that nobody took yet. Half the memory of an option: the table of 5,000 members must fit the cache.
const FREE: u32 = u32::MAX;

/// A member on its way through the table.
struct Walker {
    index: u32,
    backend: BackendKey,
    weight: u32,
    /// What it has saved up of its turns, in parts of the heaviest weight.
    credit: u32,
    position: u32,
    step: u32,
    size: u32,
}

impl Walker {
    fn new(index: u32, member: &Member, size: u32) -> Self {
        let hash = hash(member.backend);
        let [high, low] = [hash >> 32, hash & 0xffff_ffff];
        // Every step is prime to the size: it reaches each slot once.
        let [position, step] = [high % u64::from(size), low % u64::from(size - 1) + 1]
            .map(|value| u32::try_from(value).unwrap_or(1));
        let weight = u32::from(member.weight).max(1);
        Self { index, backend: member.backend, weight, credit: 0, position, step, size }
    }

    /// Whether it may take a slot in this round.
    fn has_turn(&mut self, heaviest: u32) -> bool {
        self.credit += self.weight;
        let full = self.credit >= heaviest;
        if full {
            self.credit -= heaviest;
        }
        full
    }

    /// Takes the next free slot of its order. There must be one.
    fn take(&mut self, table: &mut [u32]) {
        while table[self.position as usize] != FREE {
            self.walk();
        }
        table[self.position as usize] = self.index;
        self.walk();
    }

    fn walk(&mut self) {
        self.position += self.step;
        if self.position >= self.size {
            self.position -= self.size;
        }
    }
}

/// A number of the backend alone, on every node and in every version the same.
fn hash(backend: BackendKey) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(u64::from(MAGLEV_SEED), 0);
    match backend.address {
        IpAddr::V4(address) => hasher.write(&address.octets()),
        IpAddr::V6(address) => hasher.write(&address.octets()),
    }
    hasher.write(&backend.port.to_be_bytes());
    hasher.write(&[backend.protocol]);
    hasher.finish()
}

#[cfg(test)]
#[path = "maglev_tests.rs"]
mod tests;
