//! The first packet of a connection, and packets that belong to none: where they may lead, and under which names.

use std::net::{IpAddr, SocketAddr};

use quilla_abi::DropReason;

use crate::connection::{Connection, Direction, Life, Scope};
use crate::coverage;
use crate::model::{Expect, Hook, Model, Seen, Target};
use crate::service::{Frontend, Side};
use crate::wire::{Frame, Headers, TCP, Tuple, UDP, read};
use crate::world::{OVERLAY_PORT, Place, SNAT_PORTS, family};

/// A connection to remember, or what becomes of the packet without one.
type Begun = Result<Result<Connection, Expect>, String>;

#[expect(clippy::unnecessary_wraps, reason = "made to be returned")]
fn drop(reason: DropReason) -> Begun {
    Ok(Err(Expect::Drop(reason)))
}

impl Model {
    /// A packet of which nothing is known.
    pub(crate) fn unknown(&mut self, hook: Hook, headers: &Headers, frame: &[u8], seen: Seen<'_>) -> Begun {
        let tuple = headers.tuple;
        match hook {
            Hook::ToPod(_) => self.plain(hook, headers, Target::Onward, seen),
            Hook::ToOverlay => match self.world.place(tuple.dst) {
                Place::Remote(peer) => self.plain(hook, headers, Target::OnwardOverlay(peer), seen),
                _ => drop(DropReason::UnknownNode),
            },
            Hook::FromOverlay(None) => drop(DropReason::UnknownTunnelSource),
            Hook::FromOverlay(Some(_)) => self.of_other_node(hook, headers, frame, seen),
            Hook::FromPod(_) => match self.frontend(Side::Inside, tuple) {
                Some(frontend) => self.serve(hook, &frontend, headers, frame, seen),
                None if self.is_forged_overlay(tuple) => drop(DropReason::ForgedOverlay),
                None => self.of_pod(hook, headers, frame, seen),
            },
            Hook::FromUplink => match self.frontend(Side::Outside, tuple) {
                Some(frontend) => self.serve(hook, &frontend, headers, frame, seen),
                None if self.world.place(tuple.dst) == Place::ServiceAddress => {
                    let nobody = self.nobody(Side::Outside, tuple);
                    drop(if self.is_forged(tuple.src) { DropReason::SpoofedAddress } else { nobody })
                }
                None => Ok(Err(Expect::Pass)),
            },
            // What is leaving has a route.
            Hook::ToUplink(Some(_)) if self.is_outside(tuple.dst) => {
                self.plain(hook, headers, Target::OnwardUplink, seen)
            }
            Hook::ToUplink(_) => Ok(Err(Expect::Pass)),
        }
    }

    /// Node ports at `localhost` are for the node's own sockets (S36): a packet never has that address.
    fn frontend(&self, side: Side, tuple: Tuple) -> Option<Frontend> {
        if tuple.dst.is_loopback() {
            return None;
        }
        self.world.services.frontend(side, tuple.dst, tuple.dport, tuple.proto).cloned()
    }

    /// S22: another port of an address that Services have, or an address that none has.
    pub(crate) fn nobody(&self, side: Side, tuple: Tuple) -> DropReason {
        let known = self.world.services.own.contains(&(side, tuple.dst));
        if known && matches!(tuple.proto, TCP | UDP) {
            DropReason::NotAServicePort
        } else {
            DropReason::NotAService
        }
    }

    fn of_other_node(&mut self, hook: Hook, headers: &Headers, frame: &[u8], seen: Seen<'_>) -> Begun {
        let tuple = headers.tuple;
        let lost_answer = headers.is_stray() && self.world.is_backend(tuple.src, tuple.sport, tuple.proto);
        let to_a_client = matches!(tuple.proto, TCP | UDP)
            && self.world.gateway.contains(&tuple.dst)
            && SNAT_PORTS.contains(&tuple.dport);
        match self.world.place(tuple.dst) {
            _ if to_a_client => drop(DropReason::NoFlow),
            Place::Host => self.plain(hook, headers, Target::Stack, seen),
            Place::Local(_) if lost_answer => drop(DropReason::NoFlow),
            Place::Local(pod) => self.passes_on(hook, headers, Target::Pod(pod), frame, seen),
            _ => drop(DropReason::NoEndpoint),
        }
    }

    fn of_pod(&mut self, hook: Hook, headers: &Headers, frame: &[u8], seen: Seen<'_>) -> Begun {
        let tuple = headers.tuple;
        if headers.is_stray() && self.world.is_backend(tuple.src, tuple.sport, tuple.proto) {
            return drop(DropReason::NoFlow);
        }
        match self.target(tuple.dst) {
            Ok(target) => self.passes_on(hook, headers, target, frame, seen),
            Err(DropReason::NotAService) => drop(self.nobody(Side::Inside, tuple)),
            Err(reason) => drop(reason),
        }
    }

    /// Not through a Service.
    fn passes_on(
        &mut self,
        hook: Hook,
        headers: &Headers,
        target: Target,
        frame: &[u8],
        seen: Seen<'_>,
    ) -> Begun {
        let tuple = headers.tuple;
        let routed = target != Target::Stack;
        if frame[headers.ttl_at] <= 1 && routed {
            return Ok(Err(Expect::Deliver { target: Target::Stack, tuple, decrement: false }));
        }
        if self.may_lack_its_name(tuple) {
            return Ok(Err(Expect::Deliver { target, tuple, decrement: routed }));
        }
        self.plain(hook, headers, target, seen)
    }

    /// A datagram of a backend that may be an answer to a client on this node: let through, but not remembered (E12).
    fn may_lack_its_name(&self, tuple: Tuple) -> bool {
        let to_client =
            matches!(self.world.place(tuple.dst), Place::Local(_)) || self.world.gateway.contains(&tuple.dst);
        tuple.proto == UDP && to_client && self.world.is_backend(tuple.src, tuple.sport, UDP)
    }

    /// To whom the packet says, who learns its source unless it leaves the cluster.
    fn plain(&self, hook: Hook, headers: &Headers, forward: Target, seen: Seen<'_>) -> Begun {
        let dst = SocketAddr::new(headers.tuple.dst, headers.tuple.dport);
        self.connect(hook, headers, forward, dst, false, seen)
    }

    /// Overlay frames are made by nodes only (E19). What goes to such a port of a node as an answer to somebody else is
    /// none.
    fn is_forged_overlay(&self, tuple: Tuple) -> bool {
        let to_a_node = self.world.is_host(tuple.dst)
            || self.world.peers.iter().any(|peer| peer.named().any(|end| end == tuple.dst));
        to_a_node && tuple.proto == UDP && tuple.dport == OVERLAY_PORT
    }

    /// The cluster's own addresses do not come in by the uplink.
    fn is_forged(&self, src: IpAddr) -> bool {
        !self.is_outside(src)
    }

    fn is_outside(&self, address: IpAddr) -> bool {
        matches!(self.world.place(address), Place::Outside | Place::NoRoute)
    }

    /// A connection through a Service: whom its client may get, and no other.
    fn serve(
        &mut self,
        hook: Hook,
        frontend: &Frontend,
        headers: &Headers,
        frame: &[u8],
        seen: Seen<'_>,
    ) -> Begun {
        let Tuple { src, proto, .. } = headers.tuple;
        if hook == Hook::FromUplink && self.is_forged(src) {
            return drop(DropReason::SpoofedAddress);
        }
        self.meet_frontend(hook, frontend, src);
        if !frontend.ranges.is_empty() && !frontend.ranges.iter().any(|range| range.contains(&src)) {
            return drop(DropReason::SourceRange);
        }
        if frontend.backends.is_empty() {
            return drop(if frontend.hidden { DropReason::NoLocalBackend } else { DropReason::NoBackend });
        }
        let allowed = self.affinity.allowed(frontend, src, self.now);
        let stray = headers.is_stray();
        if !stray {
            self.affinity.note(frontend, src, &allowed, self.now);
        }
        let targets: Vec<_> = allowed.iter().map(|backend| self.target(backend.ip())).collect();
        if frame[headers.ttl_at] <= 1
            && let Some(expired) = Self::expired(hook, headers, &targets, frame, seen)
        {
            return Ok(Err(expired));
        }
        if stray {
            return drop(DropReason::NoFlow);
        }
        let Frame::Ip(after) = read(seen.packet) else { return Err("the frame came out malformed".into()) };
        let backend = SocketAddr::new(after.tuple.dst, after.tuple.dport);
        if !allowed.contains(&backend) {
            return Err(format!(
                "{backend} is none of {allowed:?}, seen {seen:02x?}, of {frontend:?} {proto}"
            ));
        }
        self.affinity.note(frontend, src, &[backend], self.now);
        if let Some(table) = &frontend.table {
            let key = (frontend.set.clone(), table.clone(), headers.tuple);
            let before = *self.tables.entry(key).or_insert(backend);
            if before != backend {
                return Err(format!("{backend}, but another node chooses {before} by {frontend:?}"));
            }
        }
        let forward = self.target(backend.ip()).map_err(|reason| format!("{backend}: {reason:?}"))?;
        self.connect(hook, headers, forward, backend, true, seen)
    }

    /// Counts what a client met behind an address.
    fn meet_frontend(&mut self, hook: Hook, frontend: &Frontend, client: IpAddr) {
        let side = coverage::side(if hook == Hook::FromUplink { Side::Outside } else { Side::Inside });
        let family = coverage::family(client);
        self.coverage.meet(["frontend", frontend.kind, side, family]);
        self.coverage.meet(["set", coverage::policy(frontend.set.policy()), side, frontend.found]);
        if !frontend.ranges.is_empty() {
            let allowed = frontend.ranges.iter().any(|range| range.contains(&client));
            let what = if allowed { "let in" } else { "refused" };
            self.coverage.meet(["source ranges", what, side, family]);
        }
        if frontend.backends.len() > 1 {
            let shares = if frontend.uneven { "different" } else { "equal" };
            let how = if frontend.table.is_some() { "by table" } else { "drawn" };
            self.coverage.meet(["shares", shares, how, ""]);
        }
        if frontend.affinity > 0 {
            let story = self.affinity.story(frontend, client, self.now);
            self.coverage.meet(["affinity", story, side, ""]);
        }
    }

    /// The last hop of a packet whose backend nobody saw: it ends here, unless the backend may be this node itself,
    /// which is reached whatever the TTL.
    fn expired(
        hook: Hook,
        headers: &Headers,
        targets: &[Result<Target, DropReason>],
        frame: &[u8],
        seen: Seen<'_>,
    ) -> Option<Expect> {
        if targets.iter().all(|target| *target == Ok(Target::Stack)) {
            return None;
        }
        let uplink = hook == Hook::FromUplink;
        let here = targets.contains(&Ok(Target::Stack));
        let ended = match seen.dropped {
            Some(reason) => uplink && reason == DropReason::HopLimit,
            // Behind the uplink, an endpoint that is the Service's own address and port gets the frame as it is.
            None => !uplink && seen.packet == frame,
        };
        match (ended || !here, uplink) {
            (false, _) => None,
            (true, true) => Some(Expect::Drop(DropReason::HopLimit)),
            (true, false) => {
                Some(Expect::Deliver { target: Target::Stack, tuple: headers.tuple, decrement: false })
            }
        }
    }

    pub(crate) fn target(&self, dst: IpAddr) -> Result<Target, DropReason> {
        match self.world.place(dst) {
            Place::Local(pod) => Ok(Target::Pod(pod)),
            Place::Remote(peer) => Ok(Target::Overlay(peer)),
            Place::Host => Ok(Target::Stack),
            Place::Outside => Ok(Target::Uplink),
            Place::Nobody => Err(DropReason::NoEndpoint),
            Place::ServiceAddress => Err(DropReason::NotAService),
            Place::Unroutable => Err(DropReason::Unroutable),
            Place::NoRoute => Err(DropReason::NoRoute),
            Place::Multicast => Err(DropReason::Multicast),
        }
    }

    /// How the answer reaches whoever asked.
    fn way_back(hook: Hook, forward: Target) -> Target {
        match (hook, forward) {
            // The host's stack sends it out of the Pod's veth, all else is redirected.
            (Hook::FromPod(_), Target::Stack) => Target::Onward,
            (Hook::FromPod(pod) | Hook::ToUplink(Some(pod)), _) => Target::Pod(pod),
            (Hook::FromOverlay(Some(peer)), Target::Stack) => Target::OnwardOverlay(peer),
            (Hook::FromOverlay(Some(peer)), _) => Target::Overlay(peer),
            (Hook::FromUplink, Target::Stack) => Target::OnwardUplink,
            (Hook::FromUplink, _) => Target::Uplink,
            (Hook::ToPod(_) | Hook::ToOverlay | Hook::FromOverlay(None) | Hook::ToUplink(None), _) => {
                Target::Stack
            }
        }
    }

    /// Both directions of a connection, with a source to which answers find their way.
    fn connect(
        &self,
        hook: Hook,
        headers: &Headers,
        forward: Target,
        dst: SocketAddr,
        balanced: bool,
        seen: Seen<'_>,
    ) -> Begun {
        let original = headers.tuple;
        let answer = Tuple { dst: dst.ip(), dport: dst.port(), ..original }.mirrored();
        let mut connection = Connection {
            original,
            original_hook: hook,
            answer,
            balanced,
            forward,
            back: Self::way_back(hook, forward),
            life: Life::begin(self.now, headers.is_stray()),
            backend_gone: false,
            looked: [self.world.reroutes; 2],
            plain: [None; 2],
        };
        let family = family(dst.ip());
        let to_world = matches!(forward, Target::Uplink | Target::OnwardUplink);
        let (source, lent) = match (hook, forward) {
            _ if to_world => (self.world.host[family], true),
            (Hook::FromUplink, Target::Overlay(_)) => (self.world.gateway[family], true),
            // E13: it would answer itself, past us.
            _ if balanced && dst.ip() == original.src => (self.world.gateway[family], false),
            _ => (original.src, false),
        };
        connection.answer.dst = source;
        let scope = Scope::of(connection.hook(Direction::Answer));
        // Two connections with one tuple of answers, such as one through a Service and one past it: the later one gets
        // another source port (E9), if it has ports at all.
        if lent || self.is_taken(scope, connection.answer) {
            if !headers.is_translatable() {
                return drop(DropReason::Untranslatable);
            }
            let Frame::Ip(after) = read(seen.packet) else {
                return Err("the frame came out malformed".into());
            };
            let port = after.tuple.sport;
            if !SNAT_PORTS.contains(&port) {
                return Err(format!("source port {port} is outside of the translation range"));
            }
            connection.answer.dport = port;
        }
        if self.is_taken(scope, connection.answer) {
            return Err(format!("the tuple is another connection's: {:?}", connection.answer));
        }
        Ok(Ok(connection))
    }
}
