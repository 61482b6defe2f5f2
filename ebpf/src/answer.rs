//! Answers made in the data path: TCP resets, and ICMP errors about packets that are too large or that nobody wants.
//!
//! Called by `verdict` with a packet that was dropped and is still as it came; turns it into the answer, in its place.
//! Answers come under the address that was asked, at most [`PER_SECOND`] of a kind from each CPU.

use quilla_abi::DropReason;
use quilla_abi::flow::FlowKey;
use quilla_abi::node::UnderlayAddress;
use quilla_ebpf_core::answer::{self, Answer};
use quilla_ebpf_core::protocol::{ETHERNET, ip};
use quilla_ebpf_core::{Frame, Headers, checksum};

use crate::encap;
use crate::helper;
use crate::maps::{ANSWERS, Allowance, NODE_SLOTS};
use crate::packet::Skb;
use crate::pipeline::Pipeline;
use crate::route;
use crate::scratch::{COPY, Memory};

/// More than any client needs, less than would serve a flood (RFC 1812 4.3.2.8).
const PER_SECOND: u32 = 1_000;

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
    /// Out of the overlay device, to the node that sent the packet.
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
    spend(kind, back).ok_or(reason)?;
    // From here on every helper may fail on odd packets; then there is no answer.
    skb.turn_round()?;
    match kind {
        Answer::Reset => reset::<F>(skb, &memory.headers),
        _ => error::<F>(skb, memory, kind),
    }
}

/// Sends the answer on the way that the packet came.
#[inline(always)]
pub(crate) fn send(skb: Skb, back: Back) -> Option<i32> {
    match back {
        Back::None => None,
        Back::Pod => Some(helper::redirect_peer(skb.ifindex())),
        Back::Device => Some(helper::redirect(skb.ifindex())),
        Back::Node => Some(helper::redirect(route::config().ok()?.overlay_ifindex)),
    }
}

/// What came through a tunnel goes back through it.
#[inline(always)]
pub(crate) fn to_origin(skb: Skb, origin: &UnderlayAddress) -> Result<(), DropReason> {
    let slot = *helper::find(&NODE_SLOTS, origin).ok_or(DropReason::UnknownNode)?;
    encap::by_device(skb, slot)
}

/// Takes one answer from this CPU's allowance for its kind: a flood of refused connections leaves those whose packets
/// are too large in peace, and one from the world those of the cluster.
#[inline(always)]
fn spend(kind: Answer, back: u32) -> Option<()> {
    let outside = u32::from(back == Back::Device as u32);
    let Allowance { since, spent } =
        helper::own_row(&ANSWERS, 2 * outside + u32::from(kind == Answer::TooBig))?;
    let now = helper::now();
    if now.wrapping_sub(*since) >= helper::hz() {
        (*since, *spent) = (now, 0);
    }
    *spent += 1;
    (*spent <= PER_SECOND).then_some(())
}

/// The network header of the answer to a packet.
#[inline(always)]
fn header<F: Pipeline>(skb: Skb, key: &FlowKey<F::Addr>, proto: u8, payload: u32) -> Result<u32, DropReason> {
    let addresses = checksum::add(F::sum(&key.src), F::sum(&key.dst));
    skb.write(ETHERNET, F::preamble(proto, payload as u16, addresses))?;
    skb.write_address(ETHERNET + F::SOURCE, &key.dst)?;
    skb.write_address(ETHERNET + F::SOURCE + size_of::<F::Addr>() as u32, &key.src)?;
    let rest = u32::from((payload as u16).to_be()) + u32::from(u16::from(proto).to_be());
    Ok(checksum::add(addresses, rest))
}

/// A segment without options in front of it becomes a reset.
#[inline(always)]
fn reset<F: Pipeline>(skb: Skb, headers: &Headers<F::Addr>) -> Result<(), DropReason> {
    const LENGTH: u32 = 20;
    let at = ETHERNET + F::HEADER;
    if headers.transport != at {
        return Err(DropReason::Untranslatable);
    }
    let fixed: [u8; 16] = skb.bytes(at)?;
    let data = u32::from(fixed[12] >> 4) * 4;
    let payload = headers.end.wrapping_sub(at).wrapping_sub(data);
    helper::cut(skb.raw(), at + LENGTH)?;
    let pseudo = header::<F>(skb, &headers.key, ip::TCP, LENGTH)?;
    let mut segment = answer::reset_header(fixed, payload);
    // The sum over the pseudo header alone is what the kernel wants of a packet whose checksum it still has to finish.
    let partial = checksum::fold(pseudo);
    [segment[16], segment[17]] = partial.to_ne_bytes();
    skb.write(at, segment)?;
    // For any other packet this makes it the whole one; the kernel knows which kind it is (E7).
    let words = checksum::add(pseudo, words(&segment));
    helper::change_checksum(skb.raw(), at + 16, checksum::add(words, 0), 0)
}

/// One's complement sum of a TCP header, its checksum included.
#[inline(always)]
fn words(s: &[u8; 20]) -> u32 {
    let word = |a: usize| u32::from_ne_bytes([s[a], s[a + 1], s[a + 2], s[a + 3]]);
    let ports = checksum::add(word(0), word(4));
    checksum::add(checksum::add(ports, word(8)), checksum::add(word(12), word(16)))
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
    helper::cut(skb.raw(), ETHERNET + length)?;
    helper::make_room(skb.raw(), F::HEADER + 8)?;
    let payload = length + 8;
    let pseudo = header::<F>(skb, &headers.key, F::ICMP, payload)?;
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
