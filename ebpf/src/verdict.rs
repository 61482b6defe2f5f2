//! From a decision to what the kernel is told: the one place that converts, counts and traces.

use aya_ebpf::maps::PerCpuArray;
use quilla_abi::counter::{Counter, path};
use quilla_abi::flow::action;
use quilla_abi::program::SENT_MARK;
use quilla_abi::{DropReason, trace};
use quilla_ebpf_core::answer::is_answered;
use quilla_ebpf_core::{Family, Frame, V4, V6};

use crate::answer::{self, Back};
use crate::helper;
use crate::maps::{DROPS, FORWARDS};
use crate::packet::Skb;
use crate::pipeline::{Hook, Pipeline};
use crate::route;

/// Let other programs on the hook run, then the stack.
const NEXT: i32 = -1;
/// Go on, by our decision.
const OK: i32 = 0;
/// Drop.
const SHOT: i32 = 2;
/// To where a helper said.
const REDIRECT: i32 = 7;

/// How a packet leaves the program.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Untouched: not ours.
    Passed,
    /// Into a Pod from an ingress hook.
    LocalPod,
    /// On to the Pod behind this very device.
    Delivered,
    /// To another node, from an ingress hook.
    Overlay,
    /// To another node, encapsulated, out of a device that needs no more Ethernet addresses.
    Tunnel,
    /// The same with a next hop that the kernel is to find.
    TunnelUnresolved,
    /// To another node, as it is, out of a device that needs no more Ethernet addresses.
    Plain,
    /// The same by a next hop that the kernel was told already.
    PlainUnresolved,
    /// To another node, on the overlay device itself.
    HostOverlay,
    /// To the host's stack.
    Stack,
    /// To the host's stack, as if the overlay device had decapsulated it.
    StackByOverlay,
    /// Out of the uplink, masqueraded.
    Uplink,
    /// Out of the uplink on which the hook runs.
    Masqueraded,
}

/// A decision to let a packet live.
#[derive(Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) exit: Exit,
    /// Whether no established entry decided.
    pub(crate) slow: bool,
    /// The device of a redirect, else 0.
    pub(crate) ifindex: u32,
    /// The node slot of an encapsulation, else 0.
    pub(crate) node_slot: u32,
}

impl Verdict {
    #[inline(always)]
    pub(crate) fn of(exit: Exit) -> Self {
        Self { exit, slow: false, ifindex: 0, node_slot: 0 }
    }

    /// The same after the slow path.
    #[inline(always)]
    pub(crate) fn slow(self) -> Self {
        Self { slow: true, ..self }
    }

    /// The same for a packet that was decapsulated on the uplink: the stack gets it from the overlay device, as all others.
    #[inline(always)]
    pub(crate) fn by_overlay(self, skb: Skb) -> Outcome {
        if self.exit != Exit::Stack {
            return Ok(self);
        }
        skb.set_mark(SENT_MARK);
        Ok(Self { exit: Exit::StackByOverlay, ifindex: route::config()?.overlay_ifindex, ..self })
    }

    #[inline(always)]
    fn path(self) -> u32 {
        match self.exit {
            Exit::Passed => path::PASSED,
            Exit::LocalPod | Exit::Delivered => path::LOCAL_POD,
            Exit::Overlay | Exit::Tunnel | Exit::TunnelUnresolved => path::OVERLAY,
            Exit::Plain | Exit::PlainUnresolved => path::NATIVE,
            Exit::HostOverlay => path::HOST_OVERLAY,
            Exit::Stack | Exit::StackByOverlay => path::STACK,
            Exit::Uplink | Exit::Masqueraded => path::UPLINK,
        }
    }

    #[inline(always)]
    fn action(self) -> u8 {
        match self.exit {
            Exit::Passed => 0,
            Exit::LocalPod | Exit::Delivered => action::LOCAL_POD,
            Exit::Overlay
            | Exit::Tunnel
            | Exit::TunnelUnresolved
            | Exit::Plain
            | Exit::PlainUnresolved
            | Exit::HostOverlay => action::OVERLAY,
            Exit::Stack | Exit::StackByOverlay => action::STACK,
            Exit::Uplink | Exit::Masqueraded => action::UPLINK,
        }
    }

    #[inline(always)]
    fn code(self) -> i32 {
        match self.exit {
            Exit::Passed => NEXT,
            Exit::Delivered | Exit::HostOverlay | Exit::Stack | Exit::Masqueraded => OK,
            Exit::LocalPod => helper::redirect_peer(self.ifindex),
            Exit::Overlay | Exit::Tunnel | Exit::Plain => helper::redirect(self.ifindex),
            Exit::PlainUnresolved => REDIRECT,
            Exit::Uplink | Exit::TunnelUnresolved => helper::redirect_neighbour(self.ifindex),
            Exit::StackByOverlay => helper::redirect_ingress(self.ifindex),
        }
    }
}

/// What every decision comes to.
pub(crate) type Outcome = Result<Verdict, DropReason>;

/// Ends a tc program.
#[inline(always)]
pub(crate) fn conclude<H: Hook>(skb: Skb, outcome: Outcome) -> i32 {
    match outcome {
        Ok(verdict) => {
            count(&FORWARDS, verdict.path(), skb);
            if helper::tracing() {
                let slow = if verdict.slow { trace::SLOW_PATH } else { 0 };
                let word = u32::from(verdict.action()) | slow;
                skb.set_trace([word, verdict.ifindex, verdict.node_slot, verdict.path()]);
            }
            verdict.code()
        }
        Err(reason) => {
            count(&DROPS, reason as u32, skb);
            let answered = answer::<H>(skb, reason);
            if helper::tracing() {
                let (ifindex, path) =
                    if answered.is_some() { (skb.ifindex(), path::ANSWERED) } else { (0, 0) };
                skb.set_trace([u32::from(reason as u8) << 8 | trace::SLOW_PATH, ifindex, 0, path]);
            }
            answered.unwrap_or(SHOT)
        }
    }
}

/// Tells the sender, if that is due and there is a way back. The packet then is the answer.
#[inline(always)]
fn answer<H: Hook>(skb: Skb, reason: DropReason) -> Option<i32> {
    if H::BACK == Back::None || !is_answered(reason) {
        return None;
    }
    match skb.ethertype() {
        Ok(V4::ETHERTYPE) => answer_as::<H, V4>(skb, reason),
        Ok(V6::ETHERTYPE) => answer_as::<H, V6>(skb, reason),
        _ => None,
    }
}

#[inline(always)]
fn answer_as<H: Hook, F: Pipeline>(skb: Skb, reason: DropReason) -> Option<i32> {
    F::answer(skb, reason, H::BACK).ok()?;
    let code = answer::send(skb, H::BACK)?;
    count(&FORWARDS, path::ANSWERED, skb);
    Some(code)
}

#[inline(always)]
fn count(map: &'static PerCpuArray<Counter>, row: u32, skb: Skb) {
    if let Some(counter) = helper::own_row(map, row) {
        counter.packets += 1;
        counter.bytes += u64::from(skb.len());
    }
}
