//! Services: which backend a new connection gets, and what becomes of connections that lost their entries.

use quilla_abi::DropReason;
use quilla_abi::backend::Backend;
use quilla_abi::config::Config;
use quilla_abi::epoch;
use quilla_abi::flow::{Flow, dep, flag, state};
use quilla_abi::service::{Service, ServiceKey, scope};
use quilla_ebpf_core::connection::{self, is_over, opens};
use quilla_ebpf_core::protocol::ip;
use quilla_ebpf_core::{Headers, service as selection};

use crate::flow;
use crate::helper;
use crate::maps::{Maps, SLOTS};
use crate::scratch::Scratch;

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
        let lost = if tcp { !opening } else { entry.flags & flag::REPLY != 0 };
        return if lost { Err(DropReason::BackendGone) } else { Ok(false) };
    }
    scratch.flow = *entry;
    scratch.out = connection::rewritten::<F>(&headers.key, &entry.rewrite);
    scratch.kept = 1;
    Ok(true)
}

/// Chooses a backend if the destination is a Service. Says whether it is one.
#[inline(never)]
pub(crate) fn select<F: Maps>(
    headers: &Headers<F::Addr>,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
) -> Result<bool, DropReason> {
    let key = &headers.key;
    if key.proto != ip::TCP && key.proto != ip::UDP {
        return Ok(false);
    }
    let frontend = ServiceKey { addr: key.dst, port: key.dport, proto: key.proto, scope: scope::INTERNAL };
    if !read::<F>(&frontend, &mut scratch.service) {
        return Ok(false);
    }
    let chosen = choose::<F>(&scratch.service, key.proto, scratch.hash);
    let (id, backend) = chosen.ok_or(DropReason::NoBackend)?;
    scratch.flow.service = scratch.service.id;
    scratch.flow.backend = id;
    scratch.flow.deps[dep::BACKEND] = backend.dep;
    scratch.out.dst = backend.row.addr;
    scratch.out.dport = backend.row.port;
    if key.proto == ip::TCP && !opens(headers.tcp) {
        restore::<F>(headers, config, scratch)?;
    }
    Ok(true)
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

/// A backend as it was read, and the generation it had before.
pub(crate) struct Chosen<A: 'static> {
    pub(crate) row: &'static Backend<A>,
    pub(crate) dep: epoch::Dep,
}

/// The backend of a Service for a hash.
#[inline(always)]
pub(crate) fn choose<F: Maps>(service: &Service, proto: u8, hash: u32) -> Option<(u32, Chosen<F::Addr>)> {
    let slot = selection::slot(service, hash)?;
    let id = *helper::row(&SLOTS, slot)?;
    if id == 0 || id >= epoch::MAX_BACKENDS {
        return None;
    }
    let dep = flow::depend(F::BACKENDS + id);
    let row = helper::row(F::backends(), id)?;
    (row.proto == proto).then_some((id, Chosen { row, dep }))
}

/// A packet from the middle of a connection to a Service: its entry was lost. The backend that its tuple selects is
/// the right one only if the answers' entry says so (E11, E12).
#[inline(never)]
fn restore<F: Maps>(
    headers: &Headers<F::Addr>,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
) -> Result<(), DropReason> {
    let mut answers = scratch.out.mirrored();
    if scratch.out.dst == headers.key.src {
        answers.dst = F::gateway(config);
    }
    let entry = flow::lookup::<F>(&answers).ok_or(DropReason::NoFlow)?;
    let ours = entry.flags & flag::REPLY != 0
        && connection::answers::<F>(&entry.rewrite, &headers.key)
        && flow::holds(&entry.deps[dep::BACKEND]);
    if !ours {
        return Err(DropReason::NoFlow);
    }
    scratch.flow.state = entry.state;
    Ok(())
}

/// Whether a packet from the middle of an unknown connection may be the answer of a backend. Sent on as it is, it
/// would carry the wrong source (E12).
#[inline(never)]
pub(crate) fn may_be_answer<F: Maps>(headers: &Headers<F::Addr>) -> bool {
    let key = &headers.key;
    let backend = Backend { addr: key.src, port: key.sport, proto: key.proto, pad: 0 };
    helper::find(F::backend_ids(), &backend).is_some()
}

/// A connection picked up in its middle is an established one.
#[inline(always)]
pub(crate) fn pick_up<A>(headers: &Headers<A>, entry: &mut Flow<A>) {
    if headers.key.proto == ip::TCP && !opens(headers.tcp) {
        entry.state = state::ESTABLISHED;
    }
}
