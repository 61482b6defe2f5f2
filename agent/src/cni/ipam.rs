//! Which address the next Pod gets: a pure allocator over the node's Pod CIDRs, driven by `store`.
//!
//! Addresses nobody had yet come first, then those released longest ago, and none before its cool-down ended; so an
//! address is reused as late as possible. Both families are handed out together or not at all.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A node's Pod CIDRs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pools {
    /// For IPv4.
    pub ipv4: Option<Ipv4Net>,
    /// For IPv6.
    pub ipv6: Option<Ipv6Net>,
}

/// Addresses of one family considered on a node, however large its CIDR: far more than a node has Pods, and few enough
/// to remember when each was released.
const MAX_ADDRESSES: u128 = 16_384;

/// Seconds since the epoch; a clock set back never lengthens a cool-down.
pub(super) type Seconds = u64;

/// Addresses given together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
}

/// Why no address can be given. Each passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum IpamError {
    /// The node has no Pod CIDR yet.
    #[error("the node has no pod cidr yet")]
    NoPools,
    /// Every address is held or cooling down.
    #[error("no free address left in {0}")]
    Exhausted(IpNet),
    /// A wished address cannot be had.
    #[error("address {0} is held, or no usable address of the node's pools")]
    Unavailable(IpAddr),
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
    pub(super) fn set_pools(&mut self, pools: Pools) {
        self.ipv4.set_range(pools.ipv4.map(|net| Range::new(net.into())));
        self.ipv6.set_range(pools.ipv6.map(|net| Range::new(net.into())));
    }

    /// One address per family that has a pool: the wished one, whether it cools down or not, or else a free one.
    pub(super) fn allocate(&mut self, wished: &[IpAddr], now: Seconds) -> Result<Addresses, IpamError> {
        if self.ipv4.range.is_none() && self.ipv6.range.is_none() {
            return Err(IpamError::NoPools);
        }
        let unavailable = |address: &&IpAddr| {
            let family = if address.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
            family.held.contains(*address) || !family.range.is_some_and(|range| range.contains(**address))
        };
        if let Some(address) = wished.iter().find(unavailable) {
            return Err(IpamError::Unavailable(*address));
        }
        let wish = |ipv4: bool| wished.iter().copied().find(|address| address.is_ipv4() == ipv4);
        let ipv4 = wish(true).map_or_else(|| self.ipv4.peek(now, self.cool_down), |wish| Ok(Some(wish)))?;
        let ipv6 = wish(false).map_or_else(|| self.ipv6.peek(now, self.cool_down), |wish| Ok(Some(wish)))?;
        for address in ipv4.into_iter().chain(ipv6) {
            self.hold(address);
        }
        let mut addresses = Addresses { ipv4: None, ipv6: None };
        for address in ipv4.into_iter().chain(ipv6) {
            match address {
                IpAddr::V4(address) => addresses.ipv4 = Some(address),
                IpAddr::V6(address) => addresses.ipv6 = Some(address),
            }
        }
        Ok(addresses)
    }

    /// Marks an address as held, wherever it comes from.
    pub(super) fn hold(&mut self, address: IpAddr) {
        self.family(address).hold(address);
    }

    /// Gives an address back; its cool-down starts.
    pub(super) fn release(&mut self, address: IpAddr, at: Seconds) {
        self.family(address).release(address, at);
    }

    /// Held addresses.
    pub(super) fn held(&self) -> impl Iterator<Item = IpAddr> {
        self.ipv4.held.iter().chain(&self.ipv6.held).copied()
    }

    /// Released addresses, longest ago first.
    pub(super) fn cooling(&self) -> impl Iterator<Item = (IpAddr, Seconds)> {
        self.ipv4.cooling.iter().chain(&self.ipv6.cooling).copied()
    }

    /// The next hop of a Pod that holds the address; unknown while the pool it came from is.
    pub(super) fn gateway(&self, of: IpAddr) -> Option<IpAddr> {
        let family = if of.is_ipv4() { &self.ipv4 } else { &self.ipv6 };
        family.range.filter(|range| range.net.contains(&of)).map(|range| range.address(1))
    }

    /// Whether an allocation would succeed now.
    pub(super) fn ready(&mut self, now: Seconds) -> Result<(), IpamError> {
        if self.ipv4.range.is_none() && self.ipv6.range.is_none() {
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

/// One address family. Every address of the range is in exactly one of: held, cooling, or never given.
#[derive(Debug, Default)]
struct Family {
    range: Option<Range>,
    /// Addresses below this offset are held or cooling.
    fresh: u128,
    held: HashSet<IpAddr>,
    cooling: VecDeque<(IpAddr, Seconds)>,
    cooling_set: HashSet<IpAddr>,
}

impl Family {
    fn set_range(&mut self, range: Option<Range>) {
        if self.range == range {
            return;
        }
        self.range = range;
        self.fresh = Range::FIRST_USABLE;
        if let Some(range) = range {
            self.cooling.retain(|(address, _)| range.contains(*address));
            self.cooling_set.retain(|address| range.contains(*address));
        }
    }

    /// The address the next allocation gives; `None` without a pool.
    fn peek(&mut self, now: Seconds, cool_down: Seconds) -> Result<Option<IpAddr>, IpamError> {
        let Some(range) = self.range else { return Ok(None) };
        while self.fresh < range.end {
            let address = range.address(self.fresh);
            if !self.held.contains(&address) && !self.cooling_set.contains(&address) {
                return Ok(Some(address));
            }
            self.fresh += 1;
        }
        match self.cooling.front() {
            Some((address, at)) if now < *at || now - at >= cool_down => Ok(Some(*address)),
            _ => Err(IpamError::Exhausted(range.net)),
        }
    }

    fn hold(&mut self, address: IpAddr) {
        self.held.insert(address);
        if self.cooling_set.remove(&address) {
            self.cooling.retain(|(cooling, _)| *cooling != address);
        }
    }

    fn release(&mut self, address: IpAddr, at: Seconds) {
        self.held.remove(&address);
        let ours = self.range.is_none_or(|range| range.contains(address));
        if ours && self.cooling_set.insert(address) {
            self.cooling.push_back((address, at));
        }
    }
}

/// The usable part of a CIDR. Offset 0 is the network (or the anycast) address, 1 the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    net: IpNet,
    /// Offset after the last usable address.
    end: u128,
}

impl Range {
    const FIRST_USABLE: u128 = 2;

    fn new(net: IpNet) -> Self {
        let net = net.trunc();
        let bits = u32::from(net.max_prefix_len() - net.prefix_len());
        let size = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
        // The last address of an IPv4 network is its broadcast address.
        let usable = if net.addr().is_ipv4() { size - 1 } else { size };
        Self { net, end: usable.min(MAX_ADDRESSES) }
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

    fn contains(self, address: IpAddr) -> bool {
        let offset = match (self.net.addr(), address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                address.to_bits().checked_sub(base.to_bits()).map(u128::from)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => address.to_bits().checked_sub(base.to_bits()),
            _ => None,
        };
        offset.is_some_and(|offset| (Self::FIRST_USABLE..self.end).contains(&offset))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::IpAddr;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{Ipam, IpamError, Pools};

    const COOL_DOWN: u64 = 10;

    fn ipam(ipv4: &str, ipv6: &str) -> Ipam {
        let mut ipam = Ipam::new(Duration::from_secs(COOL_DOWN));
        ipam.set_pools(Pools { ipv4: ipv4.parse().ok(), ipv6: ipv6.parse().ok() });
        ipam
    }

    fn v4(ipam: &mut Ipam, now: u64) -> Result<String, IpamError> {
        ipam.allocate(&[], now).map(|given| given.ipv4.map(|address| address.to_string()).unwrap_or_default())
    }

    #[test]
    fn network_gateway_and_broadcast_are_reserved() {
        let mut ipam = ipam("10.0.0.8/29", "");
        let given: Vec<_> = std::iter::from_fn(|| v4(&mut ipam, 0).ok()).collect();
        assert_eq!(given, ["10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"]);
        let gateway = ipam.gateway("10.0.0.10".parse().expect("valid"));
        assert_eq!(gateway, Some("10.0.0.9".parse().expect("valid")));
        assert_eq!(ipam.gateway("10.0.0.2".parse().expect("valid")), None, "not of this pool");
    }

    #[test]
    fn both_families_or_none() {
        let mut ipam = ipam("10.0.0.0/24", "fd00::/126");
        let first = ipam.allocate(&[], 0).expect("free");
        assert_eq!(first.ipv6, Some("fd00::2".parse().expect("valid")));
        ipam.allocate(&[], 0).expect("free");
        assert!(matches!(ipam.allocate(&[], 0), Err(IpamError::Exhausted(_))));
        // The refused allocation took no IPv4 address.
        ipam.release("fd00::2".parse().expect("valid"), 0);
        let next = ipam.allocate(&[], COOL_DOWN).expect("cooled");
        assert_eq!(next.ipv4, Some("10.0.0.4".parse().expect("valid")));
    }

    #[test]
    fn reuse_is_oldest_first_and_after_the_cool_down() {
        let mut ipam = ipam("10.0.0.0/29", "");
        for _ in 0..5 {
            v4(&mut ipam, 0).expect("free");
        }
        ipam.release("10.0.0.4".parse().expect("valid"), 100);
        ipam.release("10.0.0.2".parse().expect("valid"), 101);
        assert!(v4(&mut ipam, 109).is_err());
        assert_eq!(v4(&mut ipam, 110), Ok("10.0.0.4".into()));
        assert!(v4(&mut ipam, 110).is_err());
        // A clock set back must not keep the address forever.
        assert_eq!(v4(&mut ipam, 5), Ok("10.0.0.2".into()));
    }

    #[test]
    fn tiny_networks_and_no_network_give_nothing() {
        for net in ["10.0.0.0/31", "10.0.0.0/32"] {
            assert!(matches!(v4(&mut ipam(net, ""), 0), Err(IpamError::Exhausted(_))), "{net}");
        }
        assert_eq!(v4(&mut ipam("", ""), 0), Err(IpamError::NoPools));
        assert!(ipam("0.0.0.0/0", "::/0").allocate(&[], 0).is_ok());
    }

    #[test]
    fn pools_may_come_after_what_is_held() {
        let mut ipam = Ipam::new(Duration::ZERO);
        ipam.hold("10.0.0.2".parse().expect("valid"));
        ipam.release("10.0.0.3".parse().expect("valid"), 0);
        ipam.set_pools(Pools { ipv4: "10.0.0.0/24".parse().ok(), ipv6: None });
        assert_eq!(v4(&mut ipam, 0), Ok("10.0.0.4".into()));
    }

    proptest! {
        /// CNI-12: whatever the order of operations, no address is given twice.
        #[test]
        fn never_a_duplicate(steps in prop::collection::vec((any::<bool>(), any::<usize>(), 0..30_u64), 1..200)) {
            let mut ipam = ipam("10.0.0.0/28", "fd00::/120");
            let (mut held, mut now) = (Vec::<IpAddr>::new(), 0);
            for (allocate, pick, elapsed) in steps {
                now += elapsed;
                if allocate {
                    if let Ok(given) = ipam.allocate(&[], now) {
                        held.extend(given.ipv4.map(IpAddr::V4).into_iter().chain(given.ipv6.map(IpAddr::V6)));
                    }
                } else if !held.is_empty() {
                    let address = held.swap_remove(pick % held.len());
                    ipam.release(address, now);
                }
                prop_assert_eq!(held.iter().collect::<HashSet<_>>().len(), held.len());
            }
        }
    }
}
