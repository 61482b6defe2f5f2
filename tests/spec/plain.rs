//! Without a tunnel: which packets leave so for the Pods of other nodes, and which are believed that come so (E4, E19, E20).
//!
//! What becomes of a packet is the model's to say, and the same by either way; what is said here is only how it leaves, and
//! whose it is when it arrives on an uplink.

use fastrand::Rng;

use crate::connection::Scope;
use crate::coverage::{self, Coverage};
use crate::model::{Hook, Model, Target};
use crate::peer::{self, Location, Peer};
use crate::report::Subject;
use crate::rig::{OTHER_UPLINK, UPLINK};
use crate::tunnel::OWN_MAC;
use crate::way::{Departure, Way};
use crate::wire::{Frame, Headers, Part, Tuple, read};
use crate::world::{Place, World, family};

/// The Ethernet addresses, destination first, of a packet that left plainly; `None` leaves them to the kernel, which is told
/// the next hop. It sends those packets that have it look for one: at least one a second, and all while it knows none.
pub(crate) fn addressed(peer: &Peer, before: &[u8], after: &[u8]) -> Option<[[u8; 6]; 2]> {
    let by_kernel = before[..12] == after[..12];
    peer::next_hop(peer.number).filter(|_| !by_kernel).map(|hop| [hop, OWN_MAC])
}

/// Counts what goes to another node plainly, or would but for its length and its way.
pub(crate) fn meet_out(
    coverage: &mut Coverage,
    hook: Hook,
    way: Way<'_>,
    headers: &Headers,
    before: &[u8],
    after: &[u8],
) {
    let Way { world, target: Target::Overlay(peer), departure, .. } = way else { return };
    let (peer, word) = (&world.peers[peer], coverage::family(headers.tuple.src));
    if departure == Departure::Plain {
        let what = if headers.is_error() { "an error" } else { coverage::hook(hook) };
        coverage.meet(["plain", "left", word, ""]);
        coverage.meet(["plain out", what, word, ""]);
        coverage.meet(["plain out", "to", peer.location().word(), word]);
        let by_kernel = addressed(peer, before, after).is_none();
        let who = if by_kernel { "addressed by the kernel" } else { "addressed by us" };
        coverage.meet(["plain out", who, word, ""]);
    } else if world.is_native(peer, family(headers.tuple.src)) {
        let why = if world.fits(headers) { "for want of a route" } else { "to be cut" };
        coverage.meet(["plain out", "not so", why, word]);
    }
}

/// Counts what another node sent, and where it went.
pub(crate) fn meet_in(
    coverage: &mut Coverage,
    world: &World,
    peer: &Peer,
    headers: &Headers,
    plain: bool,
    to: &'static str,
) {
    let word = coverage::family(headers.tuple.src);
    let native = world.is_native(peer, family(headers.tuple.src));
    if !plain {
        if native {
            coverage.meet(["plain in", "in a tunnel although we send otherwise", word, ""]);
        }
        return;
    }
    let what = if headers.is_error() { "an error" } else { coverage::part(headers.part) };
    coverage.meet(["plain in", what, coverage::protocol(headers), word]);
    coverage.meet(["plain in", "to", to, word]);
    coverage.meet(["plain in", if native { "as we send" } else { "otherwise than we send" }, word, ""]);
}

/// How a packet that another node sends plainly arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain {
    /// Who sends the frame.
    source: [u8; 6],
    /// By which uplink it comes.
    pub ifindex: u32,
}

impl Plain {
    /// For a packet that might as well come in a tunnel; most are from whom they say.
    pub(crate) fn random(world: &World, rng: &mut Rng, hook: Hook, frame: &[u8]) -> Option<Self> {
        let Hook::FromOverlay(sender) = hook else { return None };
        let Frame::Ip(headers) = read(frame) else { return None };
        let native = sender.is_some_and(|at| world.is_native(&world.peers[at], family(headers.tuple.src)));
        if rng.u8(0..8) >= if native { 6 } else { 2 } {
            return None;
        }
        let number = sender.map_or(peer::STRANGER, |at| world.peers[at].number);
        let source = match rng.u8(0..12) {
            0 => peer::STRANGER,
            1 => world.peers[rng.usize(0..world.peers.len())].number,
            _ => number,
        };
        let Tuple { src, dst, .. } = headers.tuple;
        // What the world sends comes by one uplink alone.
        let inside = matches!(world.place(src), Place::Remote(_)) && is_for_pods(world, dst);
        let ifindex = if inside && rng.u8(0..12) == 0 { OTHER_UPLINK } else { UPLINK };
        Some(Self { source: peer::ethernet(source), ifindex })
    }

    /// The frame on the wire.
    pub(crate) fn wrap(self, frame: &[u8]) -> Vec<u8> {
        [&OWN_MAC[..], &self.source, &frame[12..]].concat()
    }
}

/// Whose a frame is that came without a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// For the uplink's programs, as ever.
    World,
    /// The index of a node, whose Pods speak.
    Node(usize),
    /// Somebody who says that.
    Liar,
}

/// Whether an address is of the Pod CIDRs of this node.
fn is_for_pods(world: &World, dst: std::net::IpAddr) -> bool {
    matches!(world.place(dst), Place::Local(_) | Place::Nobody) || world.gateway.contains(&dst)
}

/// Whether a frame may come from a node: where that is a neighbour, its Ethernet address tells. Of a family of which it has
/// no address nothing comes from it.
fn is_believed(peer: &Peer, family: usize, frame: &[u8], ifindex: u32) -> bool {
    let told = peer.location() == Location::Neighbour && ifindex == UPLINK;
    peer.names[family] && (!told || frame[6..12] == peer::ethernet(peer.number))
}

/// Whose the frame is. Errors belong to the flow that they are about, whoever reports.
pub(crate) fn arrive(model: &mut Model, frame: &[u8], ifindex: u32) -> Sender {
    let Frame::Ip(headers) = read(frame) else { return Sender::World };
    let Tuple { src, dst, .. } = headers.tuple;
    let of = family(src);
    if !is_for_pods(&model.world, dst) {
        return Sender::World;
    }
    if headers.is_error() {
        return match about(model, &headers, frame) {
            Some(at) if is_believed(&model.world.peers[at], of, frame, ifindex) => Sender::Node(at),
            _ => Sender::World,
        };
    }
    if headers.part == Part::Later
        && headers.has_ports()
        && !model.complete(Scope::Cluster, &mut headers.clone())
    {
        return Sender::World;
    }
    let (sender, kind, who) = match model.world.place(src) {
        Place::Remote(at) => {
            let peer = &model.world.peers[at];
            let who = peer.location().word();
            match is_believed(peer, of, frame, ifindex) {
                true if ifindex != UPLINK => (Sender::Node(at), "by another uplink", ""),
                true => (Sender::Node(at), "believed", who),
                false if peer.names[of] => (Sender::Liar, "from elsewhere", source(&model.world, frame)),
                false => (Sender::Liar, "without an address", who),
            }
        }
        Place::Local(_) | Place::Nobody | Place::Host => (Sender::Liar, "under an own address", ""),
        _ => (Sender::World, "of the world", ""),
    };
    model.coverage.meet(["plain in", kind, who, coverage::family(src)]);
    sender
}

/// Who sent a frame, for [`crate::coverage`].
fn source(world: &World, frame: &[u8]) -> &'static str {
    let known = world.peers.iter().any(|peer| frame[6..12] == peer::ethernet(peer.number));
    if known { "another node" } else { "a stranger" }
}

/// The node that a known flow leads to, which the error is about; not if it is on its last hop.
fn about(model: &Model, headers: &Headers, frame: &[u8]) -> Option<usize> {
    let subject = Subject::read(frame, headers).filter(|_| frame[headers.ttl_at] > 1)?;
    let (connection, direction) = model.connection(Scope::Cluster, subject.tuple.mirrored())?;
    match connection.hook(direction) {
        Hook::FromOverlay(Some(at)) if !connection.backend_gone => Some(at),
        _ => None,
    }
}
