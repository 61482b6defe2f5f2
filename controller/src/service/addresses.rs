//! The addresses Services can have and those they hold. Owned by the allocator. An address is held once, however many
//! ranges contain it: ranges may overlap, as those of `ServiceCIDR` objects do (KEP-1880).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use quilla_model::Family;

use super::allocate::lower_band;
use crate::pool::Pool;

/// The most addresses of a range kept for people to choose, as in Kubernetes.
const LARGEST_LOWER: u128 = 256;

/// See the module.
#[derive(Debug)]
pub(super) struct Addresses {
    ranges: Vec<Range>,
    held: BTreeSet<IpAddr>,
}

/// One CIDR; its pool knows bounds and bands, not what is held.
#[derive(Debug)]
struct Range {
    /// The `ServiceCIDR` it is of; empty for those of the command line.
    owner: String,
    cidr: IpNet,
    offsets: Pool,
}

impl Range {
    fn new(owner: &str, cidr: &IpNet) -> Self {
        Self { owner: owner.to_owned(), cidr: cidr.trunc(), offsets: offsets(cidr) }
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && self.offsets.contains(number(address) - number(self.cidr.network()))
    }

    fn free(&self, held: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let address = |offset| address(self.cidr, offset);
        self.offsets.pick(&mut rand::rng(), |offset| !held.contains(&address(offset))).map(address)
    }
}

impl Addresses {
    pub(super) fn new(cidrs: &[IpNet]) -> Self {
        Self { ranges: cidrs.iter().map(|cidr| Range::new("", cidr)).collect(), held: BTreeSet::new() }
    }

    pub(super) fn add(&mut self, owner: &str, cidrs: &[IpNet]) {
        self.ranges.extend(cidrs.iter().map(|cidr| Range::new(owner, cidr)));
    }

    pub(super) fn remove(&mut self, owner: &str) {
        self.ranges.retain(|range| range.owner != owner);
    }

    /// What is held in the ranges of `owner` and in no other.
    pub(super) fn only_in(&self, owner: &str) -> Vec<IpAddr> {
        let others =
            |address: IpAddr| self.ranges.iter().any(|range| range.owner != owner && range.contains(address));
        let own = self.ranges.iter().filter(|range| range.owner == owner);
        let within = own.flat_map(|range| self.held.range(range.cidr.network()..=range.cidr.broadcast()));
        within.copied().filter(|&address| !others(address)).collect()
    }

    /// Whether it could be held; `None` if it lies outside every range.
    pub(super) fn hold(&mut self, address: IpAddr) -> Option<bool> {
        let known = self.ranges.iter().any(|range| range.contains(address));
        known.then(|| self.held.insert(address))
    }

    pub(super) fn release(&mut self, address: IpAddr) {
        self.held.remove(&address);
    }

    /// A free address of the first range of `family` that has one.
    pub(super) fn free(&self, family: Family) -> Option<IpAddr> {
        let mut ranges = self.ranges.iter().filter(|range| Family::of(range.cidr.addr()) == family);
        ranges.find_map(|range| range.free(&self.held))
    }
}

/// The usable offsets of a CIDR: not the network itself (in IPv6, the routers' anycast address) nor IPv4's broadcast.
fn offsets(cidr: &IpNet) -> Pool {
    let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
    let size = 1u128.checked_shl(bits).unwrap_or(u128::MAX);
    let last = if cidr.addr().is_ipv4() { size.saturating_sub(2) } else { size - 1 };
    Pool::new(1, last.max(1), lower_band(size, 16, LARGEST_LOWER))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The address at an offset that lies within `cidr`.
fn address(cidr: IpNet, offset: u128) -> IpAddr {
    let number = number(cidr.network()) + offset;
    match Family::of(cidr.addr()) {
        Family::V4 => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
        Family::V6 => IpAddr::V6(number.into()),
    }
}
