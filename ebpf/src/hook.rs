//! What is particular to each hook: who may send here, and who may receive.

mod overlay;
mod pod;
mod uplink;

pub(crate) use overlay::{FromOverlay, FromTunnel, ToOverlay};
pub(crate) use pod::{FromPod, ToPod};
pub(crate) use uplink::{FromUplink, ToUplink};

use quilla_abi::config::Config;
use quilla_abi::epoch::Dep;
use quilla_abi::flow::{Flow, action, dep, flag};
use quilla_abi::{Address, DropReason};
use quilla_ebpf_core::Headers;
use quilla_ebpf_core::connection::opens;
use quilla_ebpf_core::protocol::ip;

use crate::packet::Skb;
use crate::pipeline::{Next, Pipeline};
use crate::scratch::Scratch;
use crate::{flow, nat, route, service};

/// Sets the tuple before any translation, or the one that an existing entry translates to. Says whether one did.
#[inline(always)]
fn begin<F: Pipeline>(
    headers: &Headers<F::Addr>,
    config: &Config,
    existing: Option<&Flow<F::Addr>>,
    scratch: &mut Scratch<F::Addr>,
) -> Result<bool, DropReason> {
    scratch.hash = F::hash(&headers.key, config.hash_seed);
    scratch.out = headers.key;
    let kept = service::keep::<F>(headers, existing, scratch)?;
    if let (false, Some(entry)) = (kept, existing) {
        flow::replace::<F>(headers, entry, scratch);
    }
    scratch.flow.deps[dep::GLOBAL] = scratch.global;
    Ok(kept)
}

/// Whether the packet comes from the middle of a connection of which nothing is known.
#[inline(always)]
fn is_stray<A>(headers: &Headers<A>) -> bool {
    headers.key.proto == ip::TCP && !opens(headers.tcp)
}

/// Whether the first packet of a flow gets no further than this node. It leaves no flow behind: nothing was sent that
/// could be answered.
#[inline(always)]
fn expires<A: Address>(headers: &Headers<A>, scratch: &mut Scratch<A>) -> bool {
    let routed = scratch.from.is_routed() && scratch.to.is_routed();
    if headers.hop_limit > 1 || scratch.kept != 0 || !routed {
        return false;
    }
    scratch.flow.flags |= flag::ROUTED;
    true
}

/// Whether a datagram that belongs to nothing may be the answer of a backend to a client on this node, which alone knows
/// under which name. The client's flow is asked to write its entries again. Until then the answer goes as it is and
/// makes no flow, whose tuple the client's would find taken. It may as well be that the server speaks first (E12).
#[inline(always)]
fn may_lack_its_name<F: Pipeline>(
    headers: &Headers<F::Addr>,
    config: &Config,
    client: Dep,
    scratch: &Scratch<F::Addr>,
) -> bool {
    let to_itself = scratch.from.action == action::LOCAL_POD && scratch.out.dst == F::gateway(config);
    let to_client = scratch.to.action == action::LOCAL_POD || to_itself;
    let to_world = scratch.to.action == action::UPLINK;
    let lacks =
        headers.key.proto == ip::UDP && (to_client || to_world) && service::may_be_answer::<F>(headers);
    if lacks {
        flow::ask_for_restore(client);
    }
    // Masqueraded it shows nobody's address, and whose tuple is taken gets another one.
    lacks && to_client
}

/// The way of an answer to a client in the world: out of the device by which it asked (E15). Says whether it is one.
#[inline(always)]
fn goes_back<A: Address>(skb: Skb, scratch: &mut Scratch<A>) -> bool {
    // The entry still says where it led before.
    let back = scratch.flow.flags & flag::REPLY != 0 && scratch.flow.action == action::UPLINK;
    if back {
        scratch.to.be_world(scratch.flow.forward.ifindex);
        route::measure(skb, &mut scratch.to);
    }
    back
}

/// With both parties known: chooses the source, and writes the entries of both directions.
#[inline(always)]
fn finish<F: Pipeline>(
    headers: &Headers<F::Addr>,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
) -> Result<Next, DropReason> {
    nat::choose_source::<F>(headers, config, scratch)?;
    flow::complete::<F>(headers, scratch);
    flow::store::<F>(headers, scratch)?;
    Ok(Next::Forward)
}
