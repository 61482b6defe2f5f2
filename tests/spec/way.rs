//! The way of a packet that leaves: by which device, as what it is counted, and the addresses that it gets.

use std::net::IpAddr;

use quilla_abi::counter::path;
use quilla_abi::program::SENT_MARK;
use quilla_abi::trace;
use quilla_datapath::Outcome;

use crate::compare::{OK, REDIRECT};
use crate::model::{Expect, Target};
use crate::peer::{Location, Peer};
use crate::plain;
use crate::wire::{Frame, Headers, read};
use crate::world::{World, family};

/// How a packet gets to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// In a tunnel that the overlay device makes.
    Device,
    /// In one that the programs make.
    Tunnel,
    /// As it is.
    Plain,
}

impl Departure {
    /// How it must go, which its own size may have a say in: what is to be cut in pieces goes by the device.
    pub(crate) fn due(world: &World, peer: &Peer, headers: &Headers) -> Self {
        let direct = world.fits(headers) && peer.location() != Location::Nowhere;
        match () {
            () if direct && world.is_native(peer, family(headers.tuple.src)) => Self::Plain,
            () if direct && world.tunnels.is_some() => Self::Tunnel,
            () => Self::Device,
        }
    }

    /// How it went, if it went to another node.
    pub(crate) fn of(world: &World, seen: &Outcome<'_>) -> Option<Self> {
        match (seen.verdict, seen.cb[trace::PATH], seen.cb[trace::IFINDEX]) {
            (REDIRECT, path::NATIVE, _) => Some(Self::Plain),
            (REDIRECT, path::OVERLAY, device) if device == world.uplink => Some(Self::Tunnel),
            (REDIRECT, path::OVERLAY, _) => Some(Self::Device),
            _ => None,
        }
    }

    pub(crate) fn path(self) -> u32 {
        if self == Self::Plain { path::NATIVE } else { path::OVERLAY }
    }

    /// The device by which it goes.
    pub(crate) fn ifindex(self, world: &World) -> u32 {
        if self == Self::Device { world.overlay } else { world.uplink }
    }
}

/// How a packet must leave.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub world: &'a World,
    pub target: Target,
    /// How it gets to another node, if it is for one.
    pub departure: Departure,
    /// The programs took it out of its tunnel: the stack gets it by way of the overlay device.
    opened: bool,
}

/// The way of a packet that is not dropped or passed.
pub(crate) fn way<'a>(
    world: &'a World,
    expect: &Expect,
    frame: &[u8],
    opened: bool,
    seen: &Outcome<'_>,
) -> Option<Way<'a>> {
    let (target, stale) = match expect {
        Expect::Drop(_) | Expect::Pass => return None,
        Expect::Deliver { target, .. } | Expect::End { target, .. } => (*target, false),
        Expect::Report { target, stale, .. } => (*target, *stale),
    };
    let departure = match (target, read(frame)) {
        (Target::Overlay(peer), Frame::Ip(headers)) => {
            let due = Departure::due(world, &world.peers[peer], &headers);
            if stale { Departure::of(world, seen).unwrap_or(due) } else { due }
        }
        _ => Departure::Device,
    };
    Some(Way { world, target, departure, opened })
}

/// The way, if that is the one that was taken.
pub(crate) fn known<'a>(way: Option<Way<'a>>, slots: &[u32], seen: &Outcome<'_>) -> Result<Way<'a>, String> {
    let way = way.ok_or("nowhere")?;
    if seen.verdict == way.verdict() && seen.cb[..4] == way.said(slots, seen) && seen.mark == way.mark() {
        return Ok(way);
    }
    let Way { target, departure, .. } = way;
    Err(format!(
        "not to {target:?} by {departure:?}: verdict {}, {:?}, mark {:x}",
        seen.verdict,
        &seen.cb[..4],
        seen.mark
    ))
}

impl Way<'_> {
    /// As what it is counted.
    pub(crate) fn path(self) -> u32 {
        if let Target::Overlay(_) = self.target { self.departure.path() } else { self.target.path() }
    }

    fn verdict(self) -> i32 {
        match self.target {
            Target::Stack if self.opened => REDIRECT,
            Target::Stack | Target::Onward | Target::OnwardOverlay(_) | Target::OnwardUplink => OK,
            Target::Pod(_) | Target::Overlay(_) | Target::Uplink => REDIRECT,
        }
    }

    /// What the program must say of its verdict. Which path of the code it took is its own business.
    fn said(self, slots: &[u32], seen: &Outcome<'_>) -> [u32; 4] {
        let (ifindex, slot) = match self.target {
            Target::Stack if self.opened => (self.world.overlay, 0),
            Target::Pod(pod) => (self.world.pods[pod].ifindex, 0),
            Target::Overlay(peer) => (self.departure.ifindex(self.world), slots[peer]),
            Target::OnwardOverlay(peer) => (0, slots[peer]),
            Target::Uplink => (self.world.uplink, 0),
            Target::Stack | Target::Onward | Target::OnwardUplink => (0, 0),
        };
        let slow = seen.cb[trace::VERDICT] & trace::SLOW_PATH;
        [u32::from(self.target.action()) | slow, ifindex, slot, self.path()]
    }

    /// What tells the programs behind this one that the packet is judged.
    fn mark(self) -> u32 {
        match self.target {
            Target::Stack if !self.opened => 0,
            Target::Pod(_) | Target::Onward | Target::OnwardUplink => 0,
            Target::Stack | Target::Overlay(_) | Target::OnwardOverlay(_) | Target::Uplink => SENT_MARK,
        }
    }

    /// For [`crate::coverage`].
    pub(crate) fn word(self) -> &'static str {
        match self.path() {
            path::LOCAL_POD => "local Pod",
            path::OVERLAY => "overlay",
            path::NATIVE => "native",
            path::STACK => "stack",
            path::UPLINK => "uplink",
            _ => "host to overlay",
        }
    }
}

/// Writes the addresses of Ethernet and IP; `after` is the frame as it left.
pub(crate) fn addressed(frame: &mut [u8], way: Way<'_>, after: &[u8], src: IpAddr, dst: IpAddr) {
    let Way { world, target, departure, .. } = way;
    match target {
        Target::Pod(pod) => ethernet(frame, world.pods[pod].mac, world.pods[pod].host_mac),
        Target::Overlay(peer) if departure == Departure::Plain => {
            if let Some([dst, src]) = plain::addressed(&world.peers[peer], frame, after) {
                ethernet(frame, dst, src);
            }
        }
        Target::Overlay(peer) | Target::OnwardOverlay(peer) => {
            ethernet(frame, world.peers[peer].vtep_mac, world.vtep_mac);
        }
        Target::Stack | Target::Onward | Target::Uplink | Target::OnwardUplink => {}
    }
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame[26..30].copy_from_slice(&src.octets());
            frame[30..34].copy_from_slice(&dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame[22..38].copy_from_slice(&src.octets());
            frame[38..54].copy_from_slice(&dst.octets());
        }
        mixed => unreachable!("both of one family: {mixed:?}"),
    }
}

fn ethernet(frame: &mut [u8], dst: [u8; 6], src: [u8; 6]) {
    frame[..6].copy_from_slice(&dst);
    frame[6..12].copy_from_slice(&src);
}
