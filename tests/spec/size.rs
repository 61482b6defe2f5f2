//! How long packets may be: what fits the way to another node, and who is told otherwise (E5).

use crate::connection::Scope;
use crate::model::{Hook, Model};
use crate::wire::Headers;
use crate::world::World;

impl World {
    /// Whether a packet gets to other nodes in one piece.
    pub(crate) fn fits(&self, headers: &Headers) -> bool {
        self.mtu == 0 || headers.l4 + headers.l4_len - 14 <= self.mtu
    }
}

impl Model {
    /// Whether a packet is longer than what gets to other nodes, and may not be cut (E5).
    pub(crate) fn is_too_big(&self, headers: &Headers, frame: &[u8]) -> bool {
        !self.world.fits(headers) && (headers.tuple.src.is_ipv6() || frame[14 + 6] & 0x40 != 0)
    }

    /// Whether a packet may be dropped for its length before it shows what was chosen for its connection.
    pub(crate) fn hides_its_choice(&self, hook: Hook, headers: &Headers, frame: &[u8]) -> bool {
        if hook.is_egress() || !self.is_too_big(headers, frame) {
            return false;
        }
        self.connection(Scope::of(hook), headers.tuple).is_none_or(|(connection, _)| {
            connection.backend_gone
                || (headers.starts() && connection.life.is_over())
                || connection.life.is_silent(headers.tuple.proto, self.now)
        })
    }
}
