//! What must be remembered of a connection: who takes part, how far it has come, and when it was last heard of.

use crate::generate::Continuation;
use crate::model::{Hook, Target};
use crate::wire::{FIN, RST, TCP, Tuple};
use crate::world::{World, family};

/// Where a tuple is valid: inside the cluster, coming in by the uplink, or going out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    Cluster,
    Uplink,
    Node,
}

impl Scope {
    pub(crate) fn of(hook: Hook) -> Self {
        match hook {
            Hook::FromUplink => Self::Uplink,
            Hook::ToUplink(_) => Self::Node,
            _ => Self::Cluster,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Original,
    Answer,
}

#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// As the first packet arrived.
    pub original: Tuple,
    pub original_hook: Hook,
    /// As the answer arrives.
    pub answer: Tuple,
    /// Through a Service.
    pub balanced: bool,
    pub forward: Target,
    pub back: Target,
    pub life: Life,
    pub backend_gone: bool,
    /// After how many changes of the routing each direction was looked at the last time.
    pub looked: [u32; 2],
    /// Whether its last packet left without a tunnel, if it was for another node.
    pub plain: [Option<bool>; 2],
}

impl Connection {
    /// Where packets of a direction arrive.
    pub(crate) fn hook(&self, direction: Direction) -> Hook {
        match (direction, self.forward) {
            (Direction::Original, _) => self.original_hook,
            (_, Target::Pod(pod)) => Hook::FromPod(pod),
            (_, Target::Overlay(peer) | Target::OnwardOverlay(peer)) => Hook::FromOverlay(Some(peer)),
            (_, Target::Uplink | Target::OnwardUplink) => Hook::FromUplink,
            (_, Target::Stack | Target::Onward) => match self.original_hook {
                Hook::FromPod(pod) => Hook::ToPod(pod),
                Hook::ToPod(pod) => Hook::FromPod(pod),
                Hook::FromUplink => Hook::ToUplink(None),
                _ => Hook::ToOverlay,
            },
        }
    }

    /// The tuples under which its packets arrive, and where these are valid.
    pub(crate) fn keys(&self) -> [(Scope, Tuple); 2] {
        let answer_scope = Scope::of(self.hook(Direction::Answer));
        [(Scope::of(self.original_hook), self.original), (answer_scope, self.answer)]
    }

    /// Another packet of a direction.
    pub(crate) fn continuation(&self, direction: Direction) -> Continuation {
        let tuple = if direction == Direction::Original { self.original } else { self.answer };
        Continuation { hook: self.hook(direction), tuple }
    }

    /// A packet has the data path look at the way of its direction, and one that does not answer at both; whether that has
    /// changed since the last one.
    pub(crate) fn look(&mut self, world: &World, hook: Hook, direction: Direction) -> Option<&'static str> {
        let at = usize::from(direction == Direction::Answer);
        self.looked[at] = world.reroutes;
        if direction == Direction::Original {
            self.looked[1] = world.reroutes;
        }
        let (Target::Overlay(peer), tuple) = self.translated(direction) else { return None };
        let plain = world.is_native(&world.peers[peer], family(tuple.src));
        let before = self.plain[at].replace(plain);
        let changed = !hook.is_egress() && before.is_some_and(|before| before != plain);
        changed.then_some(if plain { "now without a tunnel" } else { "now in a tunnel" })
    }

    /// Whether the way of a direction may be that from before the routing to a node changed.
    pub(crate) fn is_stale(&self, world: &World, direction: Direction) -> bool {
        let (Target::Overlay(peer), _) = self.translated(direction) else { return false };
        self.looked[usize::from(direction == Direction::Answer)] < world.peers[peer].rerouted
    }

    /// Whoever is asked sees another source.
    pub(crate) fn is_renamed(&self) -> bool {
        (self.answer.dst, self.answer.dport) != (self.original.src, self.original.sport)
    }

    /// The tuple with which a packet of this direction leaves, and where it goes.
    pub(crate) fn translated(&self, direction: Direction) -> (Target, Tuple) {
        match direction {
            Direction::Original => (self.forward, self.answer.mirrored()),
            Direction::Answer => (self.back, self.original.mirrored()),
        }
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    answered: bool,
    /// By either side.
    fin: [bool; 2],
    reset: bool,
    /// The time of the last packet, in seconds.
    last: u64,
}

impl Life {
    /// Begins now; or was begun before, when it is met in its middle.
    pub(crate) fn begin(now: u64, answered: bool) -> Self {
        Self { answered, fin: [false; 2], reset: false, last: now }
    }

    /// A packet. What its sender says of its side holds, whether or not it arrives.
    pub(crate) fn hear(&mut self, now: u64, direction: Direction, tcp_flags: u8) {
        self.last = now;
        self.answered |= direction == Direction::Answer;
        self.fin[usize::from(direction == Direction::Answer)] |= tcp_flags & FIN != 0;
        self.reset |= tcp_flags & RST != 0;
    }

    /// Somebody was told that it is over.
    pub(crate) fn is_reset(&self) -> bool {
        self.reset
    }

    /// A SYN may take the tuple over (E10).
    pub(crate) fn is_over(&self) -> bool {
        self.reset || self.fin[0] || self.fin[1]
    }

    /// For longer than anybody would answer neither side was heard (E16): seconds as in docs/packet-path.md.
    pub(crate) fn is_silent(&self, proto: u8, now: u64) -> bool {
        let closed = self.reset || self.fin == [true, true];
        let limit = match (proto == TCP, self.answered) {
            (false, true) => 180,
            (true, _) if closed => 60,
            (true, _) if self.fin != [false, false] => 120,
            (true, true) => 6 * 3600,
            (_, false) => 60,
        };
        now - self.last > limit
    }
}
