//! The flow table: finding an entry, trusting it, and writing both directions of a new one.

use core::ptr;

use quilla_abi::epoch::{self, Dep};
use quilla_abi::flow::{Flow, FlowKey, dep, flag};
use quilla_abi::{Address, DropReason};
use quilla_ebpf_core::connection::{self, advance, opens, twin_key};
use quilla_ebpf_core::protocol::{ip, tcp};
use quilla_ebpf_core::{Headers, tunnel};

use crate::helper::{self, ANY, EXISTS, NEW_ONLY};
use crate::maps::{EPOCHS, Maps};
use crate::scratch::{Scratch, Side};
use crate::{answer, load};

/// The one lookup of an established packet.
#[inline(always)]
pub(crate) fn lookup<F: Maps>(key: &FlowKey<F::Addr>) -> Option<&'static mut Flow<F::Addr>> {
    helper::find_flow(F::flows(), key)
}

/// The present value of an epoch.
#[inline(always)]
pub(crate) fn epoch(index: u32) -> u32 {
    helper::row(&EPOCHS, index).map_or(0, |value| *value)
}

/// A dependency on the present value of an epoch.
#[inline(always)]
pub(crate) fn depend(index: u32) -> Dep {
    Dep { index, epoch: epoch(index) }
}

/// Whether what the dependency stands for is unchanged.
#[inline(always)]
pub(crate) fn holds(dep: &Dep) -> bool {
    epoch(dep.index) == dep.epoch
}

/// Whether everything the flow was computed from is unchanged.
#[inline(always)]
pub(crate) fn is_current<A: Address>(flow: &Flow<A>) -> bool {
    let [a, b, c, d] = &flow.deps;
    holds(a) && holds(b) && holds(c) && holds(d)
}

/// Whether this direction of the flow was silent for so long that only the slow path can tell what the packet is.
#[inline(always)]
pub(crate) fn is_idle<A: Address>(proto: u8, flow: &Flow<A>) -> bool {
    connection::timed_out(proto, flow.state, since(flow.last_seen), helper::hz())
}

/// Whether both directions were, so that the packet starts a new one.
#[inline(always)]
pub(crate) fn is_silent<F: Maps>(
    key: &FlowKey<F::Addr>,
    flow: &Flow<F::Addr>,
    other: &mut FlowKey<F::Addr>,
) -> bool {
    is_idle(key.proto, flow)
        && connection::timed_out(key.proto, flow.state, silence::<F>(key, flow, other), helper::hz())
}

/// Ticks since then.
#[inline(always)]
fn since(stamp: u32) -> u32 {
    helper::now().wrapping_sub(stamp)
}

/// For how many ticks neither direction was seen. Leaves the other direction's key in `other`, or one that no flow has.
#[inline(never)]
fn silence<F: Maps>(key: &FlowKey<F::Addr>, flow: &Flow<F::Addr>, other: &mut FlowKey<F::Addr>) -> u32 {
    let own = since(flow.last_seen);
    *other = twin_key::<F>(key, flow);
    match lookup::<F>(other) {
        Some(twin) if connection::answers::<F>(&twin.rewrite, key) => own.min(since(twin.last_seen)),
        _ => {
            *other = FlowKey::default();
            own
        }
    }
}

/// Counts the packet and moves the connection's state. In place: no update, and a second lookup only when the state
/// of both directions changes.
#[inline(always)]
pub(crate) fn account<F: Maps>(headers: &Headers<F::Addr>, flow: &mut Flow<F::Addr>) {
    flow.packets += 1;
    flow.bytes += u64::from(headers.length);
    flow.last_seen = helper::now();
    let Some((state, flags)) = advance(flow.state, flow.flags, headers.tcp) else { return };
    flow.flags = flags;
    if state != flow.state {
        flow.state = state;
        if let Some(twin) = lookup::<F>(&twin_key::<F>(&headers.key, flow)) {
            twin.state = state;
            end::<F>(twin);
        }
        end::<F>(flow);
    }
}

/// A connection that is closed no longer counts for its backend.
#[inline(always)]
fn end<F: Maps>(flow: &mut Flow<F::Addr>) {
    if flow.flags & flag::COUNTED != 0 && connection::is_closed(flow.state) {
        flow.flags &= !flag::COUNTED;
        load::leave::<F>(flow.backend);
    }
}

/// Fills in what follows from the two parties; translation and state are set already.
#[inline(always)]
fn connect<A: Address>(entry: &mut Flow<A>, from: &Side, to: &Side) {
    entry.ingress = from.ingress;
    entry.forward = to.forward;
    entry.action = to.action;
    entry.mtu = to.mtu;
    if entry.flags & flag::REPLY == 0 {
        entry.twin_scope = to.scope;
    }
    entry.deps[dep::SOURCE] = from.dep;
    entry.deps[dep::DESTINATION] = to.dep;
    entry.flags = (entry.flags & !flag::NATIVE) | to.native as u8;
    if from.is_routed() && to.is_routed() {
        entry.flags |= flag::ROUTED;
    } else {
        entry.flags &= !flag::ROUTED;
    }
}

/// Completes the entry of the packet's own direction.
#[inline(never)]
pub(crate) fn complete<F: Maps>(headers: &Headers<F::Addr>, scratch: &mut Scratch<F::Addr>) {
    let Scratch { flow, from, to, out, other, hash, ends, .. } = scratch;
    connect(flow, from, to);
    flow.tunnel_port = tunnel::port(*hash);
    if connection::set_rewrite::<F>(&mut flow.rewrite, &headers.key, out) {
        flow.flags |= flag::REWRITE;
    } else {
        flow.flags &= !flag::REWRITE;
    }
    flow.packets += 1;
    flow.bytes += u64::from(headers.length);
    flow.last_seen = helper::now();
    let tcp = if *ends != 0 { tcp::RST } else { headers.tcp };
    let Some((state, flags)) = advance(flow.state, flow.flags, tcp) else { return };
    flow.state = state;
    flow.flags = flags;
    // An answer that took the slow path claims nothing, and its asking side is told here.
    if scratch.kept != 0 {
        *other = twin_key::<F>(&headers.key, flow);
        if let Some(twin) = lookup::<F>(other) {
            twin.state = state;
            end::<F>(twin);
        }
        end::<F>(flow);
    }
}

/// Prepares the entry of the answers. Its key is set when the source port is known.
#[inline(never)]
fn complete_twin<F: Maps>(headers: &Headers<F::Addr>, scratch: &mut Scratch<F::Addr>) {
    let Scratch { flow, twin, from, to, twin_key, hash, .. } = scratch;
    // All that another attempt may have left and nothing here sets.
    twin.flags = 0;
    connect(twin, to, from);
    twin.tunnel_port = tunnel::port(*hash);
    // Not where the hook has its packets from, but where this one was found.
    twin.twin_scope = headers.key.scope;
    twin.deps[dep::GLOBAL] = flow.deps[dep::GLOBAL];
    twin.deps[dep::BACKEND] = flow.deps[dep::BACKEND];
    twin.backend = flow.backend;
    twin.service = flow.service;
    twin.state = next_state(headers, flow);
    // The flow itself is stamped last, when it is complete; an unstamped twin would look idle.
    twin.last_seen = helper::now();
    twin.flags |= flag::REPLY | (flow.flags & flag::SNAT);
    if connection::set_rewrite::<F>(&mut twin.rewrite, twin_key, &headers.key.mirrored()) {
        twin.flags |= flag::REWRITE;
    }
}

/// The state after the packet, which the flow itself gets when it is complete.
#[inline(always)]
fn next_state<A: Address>(headers: &Headers<A>, flow: &Flow<A>) -> u8 {
    advance(flow.state, flow.flags, headers.tcp).map_or(flow.state, |(state, _)| state)
}

/// What became of an attempt to claim the tuple of the answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is ours.
    Done,
    /// Another connection has it.
    Taken,
}

/// Claims the answers' tuple for the packet's flow, with `scratch.out` as the translated tuple.
#[inline(always)]
pub(crate) fn claim<F: Maps>(
    headers: &Headers<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Claim, DropReason> {
    scratch.twin_key = scratch.out.mirrored();
    scratch.twin_key.scope = scratch.to.scope;
    if scratch.choice.stray != 0 && !is_known::<F>(headers, scratch) {
        return Ok(Claim::Taken);
    }
    complete_twin::<F>(headers, scratch);
    if reuses(headers, scratch)
        && let Some(holder) = lookup::<F>(&scratch.twin_key)
        && connection::answers::<F>(&holder.rewrite, &headers.key)
    {
        overwrite(holder, &scratch.twin);
        return Ok(Claim::Done);
    }
    match helper::insert(F::flows(), &scratch.twin_key, &scratch.twin, NEW_ONLY) {
        Ok(()) => return Ok(Claim::Done),
        Err(EXISTS) => {}
        Err(_) => return Err(DropReason::FlowTableFull),
    }
    let Some(holder) = lookup::<F>(&scratch.twin_key) else { return Ok(Claim::Taken) };
    let ours = connection::answers::<F>(&holder.rewrite, &headers.key);
    if ours && is_tied::<F>(headers, holder, scratch) {
        if holder.flags & flag::REPLY == 0 {
            answers_tied::<F>(headers, holder, scratch)?;
            return Ok(Claim::Done);
        }
        if !holds(&holder.deps[dep::BACKEND]) {
            return Err(DropReason::BackendGone);
        }
        scratch.flow.deps[dep::BACKEND] = holder.deps[dep::BACKEND];
        scratch.twin.deps[dep::BACKEND] = holder.deps[dep::BACKEND];
    }
    if ours && (scratch.kept != 0 || scratch.choice.stray != 0) {
        remember(holder, &mut scratch.twin);
    }
    if !ours && !is_abandoned::<F>(holder, scratch) {
        return Ok(Claim::Taken);
    }
    if helper::insert(F::flows(), &scratch.twin_key, &scratch.twin, ANY).is_err() {
        return Err(DropReason::FlowTableFull);
    }
    if !ours {
        // Whoever had the tuple must not go on to speak under it.
        helper::remove(F::flows(), &scratch.other);
    }
    Ok(Claim::Done)
}

/// Whether the other direction of a connection that was picked up in its middle says that a Service led it here.
#[inline(always)]
fn is_tied<F: Maps>(headers: &Headers<F::Addr>, holder: &Flow<F::Addr>, scratch: &Scratch<F::Addr>) -> bool {
    headers.key.proto == ip::TCP
        && !opens(headers.tcp)
        && scratch.flow.deps[dep::BACKEND] == Dep::NONE
        && holder.deps[dep::BACKEND] != Dep::NONE
}

/// The server speaks, whose entry was lost: it is written again, and the client's stays as it is (S45).
#[inline(always)]
fn answers_tied<F: Maps>(
    headers: &Headers<F::Addr>,
    holder: &Flow<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<(), DropReason> {
    scratch.kept = 1;
    scratch.flow.flags |= flag::REPLY;
    scratch.flow.state = holder.state;
    scratch.flow.deps[dep::BACKEND] = holder.deps[dep::BACKEND];
    if holds(&holder.deps[dep::BACKEND]) {
        return Ok(());
    }
    answer::end::<F>(headers, &scratch.flow, &mut scratch.ends)
}

/// Whether the answers' entry knows the packet from the middle of a connection to a Service whose own entry was lost:
/// only then the backend that its tuple selects is the right one (E11, E12).
#[inline(always)]
fn is_known<F: Maps>(headers: &Headers<F::Addr>, scratch: &mut Scratch<F::Addr>) -> bool {
    let Some(entry) = lookup::<F>(&scratch.twin_key) else { return false };
    scratch.flow.state = entry.state;
    entry.flags & flag::REPLY != 0
        && connection::answers::<F>(&entry.rewrite, &headers.key)
        && holds(&entry.deps[dep::BACKEND])
}

/// What an entry that is written anew keeps of its past.
#[inline(always)]
fn remember<A: Address>(old: &Flow<A>, new: &mut Flow<A>) {
    new.packets = old.packets;
    new.bytes = old.bytes;
    new.last_seen = old.last_seen;
    new.flags |= old.flags & flag::FIN_SEEN;
}

/// Whether the tuple may be taken from its holder: for longer than anybody would answer neither side was heard.
#[inline(always)]
fn is_abandoned<F: Maps>(holder: &Flow<F::Addr>, scratch: &mut Scratch<F::Addr>) -> bool {
    let Scratch { twin_key, other, .. } = scratch;
    connection::abandoned(twin_key.proto, holder.state, silence::<F>(twin_key, holder, other), helper::hz())
}

/// Notes that the packet's connection takes the tuple of another one over.
#[inline(never)]
pub(crate) fn replace<F: Maps>(
    headers: &Headers<F::Addr>,
    entry: &Flow<F::Addr>,
    scratch: &mut Scratch<F::Addr>,
) {
    scratch.replaced = twin_key::<F>(&headers.key, entry);
    scratch.replaces = 1;
    if entry.flags & flag::COUNTED != 0 {
        scratch.uncounted = entry.backend;
    }
}

/// Late packets of a connection that was taken over must not reach the new one (E11).
#[inline(always)]
fn forget_replaced<F: Maps>(scratch: &Scratch<F::Addr>) {
    if scratch.replaces != 0 && scratch.replaced != scratch.twin_key {
        helper::remove(F::flows(), &scratch.replaced);
    }
}

/// Forgets a connection that is over and whose tuple goes to one that needs no entries, its answers included: what comes late
/// for it must not reach the new one (E11), and its translated tuple is free again.
#[inline(always)]
pub(crate) fn forget<F: Maps>(key: &FlowKey<F::Addr>, scratch: &Scratch<F::Addr>) {
    helper::remove(F::flows(), key);
    let holds = |answers: &mut Flow<F::Addr>| connection::answers::<F>(&answers.rewrite, key);
    if scratch.replaces != 0 && lookup::<F>(&scratch.replaced).is_some_and(holds) {
        helper::remove(F::flows(), &scratch.replaced);
    }
}

/// Whether a connection opens under the tuple of one that is over. Its entries are written in place, which is cheaper than
/// to have them replaced: only late packets of the old connection could see a mixture, and nobody waits for those.
#[inline(always)]
fn reuses<A: Address>(headers: &Headers<A>, scratch: &Scratch<A>) -> bool {
    scratch.replaces != 0 && opens(headers.tcp)
}

/// Writes an entry in place, word by word: the compiler would read all of it first, onto a stack that has no room for it.
#[inline(always)]
fn overwrite<A: Address>(entry: &mut Flow<A>, new: &Flow<A>) {
    let (to, from) = (ptr::from_mut(entry).cast::<u64>(), ptr::from_ref(new).cast::<u64>());
    for word in 0..size_of::<Flow<A>>() / size_of::<u64>() {
        // SAFETY: both are whole entries, made of integers without padding and aligned like a word.
        unsafe { ptr::write_volatile(to.add(word), ptr::read_volatile(from.add(word))) };
    }
}

/// Writes the packet's own entry. Says whether there was room.
#[inline(always)]
fn write<F: Maps>(headers: &Headers<F::Addr>, scratch: &Scratch<F::Addr>) -> bool {
    if reuses(headers, scratch)
        && let Some(entry) = lookup::<F>(&headers.key)
    {
        overwrite(entry, &scratch.flow);
        return true;
    }
    helper::insert(F::flows(), &headers.key, &scratch.flow, ANY).is_ok()
}

/// Writes the packet's own entry; on failure the answers' entry goes too, unless it was there before.
#[inline(never)]
pub(crate) fn store<F: Maps>(
    headers: &Headers<F::Addr>,
    scratch: &Scratch<F::Addr>,
) -> Result<(), DropReason> {
    if write::<F>(headers, scratch) {
        forget_replaced::<F>(scratch);
        if scratch.uncounted != 0 {
            load::leave::<F>(scratch.uncounted);
        }
        if scratch.choice.backend != 0 && scratch.flow.flags & flag::COUNTED != 0 {
            load::join::<F>(scratch.choice.backend);
        }
        return Ok(());
    }
    if scratch.kept == 0 {
        helper::remove(F::flows(), &scratch.twin_key);
    }
    Err(DropReason::FlowTableFull)
}

/// Asks the flows of a local endpoint or of a node to write both of their entries again, at most once a second (E12).
#[inline(always)]
pub(crate) fn ask_for_restore(party: Dep) {
    let Some(id) = party.index.checked_sub(epoch::ENDPOINTS) else { return };
    let Some(last) = helper::row(&crate::maps::RESTORES, id) else { return };
    let now = helper::now();
    if now.wrapping_sub(*last) < helper::hz() {
        return;
    }
    *last = now;
    bump(party.index);
}

/// Has every flow that depends on it look again.
#[inline(always)]
pub(crate) fn bump(index: u32) {
    if let Some(value) = helper::row(&EPOCHS, index) {
        *value = value.wrapping_add(1);
    }
}
