//! Answers made by the data path to packets that it drops: who is told, and what (S20, S22, S45).
//!
//! They are limited in number, so that one which is due may also be missing; one which is not due must not come.

use quilla_abi::DropReason;

use crate::model::Hook;
use crate::wire::{
    ACK, FIN, Frame, Headers, Part, RST, SYN, TCP, Tuple, UDP, ip_checksum_error, read,
    transport_checksum_error,
};

/// What the sender of a dropped packet may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Reset,
    PortUnreachable,
    TooBig,
}

impl Answer {
    /// For [`crate::coverage`].
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::PortUnreachable => "port unreachable",
            Self::TooBig => "too big",
        }
    }
}

/// The answer that is due to a packet which was dropped for a reason.
pub(crate) fn due(hook: Hook, frame: &[u8], reason: DropReason) -> Option<Answer> {
    let Frame::Ip(headers) = read(frame) else { return None };
    if hook.is_egress() || headers.is_error() {
        return None;
    }
    let resets = headers.part == Part::Whole && headers.tcp_flags & RST == 0;
    match (reason, headers.tuple.proto) {
        (DropReason::NoBackend | DropReason::NotAServicePort, TCP) if resets => Some(Answer::Reset),
        (DropReason::NoBackend | DropReason::NotAServicePort, UDP) if headers.part != Part::Later => {
            Some(Answer::PortUnreachable)
        }
        // A connection whose other end is gone for good.
        (DropReason::BackendGone | DropReason::NoEndpoint, TCP) if resets && headers.is_stray() => {
            Some(Answer::Reset)
        }
        (DropReason::TooBig, _) if headers.part != Part::Later => Some(Answer::TooBig),
        _ => None,
    }
}

/// Whether a server's packet can become the reset by which a client hears that its backend is gone (S45).
pub(crate) fn ends(headers: &Headers, frame: &[u8]) -> bool {
    let plain = if headers.tuple.src.is_ipv4() { 14 + 20 } else { 14 + 40 };
    headers.tuple.proto == TCP
        && headers.part == Part::Whole
        && headers.tcp_flags & SYN == 0
        && headers.l4 == plain
        && frame[headers.ttl_at] > 1
}

/// Whether `after` is that reset, with this tuple. The client believes its number, or asks again with the right one. A
/// `whole` packet cannot be cut: its hops, options and data stay.
pub(crate) fn check_end(
    tuple: Tuple,
    decrement: bool,
    whole: bool,
    before: &[u8],
    after: &[u8],
) -> Result<(), String> {
    let (Frame::Ip(sent), Frame::Ip(told)) = (read(before), read(after)) else {
        return Err("the reset is malformed".into());
    };
    let word =
        |frame: &[u8], at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
    let header = usize::from(before[sent.l4 + 12] >> 4) * 4;
    let empty = sent.l4_len == header && sent.tcp_flags & (FIN | RST) == 0;
    let kept = sent.tcp_flags & ACK;
    let expected = (
        tuple,
        if whole { sent.l4_len } else { 20 },
        RST | kept,
        word(before, sent.l4 + 4).wrapping_add(u32::from(empty)),
        if kept == 0 { 0 } else { word(before, sent.l4 + 8) },
        if whole { before[sent.ttl_at] } else { 64 } - u8::from(decrement),
    );
    let (sequence, acknowledged) = (word(after, told.l4 + 4), word(after, told.l4 + 8));
    let seen = (told.tuple, told.l4_len, told.tcp_flags, sequence, acknowledged, after[told.ttl_at]);
    let sums = errors(after, &told);
    let right = if whole { errors(before, &sent) } else { (0, Some(0)) };
    let rest = |frame: &[u8], headers: &Headers| frame[headers.l4 + 20..].to_vec();
    let kept = !whole || rest(before, &sent) == rest(after, &told);
    if seen == expected && sums == right && kept {
        return Ok(());
    }
    Err(format!("a wrong reset, {seen:?} for {expected:?}:\nbefore {before:02x?}\nafter {after:02x?}"))
}

/// How wrong the checksums are, of IPv4 and of the transport.
fn errors(frame: &[u8], headers: &Headers) -> (u32, Option<u32>) {
    let network = if headers.tuple.src.is_ipv4() { ip_checksum_error(frame) } else { 0 };
    (network, transport_checksum_error(frame, headers))
}

/// Whether `after` is the answer to the packet. `whole` is as for [`check_end`]; `mtu` is what a sender must keep to.
pub(crate) fn check(
    answer: Answer,
    whole: bool,
    mtu: usize,
    before: &[u8],
    after: &[u8],
) -> Result<(), String> {
    let (Frame::Ip(asked), Frame::Ip(told)) = (read(before), read(after)) else {
        return Err("the answer is malformed".into());
    };
    let differs =
        |what: &str| Err(format!("{what} of the {answer:?}:\nbefore {before:02x?}\nafter {after:02x?}"));
    if after[..6] != before[6..12] || after[6..12] != before[..6] {
        return differs("Ethernet addresses");
    }
    if (told.tuple.src, told.tuple.dst) != (asked.tuple.dst, asked.tuple.src) || after[told.ttl_at] < 32 {
        return differs("addresses or hops");
    }
    let kept = whole && answer == Answer::Reset;
    let right = if kept { transport_checksum_error(before, &asked) } else { Some(0) };
    if errors(after, &told) != (0, right) {
        return differs("checksums");
    }
    if kept && before[asked.l4 + 20..] != after[told.l4 + 20..] {
        return differs("options or data");
    }
    let right = match answer {
        Answer::Reset => is_reset(&asked, before, &told, after) && told.l4_len == left(&asked, kept),
        Answer::PortUnreachable | Answer::TooBig => {
            let v4 = told.tuple.src.is_ipv4();
            let (kind, rest) = match (answer, v4) {
                (Answer::TooBig, true) => ([3, 4], mtu),
                (Answer::TooBig, false) => ([2, 0], mtu),
                (_, true) => ([3, 3], 0),
                (_, false) => ([1, 4], 0),
            };
            let subject = &after[told.l4 + 8..told.l4 + told.l4_len];
            after[told.l4..told.l4 + 2] == kind
                && after[told.l4 + 4..told.l4 + 8] == u32::try_from(rest).expect("a length").to_be_bytes()
                && before[14..].starts_with(subject)
                && subject.len() >= (asked.l4 + 8 - 14)
        }
    };
    if right { Ok(()) } else { differs("contents") }
}

/// RFC 9293 3.10.7.1: one that whoever sent the segment believes.
fn is_reset(asked: &Headers, before: &[u8], told: &Headers, after: &[u8]) -> bool {
    let word =
        |frame: &[u8], at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("four bytes"));
    let flags = asked.tcp_flags;
    let header = usize::from(before[asked.l4 + 12] >> 4) * 4;
    let length = asked.l4_len - header + usize::from(flags & SYN != 0) + usize::from(flags & FIN != 0);
    let expected = if flags & ACK != 0 {
        (word(before, asked.l4 + 8), 0, RST)
    } else {
        let next = word(before, asked.l4 + 4).wrapping_add(u32::try_from(length).expect("a small packet"));
        (0, next, RST | ACK)
    };
    let said = (word(after, told.l4 + 4), word(after, told.l4 + 8), told.tcp_flags);
    told.tuple == asked.tuple.mirrored() && said == expected
}

/// How much of a segment is left when it becomes a reset.
fn left(asked: &Headers, whole: bool) -> usize {
    if whole { asked.l4_len } else { 20 }
}
