//! Which address the next Pod gets: a pure allocator over the node's Pod CIDRs, driven by `store`.
//!
//! Addresses nobody had yet come first, then those released longest ago, and none before its cool-down ended; so an
//! address is reused as late as possible. One that was held and never used has nothing to rest from. Both families are
//! handed out together or not at all. No operation takes longer than the logarithm of the number of addresses.

use std::collections::{BTreeMap, HashMap, hash_map};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A node's Pod CIDRs, in the order in which they are used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pools {
    /// For IPv4.
    pub ipv4: Vec<Ipv4Net>,
    /// For IPv6.
    pub ipv6: Vec<Ipv6Net>,
}

impl Pools {
    /// Whether there is no CIDR at all.
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }
}

impl FromIterator<IpNet> for Pools {
    fn from_iter<T: IntoIterator<Item = IpNet>>(nets: T) -> Self {
        let mut pools = Self::default();
        for net in nets {
            match net {
                IpNet::V4(net) => pools.ipv4.push(net),
                IpNet::V6(net) => pools.ipv6.push(net),
            }
        }
        pools
    }
}

/// Addresses of one CIDR that are given without being asked for, however large it is: far more than a node has Pods, and
/// few enough to remember when each was released.
const MAX_ADDRESSES: u128 = 16_384;

/// Seconds since the machine started, sleep included: no step of the wall clock moves them.
pub(super) type Seconds = u64;

/// Since when an address rests, and from whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rest {
    pub(super) at: Seconds,
    /// The Pod that had it, which may have it again at once.
    pub(super) pod_uid: Option<String>,
}

impl Rest {
    fn is_over(&self, now: Seconds, cool_down: Seconds) -> bool {
        now.saturating_sub(self.at) >= cool_down
    }
}

impl From<Seconds> for Rest {
    fn from(at: Seconds) -> Self {
        Self { at, pod_uid: None }
    }
}

/// Addresses given together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
}

/// Why no address can be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum IpamError {
    /// The node has no Pod CIDR yet.
    #[error("the node has no pod cidr yet")]
    NoPools,
    /// Every address is held or cooling down.
    #[error("no free address left in {0}")]
    Exhausted(IpNet),
    /// Somebody has the wished address.
    #[error("address {0} is held")]
    Held(IpAddr),
    /// The wished address cools down.
    #[error("address {0} cools down")]
    Resting(IpAddr),
    /// The wished address is not one that a Pod of this node can have.
    #[error("address {0} is no usable address of the node's pools")]
    Unusable(IpAddr),
}

/// The allocator.
#[derive(Debug)]
pub(super) struct Ipam {
    ipv4: Family,
    ipv6: Family,
    cool_down: Seconds,
}

impl Ipam {
    /// Without pools: it remembers what is held, and gives nothing.
    pub(super) fn new(cool_down: Duration) -> Self {
        Self { ipv4: Family::default(), ipv6: Family::default(), cool_down: cool_down.as_secs() }
    }

    /// Takes the node's Pod CIDRs; addresses held from others stay held.
    pub(super) fn set_pools(&mut self, pools: &Pools) {
        self.ipv4.set_ranges(pools.ipv4.iter().map(|net| Range::new((*net).into())).collect());
        self.ipv6.set_ranges(pools.ipv6.iter().map(|net| Range::new((*net).into())).collect());
    }

    /// One address per family that has a pool: the wished one, whether it cools down or not, or else a free one.
    pub(super) fn allocate(&mut self, wished: &[IpAddr], now: Seconds) -> Result<Addresses, IpamError> {
        if self.ipv4.ranges.is_empty() && self.ipv6.ranges.is_empty() {
            return Err(IpamError::NoPools);
        }
        for address in wished {
            self.family(*address).require_available(*address)?;
        }
        let wish = |ipv4: bool| wished.iter().copied().find(|address| address.is_ipv4() == ipv4);
        let ipv4 = wish(true).map_or_else(|| self.ipv4.peek(now, self.cool_down), |wish| Ok(Some(wish)))?;
        let ipv6 = wish(false).map_or_else(|| self.ipv6.peek(now, self.cool_down), |wish| Ok(Some(wish)))?;
        let mut addresses = Addresses { ipv4: None, ipv6: None };
        for address in ipv4.into_iter().chain(ipv6) {
            self.hold(address);
            match address {
                IpAddr::V4(address) => addresses.ipv4 = Some(address),
                IpAddr::V6(address) => addresses.ipv6 = Some(address),
            }
        }
        Ok(addresses)
    }

    /// Refuses an address that cools down, but not to the Pod that had it.
    pub(super) fn require_rested(
        &self,
        address: IpAddr,
        pod_uid: Option<&str>,
        now: Seconds,
    ) -> Result<(), IpamError> {
        let family = if address.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        let its_own = |rest: &Rest| pod_uid.is_some() && rest.pod_uid.as_deref() == pod_uid;
        match family.rest_of(address) {
            Some(rest) if !rest.is_over(now, self.cool_down) && !its_own(rest) => {
                Err(IpamError::Resting(address))
            }
            _ => Ok(()),
        }
    }

    /// Marks an address as held, wherever it comes from.
    pub(super) fn hold(&mut self, address: IpAddr) {
        self.family(address).hold(address);
    }

    /// Gives an address back; its cool-down starts.
    pub(super) fn release(&mut self, address: IpAddr, rest: impl Into<Rest>) {
        let (rest, cool_down) = (rest.into(), self.cool_down);
        self.family(address).release(address, rest, cool_down);
    }

    /// Gives back an address that nobody used while it was held: what it rested from before, it rests from still.
    pub(super) fn give_back(&mut self, address: IpAddr) {
        self.family(address).give_back(address);
    }

    /// What a held address rested from when it was given.
    pub(super) fn rested_from(&self, held: IpAddr) -> Option<&Rest> {
        let family = if held.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        family.held.get(&held)?.as_ref()
    }

    /// Held addresses.
    pub(super) fn held(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.held.keys().chain(self.ipv6.held.keys()).copied()
    }

    /// Addresses that rest.
    pub(super) fn cooling(&self) -> impl Iterator<Item = (IpAddr, &Rest)> {
        let waiting = [&self.ipv4, &self.ipv6].into_iter().flat_map(Family::waiting);
        waiting.filter_map(|(address, rest)| Some((*address, rest.as_ref()?)))
    }

    /// How many addresses cool down.
    pub(super) fn cooling_count(&self) -> usize {
        self.ipv4.place.len() + self.ipv6.place.len()
    }

    /// The next hop of a Pod that holds the address; unknown while the pool it came from is.
    pub(super) fn gateway(&self, of: IpAddr) -> Option<IpAddr> {
        let family = if of.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        family.ranges.iter().find(|range| range.net.contains(&of)).map(|range| range.address(1))
    }

    /// Whether an allocation would succeed now.
    pub(super) fn ready(&mut self, now: Seconds) -> Result<(), IpamError> {
        if self.ipv4.ranges.is_empty() && self.ipv6.ranges.is_empty() {
            return Err(IpamError::NoPools);
        }
        self.ipv4.peek(now, self.cool_down)?;
        self.ipv6.peek(now, self.cool_down)?;
        Ok(())
    }

    fn family(&mut self, address: IpAddr) -> &mut Family {
        if address.is_ipv4() { &mut self.ipv4 } else { &mut self.ipv6 }
    }
}

/// Addresses that wait to be given again, by when they were released and in which order; without a rest, those that
/// nobody used.
type Queue = BTreeMap<(Seconds, u64), (IpAddr, Option<Rest>)>;

/// One address family. Every address that is given unasked is in exactly one of: held, cooling, or never given.
#[derive(Debug, Default)]
struct Family {
    ranges: Vec<Range>,
    /// All addresses of earlier ranges, and of this one those below the offset, are held or cooling.
    fresh: (usize, u128),
    /// With what they rested from when they were given.
    held: HashMap<IpAddr, Option<Rest>>,
    cooling: Queue,
    /// Those that are never given unasked: forgotten when they have rested.
    asked_for: Queue,
    /// The key in either queue.
    place: HashMap<IpAddr, (Seconds, u64)>,
    releases: u64,
}

impl Family {
    fn set_ranges(&mut self, ranges: Vec<Range>) {
        if self.ranges == ranges {
            return;
        }
        self.ranges = ranges;
        self.fresh = (0, Range::FIRST_USABLE);
        if !self.ranges.is_empty() {
            let waiting = mem::take(&mut self.cooling).into_iter().chain(mem::take(&mut self.asked_for));
            self.place.clear();
            for (_, (address, rest)) in waiting {
                self.wait(address, rest);
            }
        }
    }

    fn waiting(&self) -> impl Iterator<Item = &(IpAddr, Option<Rest>)> {
        self.cooling.values().chain(self.asked_for.values())
    }

    fn rest_of(&self, address: IpAddr) -> Option<&Rest> {
        let place = self.place.get(&address)?;
        self.cooling.get(place).or_else(|| self.asked_for.get(place))?.1.as_ref()
    }

    /// The address the next allocation gives; `None` without a pool.
    fn peek(&mut self, now: Seconds, cool_down: Seconds) -> Result<Option<IpAddr>, IpamError> {
        while let Some(range) = self.ranges.get(self.fresh.0) {
            let address = range.address(self.fresh.1);
            if self.fresh.1 >= range.end {
                self.fresh = (self.fresh.0 + 1, Range::FIRST_USABLE);
            } else if self.held.contains_key(&address) || self.place.contains_key(&address) {
                self.fresh.1 += 1;
            } else {
                return Ok(Some(address));
            }
        }
        let Some(last) = self.ranges.last() else { return Ok(None) };
        match self.cooling.first_key_value() {
            Some((_, (address, rest))) if rest.as_ref().is_none_or(|rest| rest.is_over(now, cool_down)) => {
                Ok(Some(*address))
            }
            _ => Err(IpamError::Exhausted(last.net)),
        }
    }

    fn require_available(&self, address: IpAddr) -> Result<(), IpamError> {
        if self.held.contains_key(&address) {
            return Err(IpamError::Held(address));
        }
        let usable = self.ranges.iter().any(|range| range.is_usable(address));
        if usable { Ok(()) } else { Err(IpamError::Unusable(address)) }
    }

    fn hold(&mut self, address: IpAddr) {
        let place = self.place.remove(&address);
        let waited =
            place.and_then(|place| self.cooling.remove(&place).or_else(|| self.asked_for.remove(&place)));
        // Held twice, it still rests from the same.
        if waited.is_some() || !self.held.contains_key(&address) {
            self.held.insert(address, waited.and_then(|(_, rest)| rest));
        }
    }

    fn release(&mut self, address: IpAddr, rest: Rest, cool_down: Seconds) {
        self.held.remove(&address);
        self.forget_rested(rest.at, cool_down);
        self.wait(address, Some(rest));
    }

    fn give_back(&mut self, address: IpAddr) {
        let rest = self.held.remove(&address).flatten();
        self.wait(address, rest);
    }

    fn wait(&mut self, address: IpAddr, rest: Option<Rest>) {
        let given_unasked = |range: &Range| range.offset(address).map(|offset| offset < range.end);
        let queue = match self.ranges.iter().find_map(given_unasked) {
            Some(true) => &mut self.cooling,
            Some(false) if rest.is_some() => &mut self.asked_for,
            None if self.ranges.is_empty() => &mut self.cooling,
            Some(false) | None => return,
        };
        if let hash_map::Entry::Vacant(place) = self.place.entry(address) {
            let key = *place.insert((rest.as_ref().map_or(0, |rest| rest.at), self.releases));
            queue.insert(key, (address, rest));
            self.releases += 1;
        }
    }

    fn forget_rested(&mut self, now: Seconds, cool_down: Seconds) {
        while let Some(first) = self.asked_for.first_entry() {
            let (address, rest) = first.get();
            if rest.as_ref().is_some_and(|rest| !rest.is_over(now, cool_down)) {
                return;
            }
            self.place.remove(address);
            first.remove();
        }
    }
}

/// The usable part of a CIDR. Offset 0 is the network (or the anycast) address, 1 the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    net: IpNet,
    /// Offset after the last address that is given unasked.
    end: u128,
    /// Offset after the last address that can be asked for.
    limit: u128,
}

impl Range {
    const FIRST_USABLE: u128 = 2;

    fn new(net: IpNet) -> Self {
        let net = net.trunc();
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let size = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
        // The last address of an IPv4 network is its broadcast address.
        let limit = if net.addr().is_ipv4() { size - 1 } else { size };
        Self { net, end: limit.min(MAX_ADDRESSES), limit }
    }

    fn address(self, offset: u128) -> IpAddr {
        match self.net.addr() {
            // An IPv4 range has at most 2^14 offsets.
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                Ipv4Addr::from_bits(base.to_bits().saturating_add(offset)).into()
            }
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits().saturating_add(offset)).into(),
        }
    }

    fn is_usable(self, address: IpAddr) -> bool {
        self.offset(address).is_some()
    }

    /// Of an address that a Pod can have.
    fn offset(self, address: IpAddr) -> Option<u128> {
        let offset = match (self.net.addr(), address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                address.to_bits().checked_sub(base.to_bits()).map(u128::from)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => address.to_bits().checked_sub(base.to_bits()),
            _ => None,
        };
        offset.filter(|offset| (Self::FIRST_USABLE..self.limit).contains(offset))
    }
}

#[cfg(test)]
mod tests;
