//! Other nodes: where they are, which addresses their objects name, and which Pods they have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use ipnet::IpNet;

use crate::world::pod_address;

/// Numbers that other nodes may have.
pub(crate) const NUMBERS: std::ops::RangeInclusive<u8> = 2..=6;
/// The number of a node that nobody knows.
pub(crate) const STRANGER: u8 = 222;
/// The router to all that is no neighbour.
pub(crate) const ROUTER: u8 = 254;

/// Another node.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Where its name, its addresses and its Pod CIDRs have their number from.
    pub number: u8,
    pub addresses: [IpAddr; 2],
    /// Which of them its object names: one or both. The overlay is over IPv4 where both ends have it.
    pub names: [bool; 2],
    /// Which of them are in a network of the uplink, as the agent found.
    pub near: [bool; 2],
    /// Which change of the routing was the last that changed the way to it.
    pub rerouted: u32,
    pub vtep_mac: [u8; 6],
    /// Its Pods; all inside its Pod CIDRs.
    pub pods: Vec<[IpAddr; 2]>,
}

/// Where a node is, as the kernel sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    Neighbour,
    /// One that the kernel does not know.
    UnknownNeighbour,
    BehindRouter,
    /// There is no route to it.
    Nowhere,
}

impl Location {
    pub(crate) fn of(number: u8) -> Self {
        match number {
            4 => Self::UnknownNeighbour,
            5 => Self::BehindRouter,
            6 => Self::Nowhere,
            _ => Self::Neighbour,
        }
    }

    /// For [`crate::coverage`].
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Neighbour => "neighbour",
            Self::UnknownNeighbour => "unknown neighbour",
            Self::BehindRouter => "behind a router",
            Self::Nowhere => "nowhere",
        }
    }
}

impl Peer {
    fn random(rng: &mut Rng, number: u8, tunnels: Option<usize>) -> Self {
        let mut peer = Self {
            number,
            addresses: address(number),
            // A test run knows the far end of the device's tunnels over IPv4 only.
            names: if tunnels == Some(1) { [false, true] } else { [true, rng.u8(0..4) != 0] },
            near: [rng.bool(), rng.bool()],
            rerouted: 0,
            vtep_mac: [0; 6],
            pods: (2..=2 + rng.u8(0..3)).map(|host| pod_address(number, host)).collect(),
        };
        peer.vtep_mac = quilla_plan::tunnel::mac_of(&peer.name());
        peer
    }

    /// The addresses that its object names.
    pub(crate) fn named(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.into_iter().zip(self.names).filter(|(_, named)| *named).map(|(address, _)| address)
    }

    /// Those of them that are near, as networks.
    pub(crate) fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.addresses.into_iter().zip(self.near).filter(|(_, near)| *near).map(|(address, _)| address.into())
    }

    pub(crate) fn name(&self) -> String {
        format!("peer-{}", self.number)
    }

    pub(crate) fn location(&self) -> Location {
        Location::of(self.number)
    }
}

/// Two or three nodes, the first of which is a neighbour.
pub(crate) fn some(rng: &mut Rng, tunnels: Option<usize>) -> Vec<Peer> {
    let mut others: Vec<u8> = NUMBERS.skip(1).collect();
    rng.shuffle(&mut others);
    others.truncate(rng.usize(1..3));
    others.insert(0, *NUMBERS.start());
    others.into_iter().map(|number| Peer::random(rng, number, tunnels)).collect()
}

/// A node's addresses: 192.168.77.`number` and `fd00:77::number` on the uplink's network, 99 or 98 for 77 elsewhere.
pub(crate) fn address(number: u8) -> [IpAddr; 2] {
    let (v4, v6) = match Location::of(number) {
        Location::Neighbour | Location::UnknownNeighbour => (77, 0x77),
        Location::BehindRouter => (99, 0x99),
        Location::Nowhere => (98, 0x98),
    };
    [
        Ipv4Addr::new(192, 168, v4, number).into(),
        Ipv6Addr::new(0xfd00, v6, 0, 0, 0, 0, 0, u16::from(number)).into(),
    ]
}

/// Whether it is the address of a node to which the host has no way.
pub(crate) fn is_nowhere(node: IpAddr) -> bool {
    NUMBERS
        .filter(|&number| Location::of(number) == Location::Nowhere)
        .any(|number| address(number).contains(&node))
}

/// The Ethernet address that a node's frames have when they arrive.
pub(crate) fn ethernet(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 8, if Location::of(number) == Location::BehindRouter { ROUTER } else { number }]
}

/// That by which it is reached, if the kernel knows.
pub(crate) fn next_hop(number: u8) -> Option<[u8; 6]> {
    let known = matches!(Location::of(number), Location::Neighbour | Location::BehindRouter);
    known.then(|| ethernet(number))
}
