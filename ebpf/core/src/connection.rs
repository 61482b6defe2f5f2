//! The life of a connection: states, timeouts, and when an entry no longer counts.

use quilla_abi::flow::{
    Flow, FlowKey, Rewrite, TCP_FIN_TIMEOUT_SECONDS, TCP_SHORT_TIMEOUT_SECONDS, TCP_TIMEOUT_SECONDS,
    UDP_NEW_TIMEOUT_SECONDS, UDP_TIMEOUT_SECONDS, flag, state,
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

/// Whether nothing is left to be counted of a connection. A half-closed one is still at work.
#[inline(always)]
pub const fn is_closed(state: u8) -> bool {
    matches!(state, state::CLOSED | state::RESET)
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

/// Whether a flow without connections of its own was silent for too long. Silence is counted in ticks.
#[inline(always)]
pub fn timed_out(proto: u8, state: u8, silence: u32, hz: u32) -> bool {
    proto != ip::TCP && abandoned(proto, state, silence, hz)
}

/// Whether a flow was silent for so long that another may take its tuple.
#[inline(always)]
pub fn abandoned(proto: u8, state: u8, silence: u32, hz: u32) -> bool {
    let limit = match (proto == ip::TCP, state) {
        (true, state::ESTABLISHED) => TCP_TIMEOUT_SECONDS,
        (true, state::FIN) => TCP_FIN_TIMEOUT_SECONDS,
        (true, _) => TCP_SHORT_TIMEOUT_SECONDS,
        (false, state::NEW) => UDP_NEW_TIMEOUT_SECONDS,
        (false, _) => UDP_TIMEOUT_SECONDS,
    };
    silence > limit.wrapping_mul(hz)
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
    twin.scope = flow.twin_scope;
    twin
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::V4;

    /// E10, E11: both directions close it, a reset marks it, nothing revives it but a SYN.
    #[test]
    fn states_follow_the_packets() {
        let reply = flag::REPLY;
        assert_eq!(advance(state::NEW, 0, tcp::SYN), None);
        assert_eq!(advance(state::NEW, reply, tcp::SYN | tcp::ACK), Some((state::ESTABLISHED, reply)));
        assert_eq!(advance(state::ESTABLISHED, 0, tcp::ACK), None, "nothing is written on the usual packet");
        assert_eq!(advance(state::ESTABLISHED, 0, tcp::FIN), Some((state::FIN, flag::FIN_SEEN)));
        assert_eq!(advance(state::FIN, flag::FIN_SEEN, tcp::FIN), None, "a retransmission");
        assert_eq!(advance(state::FIN, reply, tcp::FIN), Some((state::CLOSED, reply | flag::FIN_SEEN)));
        assert_eq!(advance(state::ESTABLISHED, 0, tcp::RST), Some((state::RESET, 0)));
        assert_eq!(advance(state::RESET, 0, tcp::ACK), None);
        assert!(is_over(state::CLOSED) && is_over(state::RESET) && !is_over(state::NEW));
        assert!(opens(tcp::SYN) && !opens(tcp::SYN | tcp::ACK));
    }

    #[test]
    fn silence_ends_what_has_no_end() {
        let hz = 250;
        assert!(!timed_out(ip::TCP, state::NEW, u32::MAX, hz));
        assert!(!timed_out(ip::UDP, state::NEW, UDP_NEW_TIMEOUT_SECONDS * hz, hz));
        assert!(timed_out(ip::UDP, state::NEW, UDP_NEW_TIMEOUT_SECONDS * hz + 1, hz));
        assert!(!timed_out(ip::UDP, state::ESTABLISHED, UDP_TIMEOUT_SECONDS * hz, hz));
    }

    /// E16: every tuple comes back some day.
    #[test]
    fn silence_gives_tuples_away() {
        let hz = 1000;
        for (state, seconds) in [
            (state::NEW, TCP_SHORT_TIMEOUT_SECONDS),
            (state::ESTABLISHED, TCP_TIMEOUT_SECONDS),
            (state::FIN, TCP_FIN_TIMEOUT_SECONDS),
            (state::CLOSED, TCP_SHORT_TIMEOUT_SECONDS),
            (state::RESET, TCP_SHORT_TIMEOUT_SECONDS),
        ] {
            assert!(!abandoned(ip::TCP, state, seconds * hz, hz), "{state}");
            assert!(abandoned(ip::TCP, state, seconds * hz + 1, hz), "{state}");
        }
    }

    proptest! {
        /// E7: the two differences turn the sum of the old tuple into that of the new one.
        #[test]
        fn deltas_lead_from_sum_to_sum(old: ([u8; 4], [u8; 4], u16, u16), new: ([u8; 4], [u8; 4], u16, u16)) {
            let key = |(src, dst, sport, dport): ([u8; 4], [u8; 4], u16, u16)| FlowKey {
                src,
                dst,
                sport: quilla_abi::Be16::new(sport),
                dport: quilla_abi::Be16::new(dport),
                ..FlowKey::default()
            };
            let bytes = |key: &FlowKey<[u8; 4]>| {
                let ports = [key.sport.wire().to_ne_bytes(), key.dport.wire().to_ne_bytes()].concat();
                [&key.src[..], &key.dst, &ports].concat()
            };
            let (old, new) = (key(old), key(new));
            let mut rewrite = Rewrite::default();
            prop_assert_eq!(set_rewrite::<V4>(&mut rewrite, &old, &new), old != new);
            prop_assert!(answers::<V4>(&rewrite, &new.mirrored()));
            let both = checksum::add(rewrite.addr_delta, rewrite.port_delta);
            let incremental = checksum::replace(checksum::of(&bytes(&old)), both);
            let reference = checksum::of(&bytes(&new));
            prop_assert!(incremental == reference || incremental ^ reference == 0xffff, "{incremental:x} {reference:x}");
        }
    }
}
