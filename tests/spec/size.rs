//! How long packets may be: what fits the way to another node or to the world, and who is told otherwise (E5).

use crate::connection::Scope;
use crate::model::{Hook, Model, Target};
use crate::wire::Headers;
use crate::world::World;

/// What fits an uplink: as the kernel makes devices.
const UPLINK: usize = 1_500;

/// Bytes from the IP header on.
fn length(headers: &Headers) -> usize {
    headers.l4 + headers.l4_len - 14
}

impl World {
    /// Whether a packet gets to other nodes in one piece.
    pub(crate) fn fits(&self, headers: &Headers) -> bool {
        self.mtu == 0 || length(headers) <= self.mtu
    }
}

impl Model {
    /// Whether a packet is longer than what gets to other nodes, and may not be cut (E5).
    fn is_too_big(&self, headers: &Headers, frame: &[u8]) -> bool {
        !self.world.fits(headers) && (headers.tuple.src.is_ipv6() || frame[14 + 6] & 0x40 != 0)
    }

    /// What fits the way of a packet that is too long for it; what leaves for the world past the host's stack is cut by nobody.
    pub(crate) fn exceeded(&self, target: Target, headers: &Headers, frame: &[u8]) -> Option<usize> {
        match target {
            Target::Overlay(_) if self.is_too_big(headers, frame) => Some(self.world.mtu),
            Target::Uplink if length(headers) > UPLINK => Some(UPLINK),
            _ => None,
        }
    }

    /// Whether a packet may be dropped for its length before it shows what was chosen for its connection.
    pub(crate) fn hides_its_choice(&self, hook: Hook, headers: &Headers, frame: &[u8]) -> bool {
        let short = length(headers) <= UPLINK && !self.is_too_big(headers, frame);
        if hook.is_egress() || short {
            return false;
        }
        self.connection(Scope::of(hook), headers.tuple).is_none_or(|(connection, _)| {
            connection.backend_gone
                || (headers.starts() && connection.life.is_over())
                || connection.life.is_silent(headers.tuple.proto, self.now)
        })
    }
}
