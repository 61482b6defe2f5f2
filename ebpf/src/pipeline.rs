//! The way of every packet: parse, look the flow up, trust it or compute it, translate, forward.
//!
//! Written once; compiled for each hook and each family. What an established packet does is in [`run`] and nowhere
//! else: one lookup in the flow table, array reads, and writes in place.

use quilla_abi::flow::{Flow, Ingress, action, flag, scope};
use quilla_abi::node::UnderlayAddress;
use quilla_abi::program::{PROBE_MARK, SENT_MARK};
use quilla_abi::{DropReason, epoch};
use quilla_ebpf_core::connection::opens;
use quilla_ebpf_core::headers::{self, Message};
use quilla_ebpf_core::protocol::{ETHERNET, ip};
use quilla_ebpf_core::{Family, Frame, Headers, V4, V6};

use crate::answer::Back;
use crate::decap::Opened;
use crate::encap::Departure;
use crate::flow::Claim;
use crate::maps::Maps;
use crate::packet::Skb;
use crate::scratch::{Choice, Memory, Scratch};
use crate::verdict::{Exit, Outcome, Verdict};
use crate::{answer, encap, flow, fragment, helper, icmp, nat, plain, service};

/// Where the slow path leads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Along the flow that now is in the scratch memory and in the table.
    Forward,
    /// On its way untouched and without a flow: not ours.
    Leave,
    /// Along that flow, as a reset for the client.
    End,
}

/// A result that crosses a function of its own as one number: 0 or more for success, a negative reason otherwise.
pub(crate) trait Scalar: Sized {
    fn number(self) -> i32;
    fn of_number(number: i32) -> Self;

    #[inline(always)]
    fn decode(code: i32) -> Result<Self, DropReason> {
        if code >= 0 {
            return Ok(Self::of_number(code));
        }
        Err(DropReason::from_number(code.wrapping_neg() as u8).unwrap_or(DropReason::Internal))
    }
}

/// The way there.
pub(crate) trait Encode {
    fn encode(self) -> i32;
}

impl<T: Scalar> Encode for Result<T, DropReason> {
    #[inline(always)]
    fn encode(self) -> i32 {
        match self {
            Ok(value) => value.number(),
            Err(reason) => -i32::from(reason as u8),
        }
    }
}

impl Scalar for () {
    fn number(self) -> i32 {
        0
    }

    fn of_number(_number: i32) -> Self {}
}

impl Scalar for bool {
    fn number(self) -> i32 {
        i32::from(self)
    }

    fn of_number(number: i32) -> Self {
        number != 0
    }
}

impl Scalar for Next {
    #[inline(always)]
    fn number(self) -> i32 {
        match self {
            Self::Forward => 0,
            Self::Leave => 1,
            Self::End => 2,
        }
    }

    #[inline(always)]
    fn of_number(number: i32) -> Self {
        match number {
            0 => Self::Forward,
            1 => Self::Leave,
            _ => Self::End,
        }
    }
}

impl Scalar for Opened {
    #[inline(always)]
    fn number(self) -> i32 {
        match self {
            Self::No => 0,
            Self::Yes => 1,
            Self::Plain => 2,
        }
    }

    #[inline(always)]
    fn of_number(number: i32) -> Self {
        match number {
            0 => Self::No,
            1 => Self::Yes,
            _ => Self::Plain,
        }
    }
}

impl Scalar for Departure {
    #[inline(always)]
    fn number(self) -> i32 {
        match self {
            Self::Device => 0,
            Self::Known(device) => (device << 1) as i32,
            Self::Unresolved(device) => (device << 1 | 1) as i32,
        }
    }

    #[inline(always)]
    fn of_number(number: i32) -> Self {
        match (number as u32 >> 1, number & 1) {
            (0, _) => Self::Device,
            (device, 0) => Self::Known(device),
            (device, _) => Self::Unresolved(device),
        }
    }
}

impl Scalar for Claim {
    #[inline(always)]
    fn number(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::Taken => 1,
        }
    }

    #[inline(always)]
    fn of_number(number: i32) -> Self {
        if number == 0 { Self::Done } else { Self::Taken }
    }
}

/// The slow paths of a hook for each family; see `entry`.
pub(crate) trait Stages: Hook {
    fn slow_v4(skb: Skb) -> Result<Next, DropReason>;
    fn slow_v6(skb: Skb) -> Result<Next, DropReason>;
    fn error_v4(skb: Skb) -> Result<Next, DropReason>;
    fn error_v6(skb: Skb) -> Result<Next, DropReason>;
}

/// The stages of a family; see `entry`.
pub(crate) trait Pipeline: Maps {
    fn answer(skb: Skb, reason: DropReason, back: Back) -> Result<(), DropReason>;
    fn end(skb: Skb) -> Result<(), DropReason>;
    fn parse(skb: Skb, headers: &mut Headers<Self::Addr>) -> Result<(), DropReason>;
    fn slow<H: Stages>(skb: Skb) -> Result<Next, DropReason>;
    fn error<H: Stages>(skb: Skb) -> Result<Next, DropReason>;
    fn claim(scratch: &mut Scratch<Self::Addr>) -> Result<Claim, DropReason>;
    fn select(scratch: &mut Scratch<Self::Addr>, scope: u8) -> Result<bool, DropReason>;
    fn choose(choice: &mut Choice<Self::Addr>) -> Result<(), DropReason>;
}

/// What distinguishes the hooks.
pub(crate) trait Hook {
    /// How senders are told about packets that were dropped.
    const BACK: Back = Back::None;
    /// Scope of the tuples seen here.
    const SCOPE: u8 = scope::CLUSTER;
    /// Whether the packet is already on its way out of the right device.
    const EGRESS: bool = false;

    /// Whether the packet can be ours at all; decided before anything is parsed.
    fn is_ours(_skb: Skb) -> bool {
        true
    }

    /// What the frame holds. A priority that a switch gave it changes nothing.
    fn ethertype(skb: Skb) -> Result<u16, DropReason> {
        skb.ethertype()
    }

    /// A frame that is not IP.
    fn foreign(skb: Skb, ethertype: u16) -> Outcome;

    /// A packet whose headers cannot be believed.
    fn malformed(reason: DropReason) -> Outcome {
        Err(reason)
    }

    /// A fragment whose ports are not known.
    fn headless<F: Pipeline>(_headers: &Headers<F::Addr>, reason: DropReason) -> Outcome {
        Self::malformed(reason)
    }

    /// Whether a look-up may find anything.
    fn concerns<F: Pipeline>(_skb: Skb, _headers: &Headers<F::Addr>) -> bool {
        true
    }

    /// The far end of the tunnel, at the hook that has one.
    fn origin(_skb: Skb, _remote: &mut UnderlayAddress) -> Result<(), DropReason> {
        Ok(())
    }

    /// Whether a packet of an established flow came from where it must (E19).
    fn admits<F: Pipeline>(skb: Skb, ingress: &Ingress, _origin: &UnderlayAddress) -> bool {
        ingress.ifindex == skb.ifindex() && ingress.mac == [0; 6]
    }

    /// Neighbour discovery and listener reports.
    fn neighbour<F: Pipeline>(skb: Skb, headers: &Headers<F::Addr>) -> Outcome;

    /// Whether an ICMP error may come from where it says.
    fn reporter<F: Pipeline>(
        _skb: Skb,
        _headers: &Headers<F::Addr>,
        _origin: &UnderlayAddress,
    ) -> Result<(), DropReason> {
        Ok(())
    }

    /// The way of an ICMP error that belongs to no flow: by its address, into `scratch.from` and `scratch.to`.
    fn relay<F: Pipeline>(
        skb: Skb,
        headers: &Headers<F::Addr>,
        scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason>;

    /// An ICMP error that may not be routed any further.
    fn lost(_origin: &UnderlayAddress) -> Result<Next, DropReason> {
        Err(DropReason::HopLimit)
    }

    /// A packet that may not be routed any further.
    fn expired() -> Outcome {
        Ok(Verdict::of(Exit::Stack))
    }

    /// Computes the flow of a packet.
    fn resolve<F: Pipeline>(
        skb: Skb,
        headers: &Headers<F::Addr>,
        origin: &UnderlayAddress,
        existing: Option<&Flow<F::Addr>>,
        scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason>;
}

/// Runs a hook on a packet of any family.
#[inline(always)]
pub(crate) fn dispatch<H: Stages>(skb: Skb) -> Outcome {
    if !H::is_ours(skb) {
        return Ok(Verdict::of(Exit::Passed));
    }
    let ethertype = match H::ethertype(skb) {
        Ok(ethertype) => ethertype,
        Err(reason) => return H::malformed(reason),
    };
    match ethertype {
        V4::ETHERTYPE => run::<H, V4>(skb),
        V6::ETHERTYPE => run::<H, V6>(skb),
        other => H::foreign(skb, other),
    }
}

#[inline(always)]
fn run<H: Stages, F: Pipeline>(skb: Skb) -> Outcome {
    let memory = memory::<F>()?;
    let parsed = match F::parse(skb, &mut memory.headers) {
        Err(DropReason::Truncated) if skb.pull()? => F::parse(skb, &mut memory.headers),
        result => result,
    };
    if let Err(reason) = parsed {
        return H::malformed(reason);
    }
    H::origin(skb, &mut memory.origin)?;
    let headers = &mut memory.headers;
    headers.key.scope = H::SCOPE;
    if !H::concerns::<F>(skb, headers) {
        return Ok(Verdict::of(Exit::Passed));
    }
    match headers.message {
        Message::Error => {
            let next = F::error::<H>(skb)?;
            return follow::<H, F>(skb, memory, next);
        }
        Message::Neighbour | Message::Listener => return H::neighbour::<F>(skb, headers),
        _ => {}
    }
    if let Err(reason) = fragment::recall::<F>(headers) {
        return H::headless::<F>(headers, reason);
    }
    let mut found = flow::lookup::<F>(&memory.headers.key);
    memory.is_new = found.is_none().into();
    let established = found.as_mut().filter(|entry| is_established::<H, F>(skb, memory, entry));
    let verdict = if let Some(entry) = established {
        flow::account::<F>(&memory.headers, entry);
        forward::<H, F>(skb, &memory.headers, entry)
    } else {
        let next = F::slow::<H>(skb)?;
        if next == Next::End {
            F::end(skb)?;
        }
        follow::<H, F>(skb, memory, next)
    }?;
    fragment::remember::<F>(&memory.headers);
    Ok(verdict)
}

/// Ends the slow path.
#[inline(always)]
fn follow<H: Hook, F: Pipeline>(skb: Skb, memory: &Memory<F::Addr>, next: Next) -> Outcome {
    match next {
        Next::Forward | Next::End => {
            forward::<H, F>(skb, &memory.headers, &memory.scratch.flow).map(Verdict::slow)
        }
        Next::Leave => Ok(Verdict::of(Exit::Passed).slow()),
    }
}

/// Whether the entry decides.
#[inline(always)]
fn is_established<H: Hook, F: Pipeline>(skb: Skb, memory: &Memory<F::Addr>, entry: &Flow<F::Addr>) -> bool {
    flow::is_current(entry)
        && H::admits::<F>(skb, &entry.ingress, &memory.origin)
        && !opens(memory.headers.tcp)
        && !flow::is_idle(memory.headers.key.proto, entry)
}

#[inline(always)]
pub(crate) fn memory<F: Pipeline>() -> Result<&'static mut Memory<F::Addr>, DropReason> {
    helper::own_row(F::memory(), 0).ok_or(DropReason::Internal)
}

/// Reads the headers.
#[inline(always)]
pub(crate) fn parse<F: Pipeline>(skb: Skb, headers: Option<&mut Headers<F::Addr>>) -> Result<(), DropReason> {
    headers::parse::<F, Skb>(&skb, headers.ok_or(DropReason::Internal)?)
}

/// Claims the tuple of the answers for the flow that is being built.
#[inline(always)]
pub(crate) fn claim<F: Pipeline>(scratch: Option<&mut Scratch<F::Addr>>) -> Result<Claim, DropReason> {
    flow::claim::<F>(&memory::<F>()?.headers, scratch.ok_or(DropReason::Internal)?)
}

/// Finds the Service that the packet is for, and a backend for the flow that is being built.
#[inline(always)]
pub(crate) fn select<F: Pipeline>(
    scratch: Option<&mut Scratch<F::Addr>>,
    scope: u32,
) -> Result<bool, DropReason> {
    service::select::<F>(&memory::<F>()?.headers, scratch.ok_or(DropReason::Internal)?, scope as u8)
}

/// The first packet of a flow, or the first after something changed: computes the flow into this CPU's memory.
#[inline(always)]
pub(crate) fn slow<H: Hook, F: Pipeline>(skb: Skb) -> Result<Next, DropReason> {
    let Memory { headers, origin, scratch, is_new, .. } = memory::<F>()?;
    scratch.clear();
    // Before any map is read: a change from here on leaves the flow stale, never wrong.
    scratch.global = flow::depend(epoch::GLOBAL);
    let existing = if *is_new == 0 { flow::lookup::<F>(&headers.key) } else { None };
    let next = H::resolve::<F>(skb, headers, origin, existing.as_deref(), scratch)?;
    Ok(if next == Next::Forward && scratch.ends != 0 { Next::End } else { next })
}

/// Whether a packet that is longer than its way allows fits it nevertheless: segments count one by one.
#[inline(always)]
fn fits<F: Pipeline>(skb: Skb, headers: &Headers<F::Addr>, mtu: u16) -> bool {
    let headers_length = match headers.key.proto {
        ip::TCP => skb
            .read(headers.transport.wrapping_add(12))
            .map_or(0, |[length]: [u8; 1]| u32::from(length >> 4) * 4),
        _ => 8,
    };
    let network = headers.transport.wrapping_sub(ETHERNET);
    let segment = skb.segment();
    segment != 0 && segment + network + headers_length <= u32::from(mtu)
}

/// Whether a packet cannot be sent in pieces: IPv4 may be fragmented unless the sender forbids it (E5), but by nobody where it
/// leaves without the stack.
#[inline(always)]
fn stays_whole<F: Pipeline>(skb: Skb, action: u8) -> bool {
    F::CHECKSUM.is_none()
        || action == action::UPLINK
        || skb.read(ETHERNET + 6).is_none_or(|[flags]: [u8; 1]| flags & 0x40 != 0)
}

/// Translates the packet and sends it where its flow leads.
#[inline(always)]
fn forward<H: Hook, F: Pipeline>(skb: Skb, headers: &Headers<F::Addr>, flow: &Flow<F::Addr>) -> Outcome {
    // On its way out of a device the packet has been routed by the stack, which counted the hop.
    let routed = flow.flags & flag::ROUTED != 0 && !H::EGRESS;
    let mut whole = true;
    if headers.length > u32::from(flow.mtu) && flow.mtu != 0 && !H::EGRESS {
        let mtu = if flow.mtu < F::LEAST_MTU { F::LEAST_MTU } else { flow.mtu };
        whole = fits::<F>(skb, headers, mtu);
        if headers.length > u32::from(mtu) && !whole && stays_whole::<F>(skb, flow.action) {
            memory::<F>()?.mtu = mtu.into();
            return Err(DropReason::TooBig);
        }
    }
    if routed && headers.hop_limit <= 1 {
        // An answer to one of our own addresses would be the stack's.
        let ours = flow.flags & (flag::REPLY | flag::SNAT) == flag::REPLY | flag::SNAT;
        return if ours { Err(DropReason::HopLimit) } else { H::expired() };
    }
    nat::translate::<F>(skb, headers, flow, routed)?;
    let (ifindex, slot) = (flow.forward.ifindex, flow.forward.node_slot);
    let mut verdict = Verdict { exit: Exit::Stack, slow: false, ifindex: 0, node_slot: 0 };
    match flow.action {
        action::LOCAL_POD if H::EGRESS => verdict.exit = Exit::Delivered,
        action::LOCAL_POD => {
            skb.address(&flow.forward)?;
            verdict.exit = Exit::LocalPod;
            verdict.ifindex = ifindex;
        }
        action::OVERLAY => {
            verdict.node_slot = slot;
            // What must be fragmented is the overlay device's.
            if flow.flags & flag::NATIVE != 0 && whole && !H::EGRESS {
                match plain::depart::<F>(skb, slot)? {
                    Departure::Known(device) => {
                        verdict.exit = Exit::Plain;
                        verdict.ifindex = device;
                        return Ok(verdict);
                    }
                    Departure::Unresolved(device) => {
                        verdict.exit = Exit::PlainUnresolved;
                        verdict.ifindex = device;
                        return Ok(verdict);
                    }
                    Departure::Device => {}
                }
            }
            // What the host's stack sends is the device's already.
            // So are segments that were measured for a way without a tunnel.
            let unmeasured = flow.flags & flag::NATIVE != 0 && skb.segment() != 0;
            let departure = if H::EGRESS && skb.mark() != PROBE_MARK || !whole || unmeasured {
                Departure::Device
            } else {
                encap::directly(skb, slot, flow.tunnel_port, headers.length)?
            };
            match departure {
                Departure::Device => {
                    encap::by_device(skb, slot)?;
                    skb.address(&flow.forward)?;
                    verdict.exit = if H::EGRESS { Exit::HostOverlay } else { Exit::Overlay };
                    verdict.ifindex = if H::EGRESS { 0 } else { ifindex };
                }
                Departure::Known(device) => {
                    verdict.exit = Exit::Tunnel;
                    verdict.ifindex = device;
                }
                Departure::Unresolved(device) => {
                    verdict.exit = Exit::TunnelUnresolved;
                    verdict.ifindex = device;
                }
            }
        }
        // The node's own answer may be leaving by another device than the one that the client asked on (E15).
        action::UPLINK if H::EGRESS && ifindex == skb.ifindex() => verdict.exit = Exit::Masqueraded,
        action::UPLINK => {
            skb.set_mark(SENT_MARK);
            verdict.exit = Exit::Uplink;
            verdict.ifindex = ifindex;
        }
        action::STACK => {}
        _ => return Err(DropReason::Internal),
    }
    Ok(verdict)
}

/// Turns a dropped packet into the answer about it.
#[inline(always)]
pub(crate) fn answer<F: Pipeline>(skb: Skb, reason: u32, back: u32) -> Result<(), DropReason> {
    let memory = memory::<F>()?;
    let reason = DropReason::from_number(reason as u8).ok_or(DropReason::Internal)?;
    answer::make::<F>(skb, memory, reason, back)?;
    if back == Back::Node as u32 { answer::to_origin(skb, &memory.origin) } else { Ok(()) }
}

/// Turns a packet that goes to the client of a backend which is gone into a reset.
#[inline(always)]
pub(crate) fn end<F: Pipeline>(skb: Skb) -> Result<(), DropReason> {
    answer::make_end::<F>(skb, &mut memory::<F>()?.headers)
}

/// An ICMP error: translates what it embeds, and computes its way into this CPU's memory.
#[inline(always)]
pub(crate) fn error<H: Hook, F: Pipeline>(skb: Skb) -> Result<Next, DropReason> {
    icmp::error::<H, F>(skb, memory::<F>()?)
}
