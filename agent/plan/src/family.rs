//! The two address families as types, so that each algorithm is written once. Used by the layout and the differences.

use std::fmt::Debug;
use std::hash::Hash;
use std::net::IpAddr;

use quilla_abi::{Address, epoch};

use crate::step::{FamilyStep, Step};
use crate::tables::{FamilyTables, Tables};

/// An address as the maps of its family have it.
pub trait AddressFamily: Address + Ord + Hash + Debug {
    /// The family's name in messages.
    const NAME: &'static str;
    /// Where the generations of the family's backends start in `epochs`.
    const GENERATIONS: u32;

    /// The address, if it is of this family.
    fn from_ip(address: IpAddr) -> Option<Self>;
    /// The same address for people.
    fn to_ip(self) -> IpAddr;
    /// The family's part of the tables.
    fn tables(tables: &Tables) -> &FamilyTables<Self>;
    /// The same to be changed.
    fn tables_mut(tables: &mut Tables) -> &mut FamilyTables<Self>;
    /// A step on the family's maps.
    fn step(step: FamilyStep<Self>) -> Step;
}

impl AddressFamily for [u8; 4] {
    const NAME: &'static str = "IPv4";
    const GENERATIONS: u32 = epoch::BACKENDS_V4;

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(v4) => Some(v4.octets()),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }

    fn tables(tables: &Tables) -> &FamilyTables<Self> {
        &tables.v4
    }

    fn tables_mut(tables: &mut Tables) -> &mut FamilyTables<Self> {
        &mut tables.v4
    }

    fn step(step: FamilyStep<Self>) -> Step {
        Step::V4(step)
    }
}

impl AddressFamily for [u8; 16] {
    const NAME: &'static str = "IPv6";
    const GENERATIONS: u32 = epoch::BACKENDS_V6;

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V6(v6) => Some(v6.octets()),
            IpAddr::V4(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        self.into()
    }

    fn tables(tables: &Tables) -> &FamilyTables<Self> {
        &tables.v6
    }

    fn tables_mut(tables: &mut Tables) -> &mut FamilyTables<Self> {
        &mut tables.v6
    }

    fn step(step: FamilyStep<Self>) -> Step {
        Step::V6(step)
    }
}
