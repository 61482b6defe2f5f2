//! What a sender is told about a packet that is not delivered: which message, and its fields.
//!
//! Used by the data path's `answer`, which writes the bytes. Errors are never answered with errors, nor are later
//! fragments, nor resets (RFC 1122 3.2.2, RFC 4443 2.4, RFC 9293 3.5.2).

use quilla_abi::DropReason;
use quilla_abi::flow::state;

use crate::connection::opens;
use crate::family::Family;
use crate::headers::{Headers, Message, Part};
use crate::protocol::{ETHERNET, ip, tcp};

/// The kinds of answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// TCP RST.
    Reset,
    /// ICMP port unreachable.
    PortUnreachable,
    /// ICMP fragmentation needed, `ICMPv6` packet too big.
    TooBig,
}

/// Whether packets dropped for the reason are answered at all. When they are, their headers have been read.
#[inline(always)]
pub const fn is_answered(reason: DropReason) -> bool {
    use DropReason::{BackendGone, NoBackend, NoEndpoint, NotAServicePort, TooBig};
    matches!(reason, NoBackend | NotAServicePort | BackendGone | NoEndpoint | TooBig)
}

/// The answer to a packet dropped for a reason, if one is due.
#[inline(always)]
pub fn answer<F: Family>(reason: DropReason, headers: &Headers<F::Addr>) -> Option<Answer> {
    if headers.part == Part::Later || headers.message == Message::Error {
        return None;
    }
    let is_tcp = headers.key.proto == ip::TCP;
    match reason {
        DropReason::TooBig => Some(Answer::TooBig),
        DropReason::NoBackend | DropReason::NotAServicePort if headers.key.proto == ip::UDP => {
            Some(Answer::PortUnreachable)
        }
        DropReason::NoBackend | DropReason::NotAServicePort if is_tcp => reset(headers),
        // A connection whose other end is gone for good (S45).
        DropReason::BackendGone | DropReason::NoEndpoint if is_tcp && !opens(headers.tcp) => reset(headers),
        _ => None,
    }
}

#[inline(always)]
fn reset<A>(headers: &Headers<A>) -> Option<Answer> {
    (headers.tcp & tcp::RST == 0 && headers.part == Part::Whole).then_some(Answer::Reset)
}

/// The fixed TCP header of a reset, in answer to a segment (RFC 9293 3.10.7.1); the checksum is 0.
///
/// `fixed` is the first 16 bytes of the segment's header, `payload` the length of its data.
#[inline(always)]
pub fn reset_header(fixed: [u8; 16], payload: u32) -> [u8; 20] {
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, _, flags, _, _] = fixed;
    if flags & tcp::ACK != 0 {
        return [d0, d1, s0, s1, a0, a1, a2, a3, 0, 0, 0, 0, 5 << 4, tcp::RST, 0, 0, 0, 0, 0, 0];
    }
    let length = payload + u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
    let [k0, k1, k2, k3] = u32::from_be_bytes([q0, q1, q2, q3]).wrapping_add(length).to_be_bytes();
    [d0, d1, s0, s1, 0, 0, 0, 0, k0, k1, k2, k3, 5 << 4, tcp::RST | tcp::ACK, 0, 0, 0, 0, 0, 0]
}

/// Whether a server's packet on a connection whose backend is gone becomes the reset by which the client hears of it.
/// The first one does; whoever is only connecting tries again and finds another backend (S45).
#[inline(always)]
pub fn ends<F: Family>(headers: &Headers<F::Addr>, life: u8) -> bool {
    headers.key.proto == ip::TCP
        && headers.tcp & tcp::SYN == 0
        && headers.part == Part::Whole
        && headers.transport == ETHERNET + F::HEADER
        && headers.hop_limit > 1
        && life != state::RESET
}

/// The fixed TCP header of a reset in place of a segment, from the same sender; the checksum is 0.
///
/// A client believes it at the number that it expects next, and answers one ahead of it with that number, which is then
/// reset (RFC 5961 3.2). One that is behind it ignores, and keep-alive probes are one behind (RFC 9293 3.8.4): whatever
/// carries nothing counts as one. `fixed` and `payload` are as for [`reset_header`].
#[inline(always)]
pub fn end_header(fixed: [u8; 16], payload: u32) -> [u8; 20] {
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, _, flags, _, _] = fixed;
    let ahead = u32::from(payload == 0 && flags & (tcp::FIN | tcp::RST) == 0);
    let [q0, q1, q2, q3] = u32::from_be_bytes([q0, q1, q2, q3]).wrapping_add(ahead).to_be_bytes();
    let kept = flags & tcp::ACK;
    let [a0, a1, a2, a3] = if kept == 0 { [0; 4] } else { [a0, a1, a2, a3] };
    [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, 5 << 4, tcp::RST | kept, 0, 0, 0, 0, 0, 0]
}

/// The reset for a segment of which all stays but the fixed header: with its data offset and its checksum, which is still
/// to be changed. `fixed` and `rest` are the first 16 bytes of the segment's header and the next four.
#[inline(always)]
pub fn with_options(mut reset: [u8; 20], fixed: [u8; 16], rest: [u8; 4]) -> [u8; 20] {
    reset[12] = fixed[12] & 0xf0;
    reset[16] = rest[0];
    reset[17] = rest[1];
    reset
}

/// The ICMP header of an error; the checksum is 0. `mtu` counts for [`Answer::TooBig`] only.
#[inline(always)]
pub fn error_header<F: Family>(answer: Answer, mtu: u16) -> [u8; 8] {
    let [high, low] = mtu.to_be_bytes();
    match answer {
        Answer::TooBig => [F::TOO_BIG.0, F::TOO_BIG.1, 0, 0, 0, 0, high, low],
        Answer::PortUnreachable | Answer::Reset => {
            [F::PORT_UNREACHABLE.0, F::PORT_UNREACHABLE.1, 0, 0, 0, 0, 0, 0]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};

    fn segment(flags: u8) -> [u8; 16] {
        let mut fixed = [0; 16];
        fixed[..2].copy_from_slice(&40_000_u16.to_be_bytes());
        fixed[2..4].copy_from_slice(&80_u16.to_be_bytes());
        fixed[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        fixed[8..12].copy_from_slice(&7_u32.to_be_bytes());
        fixed[13] = flags;
        fixed
    }

    fn words(header: [u8; 20]) -> (u32, u32, u8) {
        let word =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        assert_eq!(word(0), 0x0050_9c40, "ports change places");
        (word(4), word(8), header[13])
    }

    #[test]
    fn resets_are_believed_by_whoever_gets_them() {
        assert_eq!(words(reset_header(segment(tcp::SYN), 0)), (0, 0, tcp::RST | tcp::ACK));
        assert_eq!(words(reset_header(segment(tcp::SYN | tcp::FIN), 3)), (0, 4, tcp::RST | tcp::ACK));
        assert_eq!(words(reset_header(segment(tcp::ACK), 100)), (7, 0, tcp::RST));
    }

    #[test]
    fn a_reset_in_place_of_a_segment_is_believed_by_its_receiver() {
        let of = |flags, payload| {
            let header = end_header(segment(flags), payload);
            assert_eq!(header[..4], segment(flags)[..4], "ports stay");
            let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
            (word(4), word(8), header[13])
        };
        assert_eq!(of(tcp::ACK, 100), (u32::MAX, 7, tcp::RST | tcp::ACK));
        assert_eq!(of(tcp::FIN | tcp::ACK, 0), (u32::MAX, 7, tcp::RST | tcp::ACK));
        assert_eq!(of(tcp::RST, 0), (u32::MAX, 0, tcp::RST));
        assert_eq!(of(tcp::ACK, 0), (0, 7, tcp::RST | tcp::ACK), "perhaps a keep-alive");
    }

    #[test]
    fn a_reset_over_a_segment_keeps_its_length() {
        let mut fixed = segment(tcp::ACK);
        fixed[12] = 8 << 4 | 1;
        let header = with_options(end_header(fixed, 100), fixed, [1, 2, 3, 4]);
        assert_eq!(header[12..], [8 << 4, tcp::RST | tcp::ACK, 0, 0, 1, 2, 0, 0]);
        assert_eq!(header[..12], end_header(fixed, 100)[..12]);
    }

    /// S45: a client is told once, by what is certainly its connection's.
    #[test]
    fn which_packets_end_a_connection() {
        let usual = Headers { transport: 34, hop_limit: 64, ..headers(ip::TCP, tcp::ACK) };
        let ends = |headers: &Headers<[u8; 4]>, life| ends::<V4>(headers, life);
        assert!(ends(&usual, state::ESTABLISHED) && ends(&usual, state::FIN));
        assert!(!ends(&usual, state::RESET));
        for other in [
            Headers { tcp: tcp::SYN | tcp::ACK, ..usual },
            Headers { part: Part::First, ..usual },
            Headers { transport: 38, ..usual },
            Headers { hop_limit: 1, ..usual },
            Headers { transport: 34, hop_limit: 64, ..headers(ip::UDP, 0) },
        ] {
            assert!(!ends(&other, state::ESTABLISHED), "{other:?}");
        }
    }

    fn headers(proto: u8, tcp: u8) -> Headers<[u8; 4]> {
        let mut headers = Headers::default();
        headers.key.proto = proto;
        headers.tcp = tcp;
        headers
    }

    /// S20, S22, S45, S47: what has no endpoint is refused, a dead connection is reset, and nothing else is answered.
    #[test]
    fn who_is_told_what() {
        let of = |reason, headers: &Headers<[u8; 4]>| answer::<V4>(reason, headers);
        let (syn, ack, rst) = (tcp::SYN, tcp::ACK, tcp::RST | tcp::ACK);
        for reason in [DropReason::NoBackend, DropReason::NotAServicePort] {
            assert_eq!(of(reason, &headers(ip::TCP, syn)), Some(Answer::Reset));
            assert_eq!(of(reason, &headers(ip::TCP, ack)), Some(Answer::Reset));
            assert_eq!(of(reason, &headers(ip::TCP, rst)), None);
            assert_eq!(of(reason, &headers(ip::UDP, 0)), Some(Answer::PortUnreachable));
            assert_eq!(of(reason, &headers(ip::ICMP, 0)), None);
        }
        for reason in [DropReason::BackendGone, DropReason::NoEndpoint] {
            assert_eq!(of(reason, &headers(ip::TCP, ack)), Some(Answer::Reset));
            assert_eq!(of(reason, &headers(ip::TCP, syn)), None);
            assert_eq!(of(reason, &headers(ip::UDP, 0)), None);
        }
        for reason in [DropReason::NoLocalBackend, DropReason::SourceRange, DropReason::NoFlow] {
            assert_eq!(of(reason, &headers(ip::TCP, ack)), None);
            assert_eq!(of(reason, &headers(ip::UDP, 0)), None);
        }
        let later = Headers { part: Part::Later, ..headers(ip::UDP, 0) };
        assert_eq!(of(DropReason::NoBackend, &later), None);
        let error = Headers { message: Message::Error, ..headers(ip::ICMP, 0) };
        assert_eq!(of(DropReason::TooBig, &error), None);
    }

    #[test]
    fn errors_have_the_numbers_of_their_family() {
        assert_eq!(error_header::<V4>(Answer::TooBig, 1450), [3, 4, 0, 0, 0, 0, 5, 170]);
        assert_eq!(error_header::<V6>(Answer::TooBig, 1430), [2, 0, 0, 0, 0, 0, 5, 150]);
        assert_eq!(error_header::<V4>(Answer::PortUnreachable, 0)[..2], [3, 3]);
        assert_eq!(error_header::<V6>(Answer::PortUnreachable, 0)[..2], [1, 4]);
    }
}
