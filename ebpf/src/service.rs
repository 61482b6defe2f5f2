//! Services: whether a packet is for one, who may use it, and what becomes of connections whose backend is gone.

use quilla_abi::backend::Backend;
use quilla_abi::flow::{Flow, FlowKey, dep, flag as flow_flag, state};
use quilla_abi::service::scope::EXTERNAL;
use quilla_abi::service::{MAGLEV_SEED, Service, ServiceKey, flag};
use quilla_abi::socket::SocketKey;
use quilla_abi::{Address, Be16, DropReason};
use quilla_ebpf_core::Headers;
use quilla_ebpf_core::connection::{self, is_over, opens};
use quilla_ebpf_core::protocol::ip;
use quilla_ebpf_core::route::is_outside;

use crate::maps::{Maps, SourceRange};
use crate::packet::Skb;
use crate::pipeline::Pipeline;
use crate::scratch::Scratch;
use crate::{answer, flow, helper, route};

/// Takes over what an existing entry says, if the packet still belongs to it: its translation is kept, only routing
/// is computed anew.
#[inline(never)]
pub(crate) fn keep<F: Maps>(
    headers: &Headers<F::Addr>,
    existing: Option<&Flow<F::Addr>>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<bool, DropReason> {
    let Some(entry) = existing else { return Ok(false) };
    let tcp = headers.key.proto == ip::TCP;
    let opening = opens(headers.tcp);
    if flow::is_silent::<F>(&headers.key, entry, &mut scratch.other) || (opening && is_over(entry.state)) {
        return Ok(false);
    }
    if !flow::holds(&entry.deps[dep::BACKEND]) {
        // A datagram or a new connection finds another backend; what belongs to the old one ends here.
        let answers = entry.flags & flow_flag::REPLY != 0;
        let lost = if tcp { !opening } else { answers };
        if !lost {
            return Ok(false);
        }
        if !answers {
            return Err(DropReason::BackendGone);
        }
        answer::end::<F>(headers, entry, &mut scratch.ends)?;
    }
    scratch.flow = *entry;
    scratch.out = connection::rewritten::<F>(&headers.key, &entry.rewrite);
    scratch.kept = 1;
    Ok(true)
}

/// Chooses a backend if the destination is a Service in this scope. Says whether it is one.
#[inline(always)]
pub(crate) fn select<F: Pipeline>(
    headers: &Headers<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
    scope: u8,
) -> Result<bool, DropReason> {
    let key = &headers.key;
    // Frontends on loopback addresses are for the node's own sockets.
    if (key.proto != ip::TCP && key.proto != ip::UDP) || F::is_loopback(key.dst) {
        return Ok(false);
    }
    let Scratch { choice, flow, out, hash, .. } = scratch;
    choice.frontend = ServiceKey { addr: key.dst, port: key.dport, proto: key.proto, scope };
    if !read::<F>(&choice.frontend, &mut choice.service) {
        return Ok(false);
    }
    if scope == EXTERNAL {
        from_outside::<F>(&key.src)?;
    }
    let flags = choice.service.flags;
    if flags & flag::SOURCE_RANGES != 0 && !may_use::<F>(choice.service.id, &key.src) {
        return Err(DropReason::SourceRange);
    }
    let opening = opens(headers.tcp);
    choice.client = key.src;
    choice.stray = u16::from(key.proto == ip::TCP && !opening);
    choice.hash = if flags & flag::MAGLEV != 0 { F::hash(key, MAGLEV_SEED) } else { *hash };
    F::choose(choice)?;
    flow.service = choice.service.id;
    flow.backend = choice.backend;
    flow.deps[dep::BACKEND] = choice.dep;
    out.dst = choice.addr;
    out.dport = choice.port;
    if flags & flag::LEAST_CONNECTIONS != 0 && opening {
        flow.flags |= flow_flag::COUNTED;
    }
    Ok(true)
}

/// Under an address of the cluster a client would take a tuple of the inside, and is not even refused (E19).
#[inline(never)]
pub(crate) fn from_outside<F: Maps>(client: &F::Addr) -> Result<(), DropReason> {
    if is_outside(route::find::<F>(*client)) { Ok(()) } else { Err(DropReason::SpoofedAddress) }
}

/// Whether a client is in one of the ranges that the Service is for (S24).
#[inline(never)]
fn may_use<F: Maps>(service: u32, client: &F::Addr) -> bool {
    let range = SourceRange { id: service.to_be_bytes(), addr: *client };
    helper::find_prefix(F::source_ranges(), 32 + F::BITS, range).is_some()
}

/// What a packet is to an address that only Services may have, and that has none with this port (S22, E6, E8).
#[inline(never)]
pub(crate) fn nobody<F: Maps>(headers: &Headers<F::Addr>, scope: u8) -> DropReason {
    let marker = ServiceKey { addr: headers.key.dst, port: Be16::default(), proto: 0, scope };
    let has_ports = headers.key.proto == ip::TCP || headers.key.proto == ip::UDP;
    if has_ports && helper::find(F::services(), &marker).is_some() {
        DropReason::NotAServicePort
    } else {
        DropReason::NotAService
    }
}

/// The row of a Service, as one update left it. Says whether there is one.
///
/// Rows live in places that the kernel uses again at once: one that is replaced while it is read may come out as half
/// another Service's. Two readings that agree are of one row; whoever sees two changes takes what the third one says.
#[inline(never)]
pub(crate) fn read<F: Maps>(frontend: &ServiceKey<F::Addr>, service: &mut Service) -> bool {
    let Some(row) = helper::find(F::services(), frontend) else { return false };
    *service = *row;
    for _ in 0..2 {
        let Some(row) = helper::find(F::services(), frontend) else { return false };
        let last = core::mem::replace(service, *row);
        if is_same(&last, service) {
            break;
        }
    }
    true
}

/// Without a branch for each field, all of which the verifier would follow.
#[inline(always)]
fn is_same(a: &Service, b: &Service) -> bool {
    let differences =
        (a.id ^ b.id) | (a.slot_base ^ b.slot_base) | (a.slot_count ^ b.slot_count) | (a.flags ^ b.flags);
    differences == 0
}

/// Whether a packet from the middle of an unknown connection may be the answer of a backend. Sent on as it is, it
/// would carry the wrong source (E12).
#[inline(never)]
pub(crate) fn may_be_answer<F: Maps>(headers: &Headers<F::Addr>) -> bool {
    let key = &headers.key;
    let backend = Backend { addr: key.src, port: key.sport, proto: key.proto, pad: 0 };
    helper::find(F::backend_ids(), &backend).is_some()
}

/// Ties a connection that a Service led here when its socket was connected to the backend: it ends with that one, as if
/// its packets were translated here (S45). Others to the same Pod are nobody's business.
#[inline(never)]
pub(crate) fn led<F: Maps>(
    skb: Skb,
    headers: &Headers<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<(), DropReason> {
    let FlowKey { dst: addr, dport: port, proto, .. } = headers.key;
    // On its way out of its own namespace a packet still has its socket (since 4.20).
    let socket = SocketKey { cookie: helper::cookie(skb.raw().cast()), addr, port, proto, pad: 0 };
    if helper::find_recent(F::sockets(), &socket).is_none() {
        return Ok(());
    }
    let backend = Backend { addr, port, proto, pad: 0 };
    let id = helper::find(F::backend_ids(), &backend).map_or(0, |id| *id);
    // The row is cleared before the generation ends: while it is there, the generation is its own.
    let generation = flow::depend(F::BACKENDS.wrapping_add(id));
    if id != 0 && helper::row(F::backends(), id).is_some_and(|row| *row == backend) {
        scratch.flow.deps[dep::BACKEND] = generation;
        return Ok(());
    }
    // Asked again, the Service has somebody else: whoever is only connecting is refused at once.
    Err(if opens(headers.tcp) { DropReason::NoBackend } else { DropReason::BackendGone })
}

/// A connection picked up in its middle is an established one.
#[inline(always)]
pub(crate) fn pick_up<A: Address>(headers: &Headers<A>, entry: &mut Flow<A>) {
    if headers.key.proto == ip::TCP && !opens(headers.tcp) {
        entry.state = state::ESTABLISHED;
    }
}
