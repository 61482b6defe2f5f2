//! Answers made in the data path: TCP resets, and ICMP errors about packets that are too large or that nobody wants.
//!
//! Called by `verdict` with a packet that was dropped and is still as it came; turns it into the answer, in its place.
//! Answers come under the address that was asked, at most [`PER_SECOND`] of a kind from each CPU. A server's packet that
//! can no longer be delivered becomes a reset as well, but for the client.
//!
//! The kernel does not let programs cut the end off what it takes for a packet in a tunnel, which stays so when a program
//! has taken it out (`skb->encapsulation`). A reset then keeps the data, and an error is made at the packet's end.

use quilla_abi::DropReason;
use quilla_abi::flow::{Flow, FlowKey, action};
use quilla_abi::node::UnderlayAddress;
use quilla_abi::program::SENT_MARK;
use quilla_ebpf_core::answer::{self, Answer};
use quilla_ebpf_core::family::HOP_LIMIT;
use quilla_ebpf_core::protocol::{ETHERNET, ip, tcp};
use quilla_ebpf_core::{Frame, Headers, checksum};

use crate::encap;
use crate::helper;
use crate::maps::{ANSWERS, Allowance, Maps, NODE_SLOTS};
use crate::packet::Skb;
use crate::pipeline::Pipeline;
use crate::plain;
use crate::route;
use crate::scratch::{COPY, Memory};

/// More than any client needs, less than would serve a flood (RFC 1812 4.3.2.8).
const PER_SECOND: u32 = 1_000;
/// Length of a reset.
const RESET: u32 = 20;

/// The way back from a hook.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Back {
    /// There is none: the packet comes from the host's own stack.
    None,
    /// Into the Pod behind the device.
    Pod,
    /// Out of the device.
    Device,
    /// To the node that sent the packet: out of the overlay device, or of the one by which it came plainly.
    Node,
}

/// Turns the packet into its answer. Says whether there is one.
#[inline(always)]
pub(crate) fn make<F: Pipeline>(
    skb: Skb,
    memory: &mut Memory<F::Addr>,
    reason: DropReason,
    back: u32,
) -> Result<(), DropReason> {
    let kind = answer::answer::<F>(reason, &memory.headers).ok_or(reason)?;
    spend(kind, back == Back::Device as u32).ok_or(reason)?;
    // From here on every helper may fail on odd packets; then there is no answer.
    skb.turn_round()?;
    match kind {
        Answer::Reset => reset::<F>(skb, &memory.headers, Receiver::Sender).map(drop),
        _ => error::<F>(skb, memory, kind),
    }
}

/// What becomes of a server's packet on a connection that ended with its backend: the first goes on to the client as a
/// reset, so that whoever only reads hears of it. The server hears of it with its next one (S45).
#[inline(always)]
pub(crate) fn end<F: Maps>(
    headers: &Headers<F::Addr>,
    flow: &Flow<F::Addr>,
    ends: &mut u32,
) -> Result<(), DropReason> {
    if !answer::ends::<F>(headers, flow.state) {
        return Err(DropReason::BackendGone);
    }
    spend(Answer::Reset, flow.action == action::UPLINK).ok_or(DropReason::BackendGone)?;
    *ends = 1;
    Ok(())
}

/// Turns the packet into that reset, which is then translated and sent like the packet.
#[inline(always)]
pub(crate) fn make_end<F: Pipeline>(skb: Skb, headers: &mut Headers<F::Addr>) -> Result<(), DropReason> {
    if reset::<F>(skb, headers, Receiver::Same)? {
        headers.length = F::HEADER + RESET;
        headers.end = ETHERNET + headers.length;
        headers.hop_limit = HOP_LIMIT;
    }
    headers.tcp = tcp::RST;
    Ok(())
}

/// Sends the answer on the way that the packet came.
#[inline(always)]
pub(crate) fn send(skb: Skb, back: Back) -> Option<i32> {
    match back {
        Back::None => None,
        Back::Pod => Some(helper::redirect_peer(skb.ifindex())),
        Back::Device => Some(helper::redirect(skb.ifindex())),
        // It came plainly.
        Back::Node if skb.mark() != SENT_MARK => Some(helper::redirect(skb.ifindex())),
        Back::Node => Some(helper::redirect(route::config().ok()?.overlay_ifindex)),
    }
}

/// What came through a tunnel goes back through it, and what came without one is ready.
#[inline(always)]
pub(crate) fn to_origin(skb: Skb, origin: &UnderlayAddress) -> Result<(), DropReason> {
    if plain::is_plain(origin) {
        return Ok(());
    }
    let slot = *helper::find(&NODE_SLOTS, origin).ok_or(DropReason::UnknownNode)?;
    encap::by_device(skb, slot)
}

/// Takes one answer from this CPU's allowance for its kind: a flood of refused connections leaves those whose packets
/// are too large in peace, and one from the world those of the cluster.
#[inline(always)]
fn spend(kind: Answer, outside: bool) -> Option<()> {
    let Allowance { since, spent } =
        helper::own_row(&ANSWERS, 2 * u32::from(outside) + u32::from(kind == Answer::TooBig))?;
    let now = helper::now();
    if now.wrapping_sub(*since) >= helper::hz() {
        (*since, *spent) = (now, 0);
    }
    *spent += 1;
    (*spent <= PER_SECOND).then_some(())
}

/// A network header of our own; the sum that it adds to a transport checksum.
#[inline(always)]
fn header<F: Pipeline>(
    skb: Skb,
    (src, dst): (&F::Addr, &F::Addr),
    proto: u8,
    payload: u32,
) -> Result<u32, DropReason> {
    let addresses = checksum::add(F::sum(src), F::sum(dst));
    skb.write(ETHERNET, F::preamble(proto, payload as u16, addresses))?;
    skb.write_address(ETHERNET + F::SOURCE, src)?;
    skb.write_address(ETHERNET + F::SOURCE + size_of::<F::Addr>() as u32, dst)?;
    let rest = u32::from((payload as u16).to_be()) + u32::from(u16::from(proto).to_be());
    Ok(checksum::add(addresses, rest))
}

/// Whom a segment that becomes a reset is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Receiver {
    /// Who sent the segment.
    Sender,
    /// Whom the segment was for.
    Same,
}

/// A segment without options in front of it becomes a reset. Says whether it was cut to one.
#[inline(always)]
fn reset<F: Pipeline>(skb: Skb, headers: &Headers<F::Addr>, receiver: Receiver) -> Result<bool, DropReason> {
    let at = ETHERNET + F::HEADER;
    if headers.transport != at {
        return Err(DropReason::Untranslatable);
    }
    let FlowKey { src, dst, .. } = &headers.key;
    let fixed: [u8; 16] = skb.bytes(at)?;
    let length = headers.end.wrapping_sub(at);
    let payload = length.wrapping_sub(u32::from(fixed[12] >> 4) * 4);
    let (addresses, mut segment) = match receiver {
        Receiver::Sender => ((dst, src), answer::reset_header(fixed, payload)),
        Receiver::Same => ((src, dst), answer::end_header(fixed, payload)),
    };
    if helper::cut(skb.raw(), at + RESET).is_err() {
        if receiver == Receiver::Sender {
            header::<F>(skb, addresses, ip::TCP, length)?;
        }
        return overwrite(skb, at, fixed, segment).map(|()| false);
    }
    let pseudo = header::<F>(skb, addresses, ip::TCP, RESET)?;
    // The sum over the pseudo header alone is what the kernel wants of a packet whose checksum it still has to finish.
    let partial = checksum::fold(pseudo);
    [segment[16], segment[17]] = partial.to_ne_bytes();
    skb.write(at, segment)?;
    // For any other packet this makes it the whole one; the kernel knows which kind it is (E7).
    let words = checksum::add(pseudo, words(&segment));
    helper::change_checksum(skb.raw(), at + 16, checksum::add(words, 0), 0)?;
    Ok(true)
}

/// Writes a reset over a header whose options and data stay: receivers do not mind them (RFC 9293 3.5.3). The addresses may
/// have changed places, so that the pseudo header's sum is what it was.
#[inline(always)]
fn overwrite(skb: Skb, at: u32, fixed: [u8; 16], reset: [u8; 20]) -> Result<(), DropReason> {
    let rest: [u8; 4] = skb.bytes(at + 16)?;
    let new = answer::with_options(reset, fixed, rest);
    skb.write(at, new)?;
    let old = checksum::add(words_of(&fixed), u32::from_ne_bytes(rest));
    helper::change_checksum(skb.raw(), at + 16, checksum::difference(old, words(&new)), 0)
}

/// One's complement sum of a TCP header, its checksum included.
#[inline(always)]
fn words(s: &[u8; 20]) -> u32 {
    checksum::add(words_of(s), u32::from_ne_bytes([s[16], s[17], s[18], s[19]]))
}

/// That of its first 16 bytes.
#[inline(always)]
fn words_of<const N: usize>(s: &[u8; N]) -> u32 {
    let word = |a: usize| u32::from_ne_bytes([s[a], s[a + 1], s[a + 2], s[a + 3]]);
    checksum::add(checksum::add(word(0), word(4)), checksum::add(word(8), word(12)))
}

/// The packet becomes the end of an error about itself.
#[inline(always)]
fn error<F: Pipeline>(skb: Skb, memory: &mut Memory<F::Addr>, kind: Answer) -> Result<(), DropReason> {
    let Memory { headers, copy, mtu, .. } = memory;
    let length = if headers.length < COPY { headers.length } else { COPY };
    if length == 0 {
        return Err(DropReason::Truncated);
    }
    *copy = [0; COPY as usize];
    helper::copy(skb.raw(), ETHERNET, copy, length)?;
    let payload = length + 8;
    if helper::cut(skb.raw(), ETHERNET + length).is_ok() {
        helper::make_room(skb.raw(), F::HEADER + 8)?;
    } else {
        clear::<F>(skb)?;
        helper::make_room(skb.raw(), payload)?;
        helper::store(skb.raw(), ETHERNET + F::HEADER + 8, copy, length)?;
    }
    let FlowKey { src, dst, .. } = &headers.key;
    let pseudo = header::<F>(skb, (dst, src), F::ICMP, payload)?;
    let icmp = answer::error_header::<F>(kind, *mtu as u16);
    let word = |at: usize| u32::from_ne_bytes([icmp[at], icmp[at + 1], icmp[at + 2], icmp[at + 3]]);
    let fields = checksum::add(word(0), word(4));
    let mut sum = checksum::add(fields, helper::sum(copy));
    if F::ICMP_PSEUDO_HEADER {
        sum = checksum::add(sum, pseudo);
    }
    let at = ETHERNET + F::HEADER;
    skb.write(at, icmp)?;
    skb.write(at + 2, (!checksum::fold(sum)).to_ne_bytes())
}

/// Takes away all but the last bytes, as many as a network header has: a packet that cannot be cut at its end. What the
/// kernel still has to do for its checksums goes with it. Fails on what is longer than a device sends at once: its sender
/// will repeat a part of it, which is not.
#[inline(always)]
fn clear<F: Pipeline>(skb: Skb) -> Result<(), DropReason> {
    /// The kernel takes away less than 4096 bytes at once.
    const STEP: u32 = 2048;
    for _ in 0..5 {
        let rest = skb.len().wrapping_sub(ETHERNET + F::HEADER);
        helper::take_away(skb.raw(), if rest < STEP { rest } else { STEP })?;
        if rest <= STEP {
            return Ok(());
        }
    }
    Err(DropReason::Internal)
}
