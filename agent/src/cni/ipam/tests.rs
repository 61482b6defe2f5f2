//! The allocator against its promises, and against a model that does everything by looking at all addresses.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;

use super::{Ipam, IpamError, Pools};

const COOL_DOWN: u64 = 10;

fn pools(nets: &[&str]) -> Pools {
    nets.iter().map(|net| net.parse::<IpNet>().expect("valid")).collect()
}

fn ipam(nets: &[&str]) -> Ipam {
    let mut ipam = Ipam::new(Duration::from_secs(COOL_DOWN));
    ipam.set_pools(&pools(nets));
    ipam
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("valid")
}

fn v4(ipam: &mut Ipam, now: u64) -> Result<String, IpamError> {
    ipam.allocate(&[], now).map(|given| given.ipv4.map(|address| address.to_string()).unwrap_or_default())
}

#[test]
fn network_gateway_and_broadcast_are_reserved() {
    let mut ipam = ipam(&["10.0.0.8/29"]);
    let given: Vec<_> = std::iter::from_fn(|| v4(&mut ipam, 0).ok()).collect();
    assert_eq!(given, ["10.0.0.10", "10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"]);
    assert_eq!(ipam.gateway(ip("10.0.0.10")), Some(ip("10.0.0.9")));
    assert_eq!(ipam.gateway(ip("10.0.0.2")), None, "not of this pool");
}

#[test]
fn both_families_or_none() {
    let mut ipam = ipam(&["10.0.0.0/24", "fd00::/126"]);
    let first = ipam.allocate(&[], 0).expect("free");
    assert_eq!(first.ipv6.map(IpAddr::V6), Some(ip("fd00::2")));
    ipam.allocate(&[], 0).expect("free");
    assert!(matches!(ipam.allocate(&[], 0), Err(IpamError::Exhausted(_))));
    // The refused allocation took no IPv4 address.
    ipam.release(ip("fd00::2"), 0);
    let next = ipam.allocate(&[], COOL_DOWN).expect("cooled");
    assert_eq!(next.ipv4.map(IpAddr::V4), Some(ip("10.0.0.4")));
}

#[test]
fn reuse_is_oldest_first_and_after_the_cool_down() {
    let mut ipam = ipam(&["10.0.0.0/29"]);
    for _ in 0..5 {
        v4(&mut ipam, 0).expect("free");
    }
    ipam.release(ip("10.0.0.4"), 100);
    ipam.release(ip("10.0.0.2"), 101);
    assert!(v4(&mut ipam, 109).is_err());
    assert_eq!(v4(&mut ipam, 110), Ok("10.0.0.4".into()));
    assert!(v4(&mut ipam, 110).is_err());
    assert_eq!(v4(&mut ipam, 111), Ok("10.0.0.2".into()));
}

/// Several CIDRs of a family: one after the other, each with its own gateway.
#[test]
fn pools_are_used_in_order() {
    let mut ipam = ipam(&["10.0.0.0/30", "10.0.9.0/30", "10.0.5.0/30"]);
    let given: Vec<_> = std::iter::from_fn(|| v4(&mut ipam, 0).ok()).collect();
    assert_eq!(given, ["10.0.0.2", "10.0.9.2", "10.0.5.2"]);
    assert_eq!(ipam.gateway(ip("10.0.5.2")), Some(ip("10.0.5.1")));
    // A CIDR that goes takes its cooling addresses with it, not the held ones.
    ipam.release(ip("10.0.9.2"), 0);
    ipam.set_pools(&pools(&["10.0.0.0/30", "10.0.5.0/29"]));
    assert_eq!(v4(&mut ipam, 0), Ok("10.0.5.3".into()));
    assert!(ipam.held().any(|held| held == ip("10.0.0.2")));
}

/// CNI-33: a wished address is given when it can be, and nothing else in its place.
#[test]
fn wished_addresses() {
    let mut ipam = ipam(&["10.0.0.0/24", "fd00::/64"]);
    let wished = ipam.allocate(&[ip("10.0.0.77"), ip("fd00::abcd:0:1")], 0).expect("free");
    assert_eq!(wished.ipv4.map(IpAddr::V4), Some(ip("10.0.0.77")));
    assert_eq!(wished.ipv6.map(IpAddr::V6), Some(ip("fd00::abcd:0:1")));
    assert_eq!(ipam.allocate(&[ip("10.0.0.77")], 0), Err(IpamError::Held(ip("10.0.0.77"))));
    for unusable in ["10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.2", "fd00::", "fd00::1", "fd01::2"] {
        assert_eq!(ipam.allocate(&[ip(unusable)], 0), Err(IpamError::Unusable(ip(unusable))));
    }
    let others: HashSet<_> = (0..252).map(|_| v4(&mut ipam, 0).expect("free")).collect();
    assert!(others.len() == 252 && !others.contains("10.0.0.77"));
}

/// An address beyond those given unasked is forgotten once it has rested: nothing grows with what was ever wished.
#[test]
fn rested_wishes_are_forgotten() {
    let mut ipam = ipam(&["fd00::/64"]);
    for round in 0..1000_u64 {
        let address = ip(&format!("fd00::1:0:{round:x}"));
        ipam.allocate(&[address], round).expect("free");
        ipam.release(address, round);
        assert!(ipam.require_rested(address, None, round).is_err());
        assert!(ipam.cooling_count() <= 11, "{} rest", ipam.cooling_count());
    }
    // Whether it is one is known only with the pools.
    let mut later = Ipam::new(Duration::from_secs(COOL_DOWN));
    (0..100_u64).for_each(|round| later.release(ip(&format!("fd00::1:0:{round:x}")), round));
    later.set_pools(&pools(&["fd00::/64"]));
    later.release(ip("fd00::2"), 200);
    assert_eq!(later.cooling_count(), 1);
}

#[test]
fn tiny_networks_and_no_network_give_nothing() {
    for net in ["10.0.0.0/31", "10.0.0.0/32"] {
        assert!(matches!(v4(&mut ipam(&[net]), 0), Err(IpamError::Exhausted(_))), "{net}");
    }
    assert_eq!(v4(&mut ipam(&[]), 0), Err(IpamError::NoPools));
    assert!(ipam(&["0.0.0.0/0", "::/0"]).allocate(&[], 0).is_ok());
}

#[test]
fn pools_may_come_after_what_is_held() {
    let mut ipam = Ipam::new(Duration::ZERO);
    ipam.hold(ip("10.0.0.2"));
    ipam.release(ip("10.0.0.3"), 0);
    ipam.set_pools(&pools(&["10.0.0.0/24"]));
    assert_eq!(v4(&mut ipam, 0), Ok("10.0.0.4".into()));
}

/// Thousands of Pods that come and go: an allocator that looked through its addresses would not end.
#[test]
fn thousands_of_addresses() {
    let mut ipam = ipam(&["10.0.0.0/18", "fd00::/64"]);
    let mut held: Vec<_> = (0..16_000).map(|_| ipam.allocate(&[], 0).expect("free")).collect();
    for round in 0..100_000_u64 {
        let given = held.swap_remove(usize::try_from(round * 7_919 % 16_000).expect("small"));
        ipam.release(given.ipv4.expect("has one").into(), round);
        ipam.release(given.ipv6.expect("has one").into(), round);
        held.push(ipam.allocate(&[], round + COOL_DOWN).expect("cooled"));
    }
    let distinct: HashSet<_> = held.iter().map(|given| given.ipv4).collect();
    assert_eq!(distinct.len(), held.len());
}

/// What an address is to the model, which knows nothing of order beyond the time of release.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Never,
    Held,
    Released { at: u64, turn: usize },
}

/// Everything by looking at all addresses.
struct Model {
    addresses: BTreeMap<IpAddr, State>,
    /// Those of the pools, in their order.
    order: Vec<IpAddr>,
}

impl Model {
    fn new(nets: &[&str]) -> Self {
        let usable = |net: &&str| -> Vec<IpAddr> {
            match net.parse().expect("valid") {
                IpNet::V4(net) => {
                    (2..7).map(|offset| Ipv4Addr::from_bits(net.addr().to_bits() + offset).into()).collect()
                }
                IpNet::V6(net) => {
                    (2..8).map(|offset| Ipv6Addr::from_bits(net.addr().to_bits() + offset).into()).collect()
                }
            }
        };
        let order: Vec<IpAddr> = nets.iter().flat_map(usable).collect();
        Self { addresses: order.iter().map(|address| (*address, State::Never)).collect(), order }
    }

    fn next(&self, ipv4: bool, now: u64) -> Option<IpAddr> {
        let mine = || self.order.iter().copied().filter(move |address| address.is_ipv4() == ipv4);
        let never = mine().find(|address| self.addresses[address] == State::Never);
        let oldest = || {
            let released = mine().filter_map(|address| match self.addresses[&address] {
                State::Released { at, turn } => Some((turn, at, address)),
                _ => None,
            });
            released.min().filter(|(_, at, _)| now - at >= COOL_DOWN).map(|(_, _, address)| address)
        };
        never.or_else(oldest)
    }
}

const NETS: [&str; 4] = ["10.0.0.0/29", "10.0.3.0/29", "fd00::/125", "fd00:1::/125"];

proptest! {
    /// CNI-12: in any order of operations the allocator gives what the model gives, so no address twice.
    #[test]
    fn as_the_model(steps in prop::collection::vec((0..4_u8, any::<usize>(), 0..8_u64), 1..200)) {
        let (mut ipam, mut model) = (ipam(&NETS), Model::new(&NETS));
        let (mut held, mut now) = (BTreeSet::<IpAddr>::new(), 0);
        for (turn, (kind, pick, elapsed)) in steps.into_iter().enumerate() {
            now += elapsed;
            let wished: Vec<IpAddr> = if kind == 1 { vec![model.order[pick % model.order.len()]] } else { vec![] };
            if kind <= 1 || held.is_empty() {
                let expected: Option<Vec<IpAddr>> = [true, false].into_iter().map(|ipv4| {
                    match wished.iter().find(|wish| wish.is_ipv4() == ipv4) {
                        Some(wish) => (model.addresses[wish] != State::Held).then_some(*wish),
                        None => model.next(ipv4, now),
                    }
                }).collect();
                let given = ipam.allocate(&wished, now).ok().map(|given| {
                    given.ipv4.map(IpAddr::V4).into_iter().chain(given.ipv6.map(IpAddr::V6)).collect::<Vec<_>>()
                });
                prop_assert_eq!(&given, &expected);
                for address in given.into_iter().flatten() {
                    prop_assert!(held.insert(address), "{} twice", address);
                    model.addresses.insert(address, State::Held);
                }
            } else if let Some(address) = held.iter().nth(pick % held.len()).copied() {
                held.remove(&address);
                ipam.release(address, now);
                model.addresses.insert(address, State::Released { at: now, turn });
            }
        }
        prop_assert_eq!(ipam.held().collect::<BTreeSet<_>>(), held);
    }
}
