//! The programs of the object, as the loader finds them by the names in [`quilla_abi::program`].
#![allow(clippy::needless_pass_by_value, reason = "the attributes of the programs call for it")]

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, SockContext, TcContext};
use quilla_abi::DropReason;
use quilla_ebpf_core::{Headers, V4, V6};

use crate::answer::Back;
use crate::decap::Opened;
use crate::flow::Claim;
use crate::helper;
use crate::hook::{FromOverlay, FromPod, FromTunnel, FromUplink, ToOverlay, ToPod, ToUplink};
use crate::packet::Skb;
use crate::pipeline::{self, Encode, Next, Pipeline, Scalar, Stages, dispatch};
use crate::scratch::{Choice, Scratch};
use crate::selection;
use crate::socket::{self, Name};
use crate::verdict::conclude;
use crate::{decap, encap, plain};

/// What a Pod sends.
#[classifier]
#[inline(always)]
pub(crate) fn from_pod(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx.skb.skb);
    conclude::<FromPod>(skb, dispatch::<FromPod>(skb))
}

/// What the host's stack sends to a Pod.
#[classifier]
pub(crate) fn to_pod(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx.skb.skb);
    conclude::<ToPod>(skb, dispatch::<ToPod>(skb))
}

/// What other nodes send.
#[classifier]
pub(crate) fn from_overlay(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx.skb.skb);
    conclude::<FromOverlay>(skb, dispatch::<FromOverlay>(skb))
}

/// What the host's stack sends to Pods of other nodes.
#[classifier]
pub(crate) fn to_overlay(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx.skb.skb);
    conclude::<ToOverlay>(skb, dispatch::<ToOverlay>(skb))
}

/// What other nodes send in tunnels, what clients of Services send, and answers to masqueraded flows.
#[classifier]
pub(crate) fn from_uplink(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx.skb.skb);
    let code = match Opened::decode(open_tunnel(skb.raw())) {
        Ok(Opened::No) => OF_THE_WORLD,
        Ok(Opened::Yes) => from_nodes(skb.raw(), 0),
        Ok(Opened::Plain) => from_nodes(skb.raw(), 1),
        Err(reason) => conclude::<FromTunnel>(skb, Err(reason)),
    };
    if code == OF_THE_WORLD { from_world(skb.raw()) } else { code }
}

/// What Pods send to the world through the host's stack.
#[classifier]
pub(crate) fn to_uplink(ctx: TcContext) -> i32 {
    let skb = Skb::new(ctx.skb.skb);
    conclude::<ToUplink>(skb, dispatch::<ToUplink>(skb))
}

macro_rules! socket_programs {
    ($($program:ident($hook:ident) = $function:expr;)+) => {$(
        #[cgroup_sock_addr($hook)]
        pub(crate) fn $program(ctx: SockAddrContext) -> i32 {
            $function(Name::new(ctx.sock_addr))
        }
    )+};
}

socket_programs! {
    sock_connect4(connect4) = socket::forward::<socket::Ipv4>;
    sock_connect6(connect6) = socket::forward6;
    sock_sendmsg4(sendmsg4) = socket::forward::<socket::Ipv4>;
    sock_sendmsg6(sendmsg6) = socket::forward6;
    sock_recvmsg4(recvmsg4) = socket::reverse::<socket::Ipv4>;
    sock_recvmsg6(recvmsg6) = socket::reverse6;
    sock_getpeername4(getpeername4) = socket::reverse::<socket::Ipv4>;
    sock_getpeername6(getpeername6) = socket::reverse6;
}

/// A socket goes away.
#[cgroup_sock(sock_release)]
pub(crate) fn sock_release(ctx: SockContext) -> i32 {
    socket::release(ctx.sock)
}

/// Tells the loader what the clock says.
#[classifier]
pub(crate) fn clock(_ctx: TcContext) -> i32 {
    helper::now().cast_signed()
}

/// The parts of the programs that the verifier looks at once, as functions of their own: their arguments and results
/// are plain, so that it forgets at the call what it knew of the caller's values.
macro_rules! stages {
    ($($hook:ty: $v4:ident, $v6:ident, $error_v4:ident, $error_v6:ident;)+) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $v4(skb: *mut __sk_buff) -> i32 {
            pipeline::slow::<$hook, V4>(Skb::argument(skb)).encode()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $v6(skb: *mut __sk_buff) -> i32 {
            pipeline::slow::<$hook, V6>(Skb::argument(skb)).encode()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $error_v4(skb: *mut __sk_buff) -> i32 {
            pipeline::error::<$hook, V4>(Skb::new(skb)).encode()
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $error_v6(skb: *mut __sk_buff) -> i32 {
            pipeline::error::<$hook, V6>(Skb::new(skb)).encode()
        }

        impl Stages for $hook {
            #[inline(always)]
            fn error_v4(skb: Skb) -> Result<Next, DropReason> {
                Next::decode($error_v4(skb.raw()))
            }

            #[inline(always)]
            fn error_v6(skb: Skb) -> Result<Next, DropReason> {
                Next::decode($error_v6(skb.raw()))
            }

            #[inline(always)]
            fn slow_v4(skb: Skb) -> Result<Next, DropReason> {
                Next::decode($v4(skb.raw()))
            }

            #[inline(always)]
            fn slow_v6(skb: Skb) -> Result<Next, DropReason> {
                Next::decode($v6(skb.raw()))
            }
        }
    )+};
}

stages! {
    FromPod: slow_from_pod_v4, slow_from_pod_v6, error_from_pod_v4, error_from_pod_v6;
    ToPod: slow_to_pod_v4, slow_to_pod_v6, error_to_pod_v4, error_to_pod_v6;
    FromOverlay: slow_from_overlay_v4, slow_from_overlay_v6, error_from_overlay_v4, error_from_overlay_v6;
    FromTunnel: slow_from_tunnel_v4, slow_from_tunnel_v6, error_from_tunnel_v4, error_from_tunnel_v6;
    ToOverlay: slow_to_overlay_v4, slow_to_overlay_v6, error_to_overlay_v4, error_to_overlay_v6;
    FromUplink: slow_from_uplink_v4, slow_from_uplink_v6, error_from_uplink_v4, error_from_uplink_v6;
    ToUplink: slow_to_uplink_v4, slow_to_uplink_v6, error_to_uplink_v4, error_to_uplink_v6;
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open_tunnel(skb: *mut __sk_buff) -> i32 {
    decap::open(Skb::new(skb)).encode()
}

/// Each pipeline is a function of its own: together their stacks would be too deep.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn from_world(skb: *mut __sk_buff) -> i32 {
    let skb = Skb::new(skb);
    conclude::<FromUplink>(skb, dispatch::<FromUplink>(skb))
}

/// No code of the kernel's: nothing was decided.
const OF_THE_WORLD: i32 = -2;

/// What was opened goes on as if the overlay device had opened it, and so does what nodes send plainly.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn from_nodes(skb: *mut __sk_buff, plainly: u32) -> i32 {
    let skb = Skb::new(skb);
    let outcome = dispatch::<FromTunnel>(skb);
    if plainly == 0 {
        return conclude::<FromTunnel>(skb, outcome.and_then(|verdict| verdict.by_overlay(skb)));
    }
    if plain::is_of_the_world(&outcome) {
        return OF_THE_WORLD;
    }
    conclude::<FromTunnel>(skb, outcome)
}

/// See [`crate::encap::directly`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn encapsulate(skb: *mut __sk_buff, slot: u32, port: u32, length: u32) -> i32 {
    encap::encapsulate(Skb::new(skb), slot, port, length).encode()
}

/// See [`crate::encap::by_device`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn by_device(skb: *mut __sk_buff, slot: u32) -> i32 {
    encap::tell_device(Skb::new(skb), slot).encode()
}

/// See [`crate::plain::depart`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn send_plainly(skb: *mut __sk_buff, slot: u32, family: u32) -> i32 {
    plain::leave(Skb::new(skb), slot, family).encode()
}

/// See [`crate::plain::find`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_hop(skb: *mut __sk_buff, slot: u32, family: u32, sends: u32) -> i32 {
    plain::find(Skb::new(skb), slot, family, sends != 0).encode()
}

/// See [`crate::plain::is_from`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn came_from(skb: *mut __sk_buff, slot: u32, family: u32) -> i32 {
    i32::from(plain::came_from(Skb::new(skb), slot, family))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_v4(scratch: *mut Scratch<[u8; 4]>) -> i32 {
    // SAFETY: the verifier lets the caller pass null or a whole `Scratch`; the only caller passes a reference.
    pipeline::claim::<V4>(unsafe { scratch.as_mut() }).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end_v4(skb: *mut __sk_buff) -> i32 {
    pipeline::end::<V4>(Skb::new(skb)).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_v4(skb: *mut __sk_buff, reason: u32, back: u32) -> i32 {
    pipeline::answer::<V4>(Skb::new(skb), reason, back).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_v4(choice: *mut Choice<[u8; 4]>) -> i32 {
    // SAFETY: as in `claim_v4`.
    selection::choose::<V4>(unsafe { choice.as_mut() }).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn select_v4(scratch: *mut Scratch<[u8; 4]>, scope: u32) -> i32 {
    // SAFETY: as in `claim_v4`.
    pipeline::select::<V4>(unsafe { scratch.as_mut() }, scope).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn end_v6(skb: *mut __sk_buff) -> i32 {
    pipeline::end::<V6>(Skb::new(skb)).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answer_v6(skb: *mut __sk_buff, reason: u32, back: u32) -> i32 {
    pipeline::answer::<V6>(Skb::new(skb), reason, back).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_v4(skb: *mut __sk_buff, headers: *mut Headers<[u8; 4]>) -> i32 {
    // SAFETY: as in `claim_v4`.
    pipeline::parse::<V4>(Skb::new(skb), unsafe { headers.as_mut() }).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn claim_v6(scratch: *mut Scratch<[u8; 16]>) -> i32 {
    // SAFETY: as in `claim_v4`.
    pipeline::claim::<V6>(unsafe { scratch.as_mut() }).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_v6(choice: *mut Choice<[u8; 16]>) -> i32 {
    // SAFETY: as in `claim_v4`.
    selection::choose::<V6>(unsafe { choice.as_mut() }).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn select_v6(scratch: *mut Scratch<[u8; 16]>, scope: u32) -> i32 {
    // SAFETY: as in `claim_v4`.
    pipeline::select::<V6>(unsafe { scratch.as_mut() }, scope).encode()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_v6(skb: *mut __sk_buff, headers: *mut Headers<[u8; 16]>) -> i32 {
    // SAFETY: as in `claim_v4`.
    pipeline::parse::<V6>(Skb::new(skb), unsafe { headers.as_mut() }).encode()
}

impl Pipeline for V4 {
    #[inline(always)]
    fn answer(skb: Skb, reason: DropReason, back: Back) -> Result<(), DropReason> {
        <()>::decode(answer_v4(skb.raw(), u32::from(reason as u8), back as u32))
    }

    #[inline(always)]
    fn end(skb: Skb) -> Result<(), DropReason> {
        <()>::decode(end_v4(skb.raw()))
    }

    #[inline(always)]
    fn parse(skb: Skb, headers: &mut Headers<[u8; 4]>) -> Result<(), DropReason> {
        <()>::decode(parse_v4(skb.raw(), headers))
    }

    #[inline(always)]
    fn slow<H: Stages>(skb: Skb) -> Result<Next, DropReason> {
        H::slow_v4(skb)
    }

    #[inline(always)]
    fn error<H: Stages>(skb: Skb) -> Result<Next, DropReason> {
        H::error_v4(skb)
    }

    #[inline(always)]
    fn claim(scratch: &mut Scratch<[u8; 4]>) -> Result<Claim, DropReason> {
        Claim::decode(claim_v4(scratch))
    }

    #[inline(always)]
    fn select(scratch: &mut Scratch<[u8; 4]>, scope: u8) -> Result<bool, DropReason> {
        bool::decode(select_v4(scratch, scope.into()))
    }

    #[inline(always)]
    fn choose(choice: &mut Choice<[u8; 4]>) -> Result<(), DropReason> {
        <()>::decode(choose_v4(choice))
    }
}

impl Pipeline for V6 {
    #[inline(always)]
    fn answer(skb: Skb, reason: DropReason, back: Back) -> Result<(), DropReason> {
        <()>::decode(answer_v6(skb.raw(), u32::from(reason as u8), back as u32))
    }

    #[inline(always)]
    fn end(skb: Skb) -> Result<(), DropReason> {
        <()>::decode(end_v6(skb.raw()))
    }

    #[inline(always)]
    fn parse(skb: Skb, headers: &mut Headers<[u8; 16]>) -> Result<(), DropReason> {
        <()>::decode(parse_v6(skb.raw(), headers))
    }

    #[inline(always)]
    fn slow<H: Stages>(skb: Skb) -> Result<Next, DropReason> {
        H::slow_v6(skb)
    }

    #[inline(always)]
    fn error<H: Stages>(skb: Skb) -> Result<Next, DropReason> {
        H::error_v6(skb)
    }

    #[inline(always)]
    fn claim(scratch: &mut Scratch<[u8; 16]>) -> Result<Claim, DropReason> {
        Claim::decode(claim_v6(scratch))
    }

    #[inline(always)]
    fn select(scratch: &mut Scratch<[u8; 16]>, scope: u8) -> Result<bool, DropReason> {
        bool::decode(select_v6(scratch, scope.into()))
    }

    #[inline(always)]
    fn choose(choice: &mut Choice<[u8; 16]>) -> Result<(), DropReason> {
        <()>::decode(choose_v6(choice))
    }
}

unsafe extern "C" {
    /// Defined nowhere: a panic that can be reached leaves its name in the object, and the build refuses it.
    fn reachable_panic() -> !;
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: never linked into an object that is loaded.
    unsafe { reachable_panic() }
}

/// Some helpers may only be called by programs under a licence compatible with the GPL.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
