//! The backend of a new connection: the one that the client used last, or one slot of the Service's range.
//!
//! Called by `service` for packets and by `socket` for sockets, as a function of its own (`entry`), so that the verifier
//! follows it once. Invariant: what is chosen was in `slots` or is a member, and its row has the right protocol.

use quilla_abi::affinity::{Affinity, AffinityKey, MemberKey};
use quilla_abi::service::{Service, flag};
use quilla_abi::{DropReason, epoch};
use quilla_ebpf_core::service as selection;

use crate::helper::{self, ANY};
use crate::maps::{AFFINITY_MEMBERS, Maps, SLOTS};
use crate::scratch::Choice;
use crate::{flow, load, service};

/// Completes a choice, or says why there is none.
#[inline(always)]
pub(crate) fn choose<F: Maps>(choice: Option<&mut Choice<F::Addr>>) -> Result<(), DropReason> {
    let choice = choice.ok_or(DropReason::Internal)?;
    let sticky = choice.service.affinity_seconds != 0;
    if sticky && recall::<F>(choice) {
        return Ok(());
    }
    let backend = pick::<F>(&choice.service, choice.hash);
    let mut found = take::<F>(choice, backend);
    // A row that was just replaced may name a backend that is gone; what has replaced it does not.
    if !found && choice.service.slot_count != 0 && service::read::<F>(&choice.frontend, &mut choice.service) {
        let backend = at(selection::slot(&choice.service, choice.hash));
        found = take::<F>(choice, backend);
    }
    if !found {
        return Err(missing(choice));
    }
    if sticky && choice.stray == 0 {
        let value = Affinity { backend: choice.backend, last_used: helper::now() };
        // A client that is not remembered is served all the same.
        let (Ok(()) | Err(_)) = helper::insert(F::affinity(), &key(choice), &value, ANY);
    }
    Ok(())
}

/// Why there is no backend. Where there should be one, the next packet will find it, and nobody is told otherwise.
#[inline(always)]
fn missing<A>(choice: &Choice<A>) -> DropReason {
    match choice.service.slot_count {
        0 if choice.service.flags & flag::DROP_WHEN_EMPTY != 0 => DropReason::NoLocalBackend,
        0 => DropReason::NoBackend,
        _ if choice.stray != 0 => DropReason::NoFlow,
        _ => DropReason::BackendGone,
    }
}

#[inline(always)]
fn key<A: Copy>(choice: &Choice<A>) -> AffinityKey<A> {
    AffinityKey { client: choice.client, service: choice.service.id }
}

/// The backend that the client used last, if it is recent enough and still among those that may be used (S18).
#[inline(never)]
fn recall<F: Maps>(choice: &mut Choice<F::Addr>) -> bool {
    let Some(last) = helper::find_recent(F::affinity(), &key(choice)) else { return false };
    let age = helper::now().wrapping_sub(last.last_used);
    let backend = last.backend;
    let member = MemberKey { service: choice.service.id, backend };
    if !selection::remembers(&choice.service, age, helper::hz())
        || helper::find(&AFFINITY_MEMBERS, &member).is_none()
        || !take::<F>(choice, backend)
    {
        return false;
    }
    if choice.stray == 0 {
        last.last_used = helper::now();
    }
    true
}

/// The backend id in a slot; 0 if there is none.
#[inline(always)]
fn at(slot: Option<u32>) -> u32 {
    slot.and_then(|slot| helper::row(&SLOTS, slot)).map_or(0, |id| *id)
}

/// One slot by the hash; of two the less busy one, where connections are counted; not a backend that just appeared,
/// while it is spared.
#[inline(never)]
fn pick<F: Maps>(service: &Service, hash: u32) -> u32 {
    let first = at(selection::slot(service, hash));
    let counts = service.flags & flag::LEAST_CONNECTIONS != 0;
    if !counts && service.slow_start_seconds == 0 {
        return first;
    }
    let second = at(selection::other_slot(service, hash));
    let swap = counts && load::open::<F>(second) < load::open::<F>(first);
    let (best, other) = if swap { (second, first) } else { (first, second) };
    if is_spared::<F>(service, best, hash) { other } else { best }
}

#[inline(always)]
fn is_spared<F: Maps>(service: &Service, backend: u32, hash: u32) -> bool {
    if service.slow_start_seconds == 0 {
        return false;
    }
    let window = service.slow_start_seconds.wrapping_mul(helper::hz());
    load::age::<F>(backend).is_some_and(|age| selection::is_spared(age, window, hash))
}

/// Reads the row of a backend, after its generation. Says whether it is one of the right protocol.
#[inline(always)]
fn take<F: Maps>(choice: &mut Choice<F::Addr>, backend: u32) -> bool {
    if backend == 0 || backend >= epoch::MAX_BACKENDS {
        return false;
    }
    choice.dep = flow::depend(F::BACKENDS.wrapping_add(backend));
    let Some(row) = helper::row(F::backends(), backend) else { return false };
    choice.backend = backend;
    choice.addr = row.addr;
    choice.port = row.port;
    row.proto == choice.frontend.proto
}
