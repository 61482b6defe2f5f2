//! `from_pod` and `to_pod`: the host side of a Pod's veth.

use quilla_abi::DropReason;
use quilla_abi::config::Config;
use quilla_abi::flow::{Flow, FlowKey, Ingress, action, flag};
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

    #[inline(always)]
    fn foreign(skb: Skb, ethertype: u16) -> Outcome {
        spoof::not_ip(skb, ethertype)
    }

    #[inline(always)]
    fn admits<F: Pipeline>(skb: Skb, ingress: &Ingress, _origin: &UnderlayAddress) -> bool {
        // Entries of other hooks have no Ethernet address: a Pod cannot match them by sending zeroes.
        ingress.ifindex == skb.ifindex() && ingress.mac != [0; 6] && skb.source_mac() == Ok(ingress.mac)
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
        sender::<F>(skb, headers, &mut scratch.from)?;
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
        spoof::sender::<F>(skb, headers)?;
        sender::<F>(skb, headers, &mut scratch.from)?;
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

/// The sending Pod as a party of the flow.
#[inline(always)]
fn sender<F: Pipeline>(skb: Skb, headers: &Headers<F::Addr>, side: &mut Side) -> Result<(), DropReason> {
    let known = route::endpoint::<F>(&headers.key.src, side) && side.forward.ifindex == skb.ifindex();
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
    if goes_back(scratch) {
        return Ok(());
    }
    match route::receiver::<F>(skb, config, &scratch.out, &mut scratch.to) {
        Err(DropReason::NotAService) => return Err(service::nobody::<F>(headers, INTERNAL)),
        result => result?,
    }
    // It came in through the stack, under its own address.
    if scratch.to.action == action::UPLINK && scratch.flow.flags & flag::REPLY != 0 {
        scratch.to.be_stack(skb.ifindex());
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
