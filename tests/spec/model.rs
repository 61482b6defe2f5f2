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

use crate::service::{Frontend, frontend};
use crate::wire::{ACK, Echo, FIN, Frame, Headers, ICMP, ICMPV6, RST, SYN, TCP, Tuple, UDP, read};
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
}

impl Target {
    pub(crate) fn action(self) -> u8 {
        match self {
            Self::Pod(_) | Self::Onward => action::LOCAL_POD,
            Self::Overlay(_) | Self::OnwardOverlay(_) => action::OVERLAY,
            Self::Stack => action::STACK,
            Self::Uplink => action::UPLINK,
        }
    }

    pub(crate) fn path(self) -> u32 {
        match self {
            Self::Pod(_) | Self::Onward => path::LOCAL_POD,
            Self::Overlay(_) => path::OVERLAY,
            Self::Stack => path::STACK,
            Self::Uplink => path::UPLINK,
            Self::OnwardOverlay(_) => path::HOST_OVERLAY,
        }
    }
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Scope {
    Cluster,
    Uplink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Original,
    Answer,
}

#[derive(Clone, Debug)]
struct Connection {
    /// As the first packet arrived.
    original: Tuple,
    /// As the answer arrives.
    answer: Tuple,
    answer_scope: Scope,
    /// Through a Service.
    balanced: bool,
    forward: Target,
    back: Target,
    fin: [bool; 2],
    reset: bool,
    backend_gone: bool,
}

impl Connection {
    /// A SYN may take the tuple over (E10).
    fn is_over(&self) -> bool {
        self.reset || self.fin[0] || self.fin[1]
    }
}

/// The specification's memory of one node.
pub(crate) struct Model {
    pub(crate) world: World,
    connections: Vec<Option<Connection>>,
    by_tuple: HashMap<(Scope, Tuple), (usize, Direction)>,
}

impl Model {
    pub(crate) fn new(world: World) -> Self {
        Self { world, connections: Vec::new(), by_tuple: HashMap::new() }
    }

    /// The world has changed: connections to endpoints that are gone are lost.
    pub(crate) fn settle(&mut self) {
        let gone = self.world.settle();
        for connection in self.connections.iter_mut().flatten() {
            let chosen = SocketAddr::new(connection.answer.src, connection.answer.sport);
            connection.backend_gone |=
                connection.balanced && gone.contains(&(chosen, connection.original.proto));
        }
    }

    /// What must become of this frame at this hook. `seen` is the frame as the data path left it: its choices.
    pub(crate) fn decide(&mut self, hook: Hook, frame: &[u8], seen: &[u8]) -> Result<Expect, String> {
        let headers = match (hook, read(frame)) {
            (Hook::FromUplink, Frame::Ip(headers)) if self.is_for_masquerade(&headers) => headers,
            (Hook::FromUplink, _) => return Ok(Expect::Pass),
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
        if let Some(refused) = self.refused(hook, frame, &headers) {
            return Ok(refused);
        }
        self.track(hook, &headers, frame, seen)
    }

    fn is_for_masquerade(&self, headers: &Headers) -> bool {
        let tuple = headers.tuple;
        self.world.host.contains(&tuple.dst)
            && match tuple.proto {
                TCP | UDP => SNAT_PORTS.contains(&tuple.dport),
                ICMP | ICMPV6 => headers.echo == Some(Echo::Reply),
                _ => false,
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
    fn refused(&self, hook: Hook, frame: &[u8], headers: &Headers) -> Option<Expect> {
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
                let to_a_node = self.world.host.contains(&dst)
                    || self.world.gateway.contains(&dst)
                    || self.world.peers.iter().any(|peer| peer.addresses.contains(&dst));
                if to_a_node && headers.tuple.proto == UDP && headers.tuple.dport == OVERLAY_PORT {
                    return drop(DropReason::ForgedOverlay);
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

    fn track(&mut self, hook: Hook, headers: &Headers, frame: &[u8], seen: &[u8]) -> Result<Expect, String> {
        let tuple = headers.tuple;
        let mut replaced = None;
        let scope = if hook == Hook::FromUplink { Scope::Uplink } else { Scope::Cluster };
        let starts = tuple.proto == TCP && headers.tcp_flags & (SYN | ACK) == SYN;
        if let Some(&(id, direction)) = self.by_tuple.get(&(scope, tuple)) {
            let connection = self.connections[id].as_ref().expect("only forgotten connections are None");
            let reopens = starts && (connection.is_over() || connection.backend_gone);
            let reselects = connection.backend_gone && tuple.proto != TCP && direction == Direction::Original;
            if connection.backend_gone && !reopens && !reselects {
                return Ok(Expect::Drop(DropReason::BackendGone));
            }
            if !reopens && !reselects {
                return Ok(self.known(id, direction, hook, headers, frame));
            }
            replaced = Some(id);
        }
        let old = replaced.and_then(|id| self.forget(id));
        if frame[headers.ttl_at] <= 1 && self.leads_on(hook, headers, seen == frame) {
            old.map(|connection| self.remember(connection));
            return Ok(Expect::Deliver { target: Target::Stack, tuple, decrement: false });
        }
        match self.unknown(hook, headers, starts, seen)?.and_then(|fresh| self.told_apart(fresh, headers)) {
            Ok(mut connection) => {
                if self.taken(&connection) {
                    let Tuple { src, dst, dport, .. } = connection.answer.mirrored();
                    connection.answer = self.translated_source(&connection, src, dst, dport, seen)?;
                }
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

    /// Whether a new connection would be routed on, and so would run into its TTL.
    fn leads_on(&self, hook: Hook, headers: &Headers, untouched: bool) -> bool {
        let tuple = headers.tuple;
        let middle = tuple.proto == TCP && headers.tcp_flags & (SYN | ACK) != SYN;
        let lost_answer = middle && self.world.is_backend(tuple.src, tuple.sport, tuple.proto);
        match (hook, frontend(&self.world, tuple.dst, tuple.dport, tuple.proto)) {
            // A backend that is this node itself is reached whatever the TTL: then the packet was translated.
            (Hook::FromPod(_), Some(frontend)) => !middle && untouched && !frontend.backends.is_empty(),
            (Hook::FromPod(_), None) => {
                !lost_answer && self.target(tuple.dst).is_ok_and(|target| target != Target::Stack)
            }
            (Hook::FromOverlay(_), _) => {
                !lost_answer && matches!(self.world.place(tuple.dst), Place::Local(_))
            }
            _ => false,
        }
    }

    fn remember(&mut self, connection: Connection) -> usize {
        let id = self.connections.len();
        self.by_tuple.insert((Scope::Cluster, connection.original), (id, Direction::Original));
        self.by_tuple.insert((connection.answer_scope, connection.answer), (id, Direction::Answer));
        self.connections.push(Some(connection));
        id
    }

    fn forget(&mut self, id: usize) -> Option<Connection> {
        let connection = self.connections[id].take()?;
        self.by_tuple.remove(&(Scope::Cluster, connection.original));
        self.by_tuple.remove(&(connection.answer_scope, connection.answer));
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
        let (target, tuple) = match direction {
            Direction::Original => (connection.forward, connection.answer.mirrored()),
            Direction::Answer => (connection.back, connection.original.mirrored()),
        };
        let by_stack = matches!(hook, Hook::ToPod(_) | Hook::ToOverlay);
        let routed = !by_stack && !matches!(target, Target::Stack | Target::Onward);
        // What the sender says of its side holds, whether or not the packet arrives.
        if headers.tuple.proto == TCP {
            connection.fin[usize::from(direction == Direction::Answer)] |= headers.tcp_flags & FIN != 0;
            connection.reset |= headers.tcp_flags & RST != 0;
        }
        if routed && frame[headers.ttl_at] <= 1 {
            // The host would take a packet to its own address for its own: nobody can be told.
            if hook == Hook::FromUplink {
                return Expect::Drop(DropReason::HopLimit);
            }
            return Expect::Deliver { target: Target::Stack, tuple: headers.tuple, decrement: false };
        }
        Expect::Deliver { target, tuple, decrement: routed }
    }

    /// The first packet of a connection, or one that has none.
    fn unknown(
        &self,
        hook: Hook,
        headers: &Headers,
        starts: bool,
        seen: &[u8],
    ) -> Result<Result<Connection, Expect>, String> {
        let tuple = headers.tuple;
        let middle = tuple.proto == TCP && !starts;
        let lost_answer = middle && self.world.is_backend(tuple.src, tuple.sport, tuple.proto);
        let drop = |reason| Ok(Err(Expect::Drop(reason)));
        match hook {
            Hook::FromUplink => Ok(Err(Expect::Pass)),
            Hook::ToPod(_) => Ok(Ok(Self::plain(tuple, Target::Onward, Target::Stack))),
            Hook::ToOverlay => match self.world.place(tuple.dst) {
                Place::Remote(peer) => Ok(Ok(Self::plain(tuple, Target::OnwardOverlay(peer), Target::Stack))),
                _ => drop(DropReason::UnknownNode),
            },
            Hook::FromOverlay(Some(peer)) => match self.world.place(tuple.dst) {
                Place::Host => Ok(Err(Expect::Deliver { target: Target::Stack, tuple, decrement: false })),
                Place::Local(_) if lost_answer => drop(DropReason::NoFlow),
                Place::Local(pod) if self.may_lack_its_name(tuple) => {
                    Ok(Err(Expect::Deliver { target: Target::Pod(pod), tuple, decrement: true }))
                }
                Place::Local(pod) => Ok(Ok(Self::plain(tuple, Target::Pod(pod), Target::Overlay(peer)))),
                _ => drop(DropReason::NoEndpoint),
            },
            Hook::FromOverlay(None) => drop(DropReason::UnknownTunnelSource),
            Hook::FromPod(pod) => match frontend(&self.world, tuple.dst, tuple.dport, tuple.proto) {
                Some(frontend) if frontend.backends.is_empty() => drop(DropReason::NoBackend),
                Some(_) if middle => drop(DropReason::NoFlow),
                Some(frontend) => self.balanced(pod, &frontend, tuple, seen).map(Ok),
                None if lost_answer => drop(DropReason::NoFlow),
                None if self.may_lack_its_name(tuple) => {
                    let target = self.target(tuple.dst).expect("a Pod or the gateway");
                    Ok(Err(Expect::Deliver { target, tuple, decrement: target != Target::Stack }))
                }
                None => self.routed(pod, tuple, tuple.dst, headers, seen),
            },
        }
    }

    /// A datagram of a backend that may be an answer to a client on this node: let through, but not remembered (E12).
    fn may_lack_its_name(&self, tuple: Tuple) -> bool {
        let to_client =
            matches!(self.world.place(tuple.dst), Place::Local(_)) || self.world.gateway.contains(&tuple.dst);
        tuple.proto == UDP && to_client && self.world.is_backend(tuple.src, tuple.sport, UDP)
    }

    fn plain(tuple: Tuple, forward: Target, back: Target) -> Connection {
        Connection {
            original: tuple,
            answer: tuple.mirrored(),
            answer_scope: Scope::Cluster,
            balanced: false,
            forward,
            back,
            fin: [false; 2],
            reset: false,
            backend_gone: false,
        }
    }

    /// Where a Pod's packet to `dst` goes, without a Service.
    fn routed(
        &self,
        pod: usize,
        tuple: Tuple,
        dst: IpAddr,
        headers: &Headers,
        seen: &[u8],
    ) -> Result<Result<Connection, Expect>, String> {
        let forward = match self.target(dst) {
            Ok(target) => target,
            Err(reason) => return Ok(Err(Expect::Drop(reason))),
        };
        let mut connection = Self::plain(tuple, forward, Self::way_back(pod, forward));
        if forward == Target::Uplink {
            if !headers.is_translatable() {
                return Ok(Err(Expect::Drop(DropReason::Untranslatable)));
            }
            connection.answer_scope = Scope::Uplink;
            connection.answer =
                self.translated_source(&connection, self.world.host[family(dst)], dst, tuple.dport, seen)?;
        }
        Ok(Ok(connection))
    }

    fn target(&self, dst: IpAddr) -> Result<Target, DropReason> {
        match self.world.place(dst) {
            Place::Local(pod) => Ok(Target::Pod(pod)),
            Place::Remote(peer) => Ok(Target::Overlay(peer)),
            Place::Host => Ok(Target::Stack),
            Place::Outside => Ok(Target::Uplink),
            Place::Nobody => Err(DropReason::NoEndpoint),
            Place::ServiceCidr => Err(DropReason::NotAService),
            Place::Unroutable => Err(DropReason::Unroutable),
            Place::OwnLink => Err(DropReason::NoRoute),
            Place::Multicast => Err(DropReason::Multicast),
        }
    }

    /// How the answer reaches the Pod: the host's stack sends it out of the Pod's veth, all else is redirected.
    fn way_back(pod: usize, forward: Target) -> Target {
        if forward == Target::Stack { Target::Onward } else { Target::Pod(pod) }
    }

    /// A new connection through a Service: any of its backends will do.
    fn balanced(
        &self,
        pod: usize,
        frontend: &Frontend,
        tuple: Tuple,
        seen: &[u8],
    ) -> Result<Connection, String> {
        let Frame::Ip(after) = read(seen) else { return Err("the frame came out malformed".into()) };
        let backend = SocketAddr::new(after.tuple.dst, after.tuple.dport);
        if !frontend.backends.contains(&backend) {
            return Err(format!("{backend} is no backend of {frontend:?}"));
        }
        let forward = self.target(backend.ip()).map_err(|reason| format!("{backend}: {reason:?}"))?;
        let mut connection = Self::plain(tuple, forward, Self::way_back(pod, forward));
        connection.balanced = true;
        let hairpin = forward == Target::Pod(pod);
        let source = match forward {
            _ if hairpin => Some(self.world.gateway[family(backend.ip())]),
            Target::Uplink => Some(self.world.host[family(backend.ip())]),
            _ => None,
        };
        if forward == Target::Uplink {
            connection.answer_scope = Scope::Uplink;
        }
        connection.answer = match source {
            Some(source) => {
                self.translated_source(&connection, source, backend.ip(), backend.port(), seen)?
            }
            None => Tuple { dst: backend.ip(), dport: backend.port(), ..tuple }.mirrored(),
        };
        Ok(connection)
    }

    /// Two connections with one tuple of answers, such as one through a Service and one past it: the later one gets
    /// another source port (E9), if it has ports at all.
    fn told_apart(&self, connection: Connection, headers: &Headers) -> Result<Connection, Expect> {
        if self.taken(&connection) && !headers.is_translatable() {
            return Err(Expect::Drop(DropReason::Untranslatable));
        }
        Ok(connection)
    }

    fn taken(&self, connection: &Connection) -> bool {
        self.by_tuple.contains_key(&(connection.answer_scope, connection.answer))
    }

    /// The answer's tuple of a connection whose source is translated: the port seen, if it was a port to choose.
    fn translated_source(
        &self,
        connection: &Connection,
        source: IpAddr,
        dst: IpAddr,
        dport: u16,
        seen: &[u8],
    ) -> Result<Tuple, String> {
        let Frame::Ip(after) = read(seen) else { return Err("the frame came out malformed".into()) };
        let port = after.tuple.sport;
        // Towards the world all of the node's ports are shared with the host itself, so only the range is free.
        let kept = port == connection.original.sport && connection.answer_scope == Scope::Cluster;
        if !kept && !SNAT_PORTS.contains(&port) {
            return Err(format!("source port {port} is outside of the translation range"));
        }
        let answer =
            Tuple { src: source, dst, sport: port, dport, proto: connection.original.proto }.mirrored();
        if self.by_tuple.contains_key(&(connection.answer_scope, answer)) {
            return Err(format!("source port {port} is taken by another connection: {answer:?}"));
        }
        Ok(answer)
    }
}
