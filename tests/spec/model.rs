//! The specification: what becomes of a packet, computed anew for each packet from the cluster itself.
//!
//! It remembers only what a connection must remember: which backend it has, which source port it was given, and how
//! far TCP has come. Where the data path may choose (a backend, a source port), it takes the choice that was seen,
//! checks that it was allowed, and holds the data path to it from then on.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use quilla_abi::DropReason;
use quilla_abi::counter::path;
use quilla_abi::flow::action;

use crate::affinity::Affinity;
use crate::answer;
use crate::connection::{Connection, Direction, Scope};
use crate::coverage::{self, Coverage, protocol};
use crate::generate::Continuation;
use crate::service::{SetId, Side};
use crate::wire::{Echo, Frame, Headers, ICMP, ICMPV6, Part, RST, TCP, Tuple, UDP, read};
use crate::world::{OVERLAY_PORT, Place, SNAT_PORTS, World, family};

/// Where a packet meets the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// Index of the Pod that sends.
    FromPod(usize),
    /// Index of the Pod that the host's stack sends to.
    ToPod(usize),
    /// Index of the peer whose address the outer header carries; `None`: nobody we know.
    FromOverlay(Option<usize>),
    ToOverlay,
    FromUplink,
    /// Index of the Pod that sent it through the host's stack; `None`: the node itself did.
    ToUplink(Option<usize>),
}

impl Hook {
    /// The stack has routed the packet already.
    pub(crate) fn is_egress(self) -> bool {
        matches!(self, Self::ToPod(_) | Self::ToOverlay | Self::ToUplink(_))
    }
}

/// Where a packet must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Pod(usize),
    /// Index of the peer.
    Overlay(usize),
    Stack,
    Uplink,
    /// Let the packet go on to the Pod whose veth it is on.
    Onward,
    /// The same on the overlay device, with a tunnel key for that peer.
    OnwardOverlay(usize),
    /// The same on the uplink.
    OnwardUplink,
}

impl Target {
    pub(crate) fn action(self) -> u8 {
        match self {
            Self::Pod(_) | Self::Onward => action::LOCAL_POD,
            Self::Overlay(_) | Self::OnwardOverlay(_) => action::OVERLAY,
            Self::Stack => action::STACK,
            Self::Uplink | Self::OnwardUplink => action::UPLINK,
        }
    }

    pub(crate) fn path(self) -> u32 {
        match self {
            Self::Pod(_) | Self::Onward => path::LOCAL_POD,
            Self::Overlay(_) => path::OVERLAY,
            Self::Stack => path::STACK,
            Self::Uplink | Self::OnwardUplink => path::UPLINK,
            Self::OnwardOverlay(_) => path::HOST_OVERLAY,
        }
    }

    /// We route there; the stack does its own routing.
    pub(crate) fn is_routed(self) -> bool {
        !matches!(self, Self::Stack | Self::Onward)
    }
}

/// What was seen of a packet: the choices of the data path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    /// As it was left.
    pub packet: &'a [u8],
    pub dropped: Option<DropReason>,
    /// Left to the stack as nobody's.
    pub passed: bool,
    /// It came from another node without a tunnel.
    pub plain: bool,
}

/// What must become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    Drop(DropReason),
    /// Not ours: untouched.
    Pass,
    Deliver {
        target: Target,
        tuple: Tuple,
        decrement: bool,
    },
    /// In its place a reset goes there, for a client whose backend is gone.
    End {
        target: Target,
        tuple: Tuple,
        decrement: bool,
    },
    /// An ICMP error, with these addresses, about a packet with this tuple; `None` leaves it as it is.
    Report {
        target: Target,
        src: IpAddr,
        dst: IpAddr,
        about: Option<Tuple>,
        decrement: bool,
        /// The way was computed before the routing to the node changed: it may go as it did then.
        stale: bool,
    },
}

/// What all pieces of a datagram share: scope, addresses, protocol, identification.
type Datagram = (Scope, IpAddr, IpAddr, u8, u32);

/// What decides, on every node alike, which endpoint a client gets.
type Table = (SetId, Vec<(SocketAddr, u8)>, Tuple);

/// The specification's memory of one node.
pub(crate) struct Model {
    pub(crate) world: World,
    connections: Vec<Option<Connection>>,
    by_tuple: HashMap<(Scope, Tuple), (usize, Direction)>,
    /// The ports of datagrams that come in pieces, and when the first one was seen (E3).
    pieces: HashMap<Datagram, (u16, u16, u64)>,
    pub(crate) affinity: Affinity,
    pub(crate) coverage: Coverage,
    /// Choices that every node makes alike.
    pub(crate) tables: HashMap<Table, SocketAddr>,
    /// The time in seconds.
    pub(crate) now: u64,
    /// What would have fitted the way of the last packet that was too big.
    pub(crate) limit: usize,
}

/// How many connections of a kind [`Model::settle`] tells of.
const RECENT: usize = 8;
/// The rest of a datagram must come within so many seconds.
const REASSEMBLY: u64 = 30;

impl Model {
    pub(crate) fn new(world: World) -> Self {
        Self {
            world,
            connections: Vec::new(),
            by_tuple: HashMap::new(),
            pieces: HashMap::new(),
            affinity: Affinity::default(),
            coverage: Coverage::default(),
            tables: HashMap::new(),
            now: 0,
            limit: 0,
        }
    }

    /// The world has changed: connections to endpoints that are gone are lost. What should be met now, which chance alone would
    /// seldom lead to: the servers of those, and connections that from now on take another way.
    pub(crate) fn settle(&mut self) -> Vec<Continuation> {
        let gone = self.world.settle();
        let (mut lost, mut rerouted) = (Vec::new(), Vec::new());
        for connection in self.connections.iter_mut().flatten() {
            let chosen = SocketAddr::new(connection.answer.src, connection.answer.sport);
            if connection.balanced && gone.contains(&(chosen, connection.original.proto)) {
                connection.backend_gone = true;
                lost.push(connection.continuation(Direction::Answer));
            }
            for direction in [Direction::Original, Direction::Answer] {
                if connection.is_stale(&self.world, direction) {
                    rerouted.push(connection.continuation(direction));
                }
            }
        }
        self.affinity.settle(&self.world.sets(), &gone);
        [lost, rerouted].into_iter().flat_map(|all| all.into_iter().rev().take(RECENT)).collect()
    }

    /// What must become of this frame at this hook.
    pub(crate) fn decide(&mut self, hook: Hook, frame: &[u8], seen: Seen<'_>) -> Result<Expect, String> {
        let mut headers = match (hook, read(frame)) {
            (Hook::FromUplink | Hook::ToUplink(_), Frame::Ip(headers)) if self.concerns(hook, &headers) => {
                headers
            }
            (Hook::FromUplink | Hook::ToUplink(_), _) => return Ok(Expect::Pass),
            (Hook::ToPod(_) | Hook::ToOverlay, Frame::Arp | Frame::Bad(DropReason::UnknownEtherType)) => {
                return Ok(Expect::Pass);
            }
            (Hook::FromOverlay(_), Frame::Arp) => return Ok(Expect::Drop(DropReason::UnknownEtherType)),
            (Hook::FromPod(pod), Frame::Bad(DropReason::UnknownEtherType))
                if frame[6..12] != self.world.pods[pod].mac =>
            {
                return Ok(Expect::Drop(DropReason::SpoofedMac));
            }
            (_, Frame::Bad(reason)) => return Ok(Expect::Drop(reason)),
            (Hook::FromPod(pod), Frame::Arp) => return Ok(self.arp(pod, frame)),
            (_, Frame::Ip(headers)) => headers,
        };
        if headers.is_error() {
            return Ok(self.report(hook, &headers, frame, seen.plain));
        }
        let scope = Scope::of(hook);
        if headers.part == Part::Later && headers.has_ports() && !self.complete(scope, &mut headers) {
            return Ok(self.headless(hook, headers.tuple.dst));
        }
        let expect = match self.refused(hook, frame, &headers) {
            Some(refused) => refused,
            None => self.track(hook, &headers, frame, seen)?,
        };
        if headers.part == Part::First && headers.has_ports() && !matches!(expect, Expect::Drop(_)) {
            let Tuple { src, dst, sport, dport, proto } = headers.tuple;
            self.pieces.insert((scope, src, dst, proto, headers.id), (sport, dport, self.now));
        }
        Ok(expect)
    }

    /// A later piece of nobody knows what (E3). On the uplink it may be the host's, unless the address is a Service's.
    fn headless(&self, hook: Hook, dst: IpAddr) -> Expect {
        match hook {
            Hook::FromUplink if self.world.place(dst) == Place::ServiceAddress => {
                Expect::Drop(DropReason::Fragment)
            }
            Hook::FromUplink | Hook::ToUplink(_) => Expect::Pass,
            _ => Expect::Drop(DropReason::Fragment),
        }
    }

    /// Gives a later piece the ports of the first one, if that was let through not long ago (E3).
    pub(crate) fn complete(&self, scope: Scope, headers: &mut Headers) -> bool {
        let Tuple { src, dst, proto, .. } = headers.tuple;
        let Some(&(sport, dport, seen)) = self.pieces.get(&(scope, src, dst, proto, headers.id)) else {
            return false;
        };
        (headers.tuple.sport, headers.tuple.dport) = (sport, dport);
        if matches!(proto, ICMP | ICMPV6) {
            headers.echo = Some(if dport == 0 { Echo::Request } else { Echo::Reply });
        }
        self.now - seen <= REASSEMBLY
    }

    /// A later piece whose connection has made room for another since the first piece: under which ports a new one
    /// goes on, it does not show.
    pub(crate) fn is_orphan(&self, hook: Hook, headers: &Headers) -> bool {
        let scope = Scope::of(hook);
        let mut headers = headers.clone();
        headers.part == Part::Later
            && headers.has_ports()
            && self.complete(scope, &mut headers)
            && self.connection(scope, headers.tuple).is_none()
    }

    /// The packet's connection, and which way it goes.
    pub(crate) fn connection(&self, scope: Scope, tuple: Tuple) -> Option<(&Connection, Direction)> {
        let &(id, direction) = self.by_tuple.get(&(scope, tuple))?;
        Some((self.connections[id].as_ref()?, direction))
    }

    /// Whether a packet on the uplink can be ours at all: most of what is there is the host's own.
    fn concerns(&self, hook: Hook, headers: &Headers) -> bool {
        let Tuple { dst, dport, proto, .. } = headers.tuple;
        if proto == UDP && dport == OVERLAY_PORT {
            return false;
        }
        match hook {
            Hook::ToUplink(None) => self.world.services.node_backends,
            Hook::FromUplink if self.world.place(dst) == Place::Multicast => false,
            Hook::FromUplink if self.world.host.contains(&dst) => match proto {
                _ if headers.part == Part::Later || headers.is_error() => true,
                TCP | UDP => SNAT_PORTS.contains(&dport) || self.world.may_be_node_port(dport),
                ICMP | ICMPV6 => headers.echo == Some(Echo::Reply) && SNAT_PORTS.contains(&dport),
                _ => false,
            },
            _ => true,
        }
    }

    /// ARP of a Pod: about itself, or not at all (E19).
    fn arp(&self, pod: usize, frame: &[u8]) -> Expect {
        let pod = &self.world.pods[pod];
        if frame[6..12] != pod.mac {
            return Expect::Drop(DropReason::SpoofedMac);
        }
        if frame.len() < 42 {
            return Expect::Drop(DropReason::Truncated);
        }
        let IpAddr::V4(own) = pod.addresses[0] else { unreachable!("the first address is IPv4") };
        let about_itself = frame[14..20] == [0, 1, 8, 0, 6, 4]
            && frame[20] == 0
            && matches!(frame[21], 1 | 2)
            && frame[22..28] == pod.mac
            && frame[28..32] == own.octets();
        if about_itself { Expect::Pass } else { Expect::Drop(DropReason::ForgedNeighbour) }
    }

    /// What is refused whatever is known of the connection.
    pub(crate) fn refused(&self, hook: Hook, frame: &[u8], headers: &Headers) -> Option<Expect> {
        let Tuple { src, dst, .. } = headers.tuple;
        let drop = |reason| Some(Expect::Drop(reason));
        match hook {
            Hook::FromPod(pod) => {
                let pod = &self.world.pods[pod];
                if frame[6..12] != pod.mac {
                    return drop(DropReason::SpoofedMac);
                }
                if src != pod.addresses[family(src)] {
                    return drop(DropReason::SpoofedAddress);
                }
                if self.world.place(dst) == Place::Multicast {
                    return drop(DropReason::Multicast);
                }
                None
            }
            Hook::FromOverlay(None) => drop(DropReason::UnknownTunnelSource),
            Hook::FromOverlay(Some(peer)) if self.world.place(src) != Place::Remote(peer) => {
                drop(DropReason::WrongTunnelSource)
            }
            // The host may speak to groups on its own links.
            Hook::ToPod(_) | Hook::ToOverlay if self.world.place(dst) == Place::Multicast => {
                Some(Expect::Pass)
            }
            Hook::ToPod(pod) if !self.world.pods[pod].addresses.contains(&dst) => {
                drop(DropReason::NoEndpoint)
            }
            _ => None,
        }
    }

    fn track(
        &mut self,
        hook: Hook,
        headers: &Headers,
        frame: &[u8],
        seen: Seen<'_>,
    ) -> Result<Expect, String> {
        let tuple = headers.tuple;
        let mut replaced = None;
        if let Some(&(id, direction)) = self.by_tuple.get(&(Scope::of(hook), tuple)) {
            let connection = self.connections[id].as_ref().expect("only forgotten connections are None");
            let starts = headers.starts();
            let reopens = (starts && (connection.life.is_over() || connection.backend_gone))
                || (tuple.proto != TCP && connection.life.is_silent(tuple.proto, self.now));
            let reselects = connection.backend_gone && tuple.proto != TCP && direction == Direction::Original;
            if connection.backend_gone && !reopens && !reselects {
                return Ok(self.ended(id, direction, hook, headers, frame, seen));
            }
            // Whatever was spoken to past all Services belongs to one now; the connection ends when the data path looks
            // at it again, which the Service alone is no reason to do.
            let looked_again = seen.dropped.is_some() || seen.passed;
            let lost = looked_again
                && direction == Direction::Original
                && matches!(connection.forward, Target::Uplink | Target::OnwardUplink)
                && !connection.balanced
                && self.world.place(tuple.dst) == Place::ServiceAddress;
            if lost && !reopens && !reselects {
                let stack = matches!(hook, Hook::ToUplink(_));
                let reason = self.nobody(Side::Inside, tuple);
                return Ok(if stack { Expect::Pass } else { Expect::Drop(reason) });
            }
            if !reopens && !reselects {
                let how = if direction == Direction::Original { "continued" } else { "answered" };
                self.coverage.meet(["connection", how, protocol(headers), ""]);
                return Ok(self.known(id, direction, hook, headers, frame));
            }
            let over = starts && connection.life.is_over();
            let how = match () {
                () if connection.backend_gone => "led elsewhere",
                () if over => "begun after its end",
                () => "begun after silence",
            };
            replaced = Some((id, how));
        }
        let old = replaced.and_then(|(id, _)| self.forget(id));
        match self.unknown(hook, headers, frame, seen)? {
            Ok(connection) => {
                self.meet(&connection, headers, replaced.map(|(_, how)| how));
                self.take_over(&connection);
                let id = self.remember(connection);
                Ok(self.known(id, Direction::Original, hook, headers, frame))
            }
            Err(other) => {
                // Nothing took its place.
                old.map(|connection| self.remember(connection));
                Ok(other)
            }
        }
    }

    /// Counts a connection that begins.
    fn meet(&mut self, connection: &Connection, headers: &Headers, replacing: Option<&'static str>) {
        let protocol = protocol(headers);
        let plain = if headers.is_stray() { "met in its middle" } else { "begun" };
        self.coverage.meet(["connection", replacing.unwrap_or(plain), protocol, ""]);
        if connection.balanced && connection.original.src == connection.answer.src {
            self.coverage.meet(["connection", "to itself", protocol, ""]);
        }
        if connection.answer.dst == connection.original.src && connection.is_renamed() {
            self.coverage.meet(["connection", "under another port", protocol, ""]);
        }
    }

    /// Whoever had the tuple of the answers, and was silent for too long, loses it (E16).
    fn take_over(&mut self, connection: &Connection) {
        let [_, answer] = connection.keys();
        if let Some(&(id, _)) = self.by_tuple.get(&answer) {
            self.forget(id);
        }
    }

    fn remember(&mut self, connection: Connection) -> usize {
        let id = self.connections.len();
        let [original, answer] = connection.keys();
        self.by_tuple.insert(original, (id, Direction::Original));
        self.by_tuple.insert(answer, (id, Direction::Answer));
        self.connections.push(Some(connection));
        id
    }

    fn forget(&mut self, id: usize) -> Option<Connection> {
        let connection = self.connections[id].take()?;
        for key in connection.keys() {
            self.by_tuple.remove(&key);
        }
        Some(connection)
    }

    /// A packet of a connection that exists.
    fn known(
        &mut self,
        id: usize,
        direction: Direction,
        hook: Hook,
        headers: &Headers,
        frame: &[u8],
    ) -> Expect {
        let connection = self.connections[id].as_mut().expect("only forgotten connections are None");
        let (target, tuple) = connection.translated(direction);
        let routed = !hook.is_egress() && target.is_routed();
        let renamed = connection.is_renamed();
        connection.life.hear(self.now, direction, headers.tcp_flags);
        if let Some(changed) = connection.look(&self.world, hook, direction) {
            self.coverage.meet(["routing", changed, coverage::family(tuple.src), protocol(headers)]);
        }
        if !hook.is_egress()
            && let Some(limit) = self.exceeded(target, headers, frame)
        {
            let whither = if target == Target::Uplink { "for the world" } else { "for another node" };
            self.coverage.meet(["too big", whither, coverage::family(tuple.src), ""]);
            self.limit = limit;
            return Expect::Drop(DropReason::TooBig);
        }
        if routed && frame[headers.ttl_at] <= 1 {
            // The host would take a packet to its own address for its own: nobody can be told.
            if hook == Hook::FromUplink || (direction == Direction::Answer && renamed) {
                return Expect::Drop(DropReason::HopLimit);
            }
            return Expect::Deliver { target: Target::Stack, tuple: headers.tuple, decrement: false };
        }
        Expect::Deliver { target, tuple, decrement: routed }
    }

    /// A packet of a connection whose backend is gone. The client hears of it with the first one of the server, unless it is
    /// only connecting, and the server with its next one. As all answers that one may be missing.
    fn ended(
        &mut self,
        id: usize,
        direction: Direction,
        hook: Hook,
        headers: &Headers,
        frame: &[u8],
        seen: Seen<'_>,
    ) -> Expect {
        let connection = self.connections[id].as_mut().expect("only forgotten connections are None");
        let due = direction == Direction::Answer
            && !connection.life.is_reset()
            && answer::ends(headers, frame)
            && seen.dropped != Some(DropReason::BackendGone);
        if !due {
            return Expect::Drop(DropReason::BackendGone);
        }
        connection.life.hear(self.now, direction, RST);
        let (target, tuple) = connection.translated(direction);
        Expect::End { target, tuple, decrement: !hook.is_egress() && target.is_routed() }
    }

    /// Another connection has the tuple, and was heard of not too long ago.
    pub(crate) fn is_taken(&self, scope: Scope, tuple: Tuple) -> bool {
        let holder = self.connection(scope, tuple);
        holder.is_some_and(|(holder, _)| !holder.life.is_silent(tuple.proto, self.now))
    }
}
