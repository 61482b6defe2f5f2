//! The life of a connection: states, timeouts, and when an entry no longer counts.

use quilla_abi::flow::{
    Flow, FlowKey, Rewrite, UDP_NEW_TIMEOUT_SECONDS, UDP_TIMEOUT_SECONDS, action, flag, scope, state,
};

use crate::checksum;
use crate::family::Family;
use crate::protocol::{ip, tcp};

/// Whether the packet asks for a new connection.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (tcp::SYN | tcp::ACK) == tcp::SYN
}

/// Whether a SYN may take the tuple over (E10).
#[inline(always)]
pub const fn is_over(state: u8) -> bool {
    matches!(state, state::FIN | state::CLOSED | state::RESET)
}

/// State and flags of an entry after a packet of its direction; `None` when nothing changes.
///
/// A new state holds for both directions; the flags are the entry's own.
#[inline(always)]
pub fn advance(state: u8, flags: u8, tcp_flags: u8) -> Option<(u8, u8)> {
    let mut next = if state == state::NEW && flags & flag::REPLY != 0 { state::ESTABLISHED } else { state };
    let mut next_flags = flags;
    if tcp_flags & tcp::FIN != 0 && flags & flag::FIN_SEEN == 0 {
        next_flags |= flag::FIN_SEEN;
        next = match next {
            state::FIN | state::CLOSED => state::CLOSED,
            state::RESET => state::RESET,
            _ => state::FIN,
        };
    }
    if tcp_flags & tcp::RST != 0 {
        next = state::RESET;
    }
    (next != state || next_flags != flags).then_some((next, next_flags))
}

/// Whether a flow without connections of its own was silent for too long.
#[inline(always)]
pub fn timed_out(proto: u8, state: u8, last_seen: u32, now: u32, hz: u32) -> bool {
    if proto == ip::TCP {
        return false;
    }
    let limit = if state == state::NEW { UDP_NEW_TIMEOUT_SECONDS } else { UDP_TIMEOUT_SECONDS };
    now.wrapping_sub(last_seen) > limit.wrapping_mul(hz)
}

/// The tuple a packet has after the rewrite.
#[inline(always)]
pub fn rewritten<F: Family>(key: &FlowKey<F::Addr>, rewrite: &Rewrite<F::Addr>) -> FlowKey<F::Addr> {
    FlowKey { src: rewrite.src, dst: rewrite.dst, sport: rewrite.sport, dport: rewrite.dport, ..*key }
}

/// The key of the other direction's entry.
#[inline(always)]
pub fn twin_key<F: Family>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>) -> FlowKey<F::Addr> {
    let mut twin = rewritten::<F>(key, &flow.rewrite).mirrored();
    twin.scope = twin_scope(key.scope, flow.action, flow.flags);
    twin
}

/// Where answers arrive: at the uplink if the flow leaves by it under another address.
#[inline(always)]
pub const fn twin_scope(own: u8, act: u8, flags: u8) -> u8 {
    let masqueraded = flags & flag::SNAT != 0 && (act == action::UPLINK || own == scope::UPLINK);
    let is_reply = flags & flag::REPLY != 0;
    if masqueraded && !is_reply { scope::UPLINK } else { scope::CLUSTER }
}

/// Sets the new tuple and what it does to the checksums. Says whether anything changes.
#[inline(always)]
pub fn set_rewrite<F: Family>(
    rewrite: &mut Rewrite<F::Addr>,
    old: &FlowKey<F::Addr>,
    new: &FlowKey<F::Addr>,
) -> bool {
    rewrite.src = new.src;
    rewrite.dst = new.dst;
    rewrite.sport = new.sport;
    rewrite.dport = new.dport;
    let changed =
        old.src != new.src || old.dst != new.dst || old.sport != new.sport || old.dport != new.dport;
    if changed {
        let addresses = |key: &FlowKey<F::Addr>| checksum::add(F::sum(&key.src), F::sum(&key.dst));
        let ports = |key: &FlowKey<F::Addr>| u32::from(key.sport.wire()) + u32::from(key.dport.wire());
        rewrite.addr_delta = delta(addresses(old), addresses(new));
        rewrite.port_delta = delta(ports(old), ports(new));
    } else {
        rewrite.addr_delta = 0;
        rewrite.port_delta = 0;
    }
    changed
}

/// A difference of nothing is 0, so that the packet path can skip it.
#[inline(always)]
fn delta(old: u32, new: u32) -> u32 {
    if old == new { 0 } else { checksum::difference(old, new) }
}

/// Whether `entry` under the mirrored key translates answers back to exactly the tuple `original`.
#[inline(always)]
pub fn answers<F: Family>(entry: &Rewrite<F::Addr>, original: &FlowKey<F::Addr>) -> bool {
    entry.src == original.dst
        && entry.dst == original.src
        && entry.sport == original.dport
        && entry.dport == original.sport
}
