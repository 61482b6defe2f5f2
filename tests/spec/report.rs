//! ICMP errors: about which connection they speak, and whom they must reach (E4).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use quilla_abi::DropReason;

use crate::connection::{Direction, Scope};
use crate::model::{Expect, Hook, Model, Target};
use crate::wire::{Headers, ICMP, ICMPV6, TCP, Tuple, UDP, be16, pseudo_header, sum};
use crate::world::Place;

/// The packet that an error is about, as far as it is there.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub tuple: Tuple,
    /// Offset of its IP header in the frame.
    pub network: usize,
    /// Offset of its transport header.
    pub l4: usize,
    /// Offset of its transport checksum, if that was kept.
    pub sum_at: Option<usize>,
    /// An echo request, which has its identifier as source port.
    pub asks: bool,
}

impl Subject {
    /// `None` if it is not a packet of which we could know the connection.
    pub(crate) fn read(frame: &[u8], headers: &Headers) -> Option<Self> {
        let (network, end) = (headers.l4 + 8, headers.l4 + headers.l4_len);
        let ip = &frame[network..];
        let (proto, src, dst, header) = if headers.tuple.src.is_ipv4() {
            let header = usize::from(*ip.first()? & 15) * 4;
            if ip.len() < 20 || ip[0] >> 4 != 4 || header < 20 || be16(ip, 6) & 0x1fff != 0 {
                return None;
            }
            let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]).into();
            (ip[9], address(12), address(16), header)
        } else {
            if ip.len() < 40 || ip[0] >> 4 != 6 {
                return None;
            }
            let octets = |at: usize| <[u8; 16]>::try_from(&ip[at..at + 16]).expect("sixteen bytes");
            (ip[6], Ipv6Addr::from(octets(8)).into(), Ipv6Addr::from(octets(24)).into(), 40)
        };
        let l4 = network + header;
        if l4 + 8 > end {
            return None;
        }
        let mut subject = Self {
            tuple: Tuple { src, dst, sport: 0, dport: 0, proto },
            network,
            l4,
            sum_at: None,
            asks: false,
        };
        let kept = |at: usize| (l4 + at + 2 <= end).then_some(l4 + at);
        match (proto, frame[l4], headers.tuple.src.is_ipv4()) {
            (TCP | UDP, ..) => {
                (subject.tuple.sport, subject.tuple.dport) = (be16(frame, l4), be16(frame, l4 + 2));
                subject.sum_at = kept(if proto == TCP { 16 } else { 6 });
            }
            (ICMP, 8, true) | (ICMPV6, 128, false) => {
                (subject.tuple.sport, subject.sum_at, subject.asks) = (be16(frame, l4 + 4), kept(2), true);
            }
            (ICMP, 0, true) | (ICMPV6, 129, false) => {
                (subject.tuple.dport, subject.sum_at) = (be16(frame, l4 + 4), kept(2));
            }
            (ICMP, _, true) | (ICMPV6, _, false) => return None,
            _ => {}
        }
        Some(subject)
    }

    /// The frame with another packet in the error; sums are not touched.
    pub(crate) fn rename(&self, frame: &mut [u8], tuple: Tuple) {
        match (tuple.src, tuple.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame[self.network + 12..self.network + 16].copy_from_slice(&src.octets());
                frame[self.network + 16..self.network + 20].copy_from_slice(&dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame[self.network + 8..self.network + 24].copy_from_slice(&src.octets());
                frame[self.network + 24..self.network + 40].copy_from_slice(&dst.octets());
            }
            mixed => unreachable!("both of one family: {mixed:?}"),
        }
        match tuple.proto {
            TCP | UDP => {
                frame[self.l4..self.l4 + 2].copy_from_slice(&tuple.sport.to_be_bytes());
                frame[self.l4 + 2..self.l4 + 4].copy_from_slice(&tuple.dport.to_be_bytes());
            }
            ICMP | ICMPV6 => {
                let id = if self.asks { tuple.sport } else { tuple.dport };
                frame[self.l4 + 4..self.l4 + 6].copy_from_slice(&id.to_be_bytes());
            }
            _ => {}
        }
    }

    /// Zeroes the sums of the packet in the error.
    pub(crate) fn blank(&self, frame: &mut [u8]) {
        if self.tuple.src.is_ipv4() {
            frame[self.network + 10..self.network + 12].fill(0);
        }
        if let Some(at) = self.sum_at {
            frame[at..at + 2].fill(0);
        }
    }

    /// What correct changes leave as it is: the sum of the embedded IP header, and that of everything which the
    /// embedded transport checksum covers and which we change. A UDP checksum of 0 is none.
    pub(crate) fn invariants(&self, frame: &[u8], tuple: Tuple) -> (u32, Option<u32>) {
        let header = if tuple.src.is_ipv4() { sum(&frame[self.network..self.l4]) % 0xffff } else { 0 };
        let transport = self.sum_at.filter(|&at| tuple.proto != UDP || be16(frame, at) != 0).map(|at| {
            let mut covered = if tuple.proto == ICMP { Vec::new() } else { pseudo_header(&tuple, 0) };
            covered.extend(&frame[self.l4..self.l4 + 8]);
            if at >= self.l4 + 8 {
                covered.extend(&frame[at..at + 2]);
            }
            sum(&covered) % 0xffff
        });
        (header, transport)
    }
}

impl Model {
    /// What must become of an ICMP error. It never starts a connection, and keeps none alive.
    /// One that came plainly is taken from whoever reports: its flow says whose it is.
    pub(crate) fn report(&self, hook: Hook, headers: &Headers, frame: &[u8], plain: bool) -> Expect {
        let by_stack = hook.is_egress();
        // Nobody is told about errors that got lost.
        if frame[headers.ttl_at] <= 1 && !by_stack {
            let uplink = hook == Hook::FromUplink;
            return if uplink { Expect::Pass } else { Expect::Drop(DropReason::HopLimit) };
        }
        if !by_stack
            && !plain
            && let Some(refused) = self.refused(hook, frame, headers)
        {
            return refused;
        }
        let Tuple { src, dst, .. } = headers.tuple;
        if let Some(subject) = Subject::read(frame, headers)
            && let Some((connection, direction)) = self.connection(Scope::of(hook), subject.tuple.mirrored())
            && connection.hook(direction) == hook
            && !connection.backend_gone
        {
            let (target, tuple) = connection.translated(direction);
            // The far end itself appears under the name that the receiver knows, and so does whoever else means nothing
            // out there, or would not be let in (E20).
            let known = match target {
                Target::Uplink | Target::OnwardUplink => true,
                Target::Overlay(_) | Target::OnwardOverlay(_) => {
                    direction == Direction::Original && connection.is_renamed()
                }
                _ => src == subject.tuple.dst,
            };
            let src = if known || src == subject.tuple.dst { tuple.src } else { src };
            let decrement = !by_stack && target.is_routed();
            let stale = connection.is_stale(&self.world, direction);
            let about = Some(tuple.mirrored());
            return Expect::Report { target, src, dst: tuple.dst, about, decrement, stale };
        }
        let for_it = Subject::read(frame, headers).is_some_and(|subject| subject.tuple.dst == src);
        if matches!(hook, Hook::FromPod(_)) && !for_it {
            return Expect::Drop(DropReason::ForgedReport);
        }
        match self.relayed(hook, dst) {
            Ok(Some(target)) => {
                let decrement = !by_stack && target.is_routed();
                Expect::Report { target, src, dst, about: None, decrement, stale: false }
            }
            Ok(None) => Expect::Pass,
            Err(reason) => Expect::Drop(reason),
        }
    }

    /// Where an error about nothing we know goes: by its address, and never out of the cluster.
    fn relayed(&self, hook: Hook, dst: IpAddr) -> Result<Option<Target>, DropReason> {
        match (hook, self.world.place(dst)) {
            (Hook::FromPod(_), _) => match self.target(dst)? {
                Target::Uplink => Err(DropReason::NoFlow),
                target => Ok(Some(target)),
            },
            (Hook::ToPod(pod), Place::Local(other)) if pod == other => Ok(Some(Target::Onward)),
            (Hook::FromOverlay(_), Place::Local(pod)) => Ok(Some(Target::Pod(pod))),
            (Hook::FromOverlay(_), Place::Host) => Ok(Some(Target::Stack)),
            (Hook::ToPod(_) | Hook::FromOverlay(_), _) => Err(DropReason::NoEndpoint),
            (Hook::ToOverlay, Place::Remote(peer)) => Ok(Some(Target::OnwardOverlay(peer))),
            (Hook::ToOverlay, _) => Err(DropReason::UnknownNode),
            (Hook::FromUplink, Place::ServiceAddress) => Err(DropReason::NotAService),
            (Hook::FromUplink | Hook::ToUplink(_), _) => Ok(None),
        }
    }
}
