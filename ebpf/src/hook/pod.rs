//! `from_pod` and `to_pod`: the host side of a Pod's veth.

use quilla_abi::DropReason;
use quilla_abi::config::Config;
use quilla_abi::flow::{Flow, FlowKey, Ingress, action, flag, state};
use quilla_abi::node::UnderlayAddress;
use quilla_abi::route::kind;
use quilla_abi::service::scope::INTERNAL;
use quilla_ebpf_core::Headers;
use quilla_ebpf_core::protocol::ip;

use super::{begin, expires, finish, goes_back, is_stray, may_lack_its_name};
use crate::answer::Back;
use crate::packet::Skb;
use crate::pipeline::{Hook, Next, Pipeline};
use crate::scratch::{Scratch, Side};
use crate::verdict::{Exit, Outcome, Verdict};
use crate::{flow, route, service, spoof};

/// What a Pod sends: the sender is checked on every packet, Services are resolved, everybody may receive.
pub(crate) struct FromPod;

impl Hook for FromPod {
    const BACK: Back = Back::Pod;

    /// A Pod's tag would leave the node with the packet, its priority with it.
    #[inline(always)]
    fn ethertype(skb: Skb) -> Result<u16, DropReason> {
        skb.untagged_ethertype()
    }

    #[inline(always)]
    fn foreign(skb: Skb, ethertype: u16) -> Outcome {
        spoof::not_ip(skb, ethertype)
    }

    #[inline(always)]
    fn admits<F: Pipeline>(skb: Skb, ingress: &Ingress, _origin: &UnderlayAddress) -> bool {
        // Entries of other hooks have no Ethernet address: a Pod cannot match them by sending zeroes.
        ingress.ifindex == skb.ifindex() && skb.is_from(&ingress.mac)
    }

    #[inline(always)]
    fn neighbour<F: Pipeline>(skb: Skb, headers: &Headers<F::Addr>) -> Outcome {
        spoof::neighbour::<F>(skb, headers)
    }

    #[inline(always)]
    fn reporter<F: Pipeline>(
        skb: Skb,
        headers: &Headers<F::Addr>,
        _origin: &UnderlayAddress,
    ) -> Result<(), DropReason> {
        spoof::sender::<F>(skb, headers).map(|_| ())
    }

    #[inline(always)]
    fn relay<F: Pipeline>(
        skb: Skb,
        headers: &Headers<F::Addr>,
        scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason> {
        // A Pod is no router: what it may report about was sent to it.
        if scratch.twin_key.src != headers.key.src {
            return Err(DropReason::ForgedReport);
        }
        let id = spoof::interface(skb)?.id;
        sender::<F>(skb, headers, id, &mut scratch.from)?;
        route::receiver::<F>(skb, route::config()?, &headers.key, &mut scratch.to)?;
        // It would need a translation, and there is no flow that says which.
        if scratch.to.action == action::UPLINK { Err(DropReason::NoFlow) } else { Ok(Next::Forward) }
    }

    #[inline(always)]
    fn resolve<F: Pipeline>(
        skb: Skb,
        headers: &Headers<F::Addr>,
        _origin: &UnderlayAddress,
        existing: Option<&Flow<F::Addr>>,
        scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason> {
        let config = route::config()?;
        let id = spoof::sender::<F>(skb, headers)?.id;
        sender::<F>(skb, headers, id, &mut scratch.from)?;
        let known = begin::<F>(headers, config, existing, scratch)? || F::select(scratch, INTERNAL)?;
        if !known {
            if is_stray(headers) && service::may_be_answer::<F>(headers) {
                flow::ask_for_restore(scratch.from.dep);
                return Err(DropReason::NoFlow);
            }
            if headers.key.proto == ip::TCP {
                service::led::<F>(skb, headers, scratch)?;
            }
            service::pick_up(headers, &mut scratch.flow);
        }
        forged_overlay::<F>(config, &scratch.out)?;
        receiver::<F>(skb, headers, config, scratch)?;
        if expires(headers, scratch) {
            return Ok(Next::Forward);
        }
        if !known && may_lack_its_name::<F>(headers, config, scratch.from.dep, scratch) {
            flow::complete::<F>(headers, scratch);
            return Ok(Next::Forward);
        }
        finish::<F>(headers, config, scratch)
    }
}

/// The sending Pod, an endpoint by its interface, as a party of the flow.
#[inline(always)]
fn sender<F: Pipeline>(
    skb: Skb,
    headers: &Headers<F::Addr>,
    id: u32,
    side: &mut Side,
) -> Result<(), DropReason> {
    let known = route::endpoint_of::<F>(&headers.key.src, id, side) && side.forward.ifindex == skb.ifindex();
    if known { Ok(()) } else { Err(DropReason::UnknownInterface) }
}

/// Anybody may receive, and whoever asked from the world is answered the way it came.
#[inline(always)]
fn receiver<F: Pipeline>(
    skb: Skb,
    headers: &Headers<F::Addr>,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
) -> Result<(), DropReason> {
    if goes_back(skb, scratch) {
        return Ok(());
    }
    match route::receiver::<F>(skb, config, &scratch.out, &mut scratch.to) {
        Err(DropReason::NotAService) => return Err(service::nobody::<F>(headers, INTERNAL)),
        result => result?,
    }
    keep_name::<F>(skb, config, scratch)
}

/// A connection goes on under the name that the world knows, whatever was said of masquerading since: the Pod's own if it
/// came in through the stack or was begun so, the node's if it left under that.
#[inline(always)]
fn keep_name<F: Pipeline>(
    skb: Skb,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
) -> Result<(), DropReason> {
    let Scratch { flow, to, out, .. } = scratch;
    let answers = flow.flags & flag::REPLY != 0;
    // The entry still says where it led before; a new one says nothing.
    let own = answers || (flow.action == action::STACK && flow.state != state::NEW);
    let lent = flow.flags & (flag::REPLY | flag::SNAT) == flag::SNAT && flow.action == action::UPLINK;
    if to.action == action::UPLINK && own {
        to.be_stack(skb.ifindex());
    } else if to.action == action::STACK && lent && route::is_outside::<F>(&out.dst) {
        return route::world::<F>(skb, config, out, true, to);
    }
    Ok(())
}

/// Overlay frames are made by nodes only (E19, E20).
#[inline(always)]
fn forged_overlay<F: Pipeline>(config: &Config, out: &FlowKey<F::Addr>) -> Result<(), DropReason> {
    if out.proto != ip::UDP || out.dport.get() != config.overlay_port {
        return Ok(());
    }
    let host = route::find::<F>(out.dst).is_some_and(|route| route.kind == kind::HOST);
    if host || spoof::is_node::<F>(out.dst) { Err(DropReason::ForgedOverlay) } else { Ok(()) }
}

/// What the host's stack sends to a Pod: probes, answers of host backends, routed traffic.
pub(crate) struct ToPod;

impl Hook for ToPod {
    const EGRESS: bool = true;

    #[inline(always)]
    fn foreign(_skb: Skb, _ethertype: u16) -> Outcome {
        Ok(Verdict::of(Exit::Passed))
    }

    #[inline(always)]
    fn neighbour<F: Pipeline>(_skb: Skb, _headers: &Headers<F::Addr>) -> Outcome {
        Ok(Verdict::of(Exit::Passed))
    }

    #[inline(always)]
    fn relay<F: Pipeline>(
        skb: Skb,
        headers: &Headers<F::Addr>,
        scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason> {
        pod_behind::<F>(skb, &headers.key.dst, scratch)?;
        Ok(Next::Forward)
    }

    #[inline(always)]
    fn resolve<F: Pipeline>(
        skb: Skb,
        headers: &Headers<F::Addr>,
        _origin: &UnderlayAddress,
        existing: Option<&Flow<F::Addr>>,
        scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason> {
        let config = route::config()?;
        if F::is_multicast(headers.key.dst) {
            return Ok(Next::Leave);
        }
        if !begin::<F>(headers, config, existing, scratch)? {
            service::pick_up(headers, &mut scratch.flow);
        }
        let receiver_addr = scratch.out.dst;
        pod_behind::<F>(skb, &receiver_addr, scratch)?;
        finish::<F>(headers, config, scratch)
    }
}

/// The stack sends, and the Pod behind the device receives.
#[inline(always)]
fn pod_behind<F: Pipeline>(
    skb: Skb,
    addr: &F::Addr,
    scratch: &mut Scratch<F::Addr>,
) -> Result<(), DropReason> {
    scratch.from.be_stack(skb.ifindex());
    let known = route::endpoint::<F>(addr, &mut scratch.to) && scratch.to.forward.ifindex == skb.ifindex();
    if known { Ok(()) } else { Err(DropReason::NoEndpoint) }
}
