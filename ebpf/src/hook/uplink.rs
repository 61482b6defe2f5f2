//! `from_uplink` and `to_uplink`: the node's way to the world.
//!
//! Nearly everything here is the host's own traffic or the overlay's outer packets; both are let go as early as can be.

use quilla_abi::flow::{Flow, scope};
use quilla_abi::node::UnderlayAddress;
use quilla_abi::route::kind;
use quilla_abi::{DropReason, config::Config};
use quilla_ebpf_core::headers::{Message, Part};
use quilla_ebpf_core::nat::Ports;
use quilla_ebpf_core::protocol::ip;
use quilla_ebpf_core::{Headers, route as targets};

use super::{begin, finish};
use crate::packet::Skb;
use crate::pipeline::{Hook, Next, Pipeline};
use crate::scratch::Scratch;
use crate::verdict::{Exit, Outcome, Verdict};
use crate::{route, service};

/// What the world sends: only answers to masqueraded flows concern us.
pub(crate) struct FromUplink;

impl Hook for FromUplink {
    const SCOPE: u8 = scope::UPLINK;

    #[inline(always)]
    fn foreign(_skb: Skb, _ethertype: u16) -> Outcome {
        Ok(Verdict::of(Exit::Passed))
    }

    #[inline(always)]
    fn malformed(_reason: DropReason) -> Outcome {
        Ok(Verdict::of(Exit::Passed))
    }

    #[inline(always)]
    fn concerns<F: Pipeline>(_skb: Skb, headers: &Headers<F::Addr>) -> bool {
        let Ok(config) = route::config() else { return false };
        F::masquerade(config) == Some(headers.key.dst) && may_answer::<F>(config, headers)
    }

    #[inline(always)]
    fn neighbour<F: Pipeline>(_skb: Skb, _headers: &Headers<F::Addr>) -> Outcome {
        Ok(Verdict::of(Exit::Passed))
    }

    /// The stack would take the packet for its own: there is nobody to tell.
    #[inline(always)]
    fn expired() -> Outcome {
        Err(DropReason::HopLimit)
    }

    #[inline(always)]
    fn lost() -> Result<Next, DropReason> {
        Ok(Next::Leave)
    }

    #[inline(always)]
    fn relay<F: Pipeline>(
        _skb: Skb,
        _headers: &Headers<F::Addr>,
        _scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason> {
        Ok(Next::Leave)
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
        if !begin::<F>(headers, config, existing, scratch)? {
            return Ok(Next::Leave);
        }
        scratch.from.be_world(skb.ifindex());
        if !route::endpoint::<F>(&scratch.out.dst, &mut scratch.to) {
            return Err(DropReason::NoEndpoint);
        }
        finish::<F>(headers, config, scratch)
    }
}

/// Whether a packet to the masquerade address can be an answer at all.
#[inline(always)]
fn may_answer<F: Pipeline>(config: &Config, headers: &Headers<F::Addr>) -> bool {
    if headers.part == Part::Later {
        return true;
    }
    let translated = Ports::of(config).is_some_and(|ports| ports.contains(headers.key.dport.get()));
    match headers.key.proto {
        ip::TCP | ip::UDP => translated,
        proto if proto == F::ICMP => match headers.message {
            Message::EchoReply => translated,
            Message::Error => true,
            _ => false,
        },
        _ => false,
    }
}

/// What leaves the node: Pods' packets that came through the stack are masqueraded here.
pub(crate) struct ToUplink;

impl Hook for ToUplink {
    const SCOPE: u8 = scope::UPLINK;
    const EGRESS: bool = true;

    #[inline(always)]
    fn is_ours(skb: Skb) -> bool {
        let came_by = skb.ingress_ifindex();
        came_by != 0 && came_by != skb.ifindex()
    }

    #[inline(always)]
    fn foreign(_skb: Skb, _ethertype: u16) -> Outcome {
        Ok(Verdict::of(Exit::Passed))
    }

    #[inline(always)]
    fn malformed(_reason: DropReason) -> Outcome {
        Ok(Verdict::of(Exit::Passed))
    }

    #[inline(always)]
    fn neighbour<F: Pipeline>(_skb: Skb, _headers: &Headers<F::Addr>) -> Outcome {
        Ok(Verdict::of(Exit::Passed))
    }

    #[inline(always)]
    fn relay<F: Pipeline>(
        _skb: Skb,
        _headers: &Headers<F::Addr>,
        _scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason> {
        Ok(Next::Leave)
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
        let from_pod = route::find::<F>(headers.key.src).is_some_and(|route| route.kind == kind::LOCAL_PODS);
        let to_world = targets::target(route::find::<F>(headers.key.dst)) == Ok(targets::Target::World);
        if !from_pod || !to_world || F::masquerade(config).is_none() {
            return Ok(Next::Leave);
        }
        if !begin::<F>(headers, config, existing, scratch)? {
            service::pick_up(headers, &mut scratch.flow);
        }
        scratch.to.be_world(skb.ifindex());
        if !route::endpoint::<F>(&headers.key.src, &mut scratch.from) {
            return Err(DropReason::NoEndpoint);
        }
        // The packet does not come from the Pod's device but through the stack.
        scratch.from.ingress = scratch.to.ingress;
        finish::<F>(headers, config, scratch)
    }
}
