//! `from_overlay` and `to_overlay`: the overlay device. What `from_uplink` decapsulates goes the way of the first.

use quilla_abi::config::Config;
use quilla_abi::flow::{Flow, Ingress};
use quilla_abi::node::UnderlayAddress;
use quilla_abi::program::SENT_MARK;
use quilla_abi::route::kind;
use quilla_abi::{DropReason, epoch};
use quilla_ebpf_core::Headers;
use quilla_ebpf_core::nat::Ports;
use quilla_ebpf_core::protocol::ip;
use quilla_ebpf_core::route::{Target, target};

use super::{begin, expires, finish, goes_back, is_stray, may_lack_its_name};
use crate::answer::Back;
use crate::maps::{NODE_SLOTS, NODES};
use crate::packet::Skb;
use crate::pipeline::{Hook, Next, Pipeline, memory};
use crate::scratch::{Scratch, Side};
use crate::verdict::{Exit, Outcome, Verdict};
use crate::{encap, flow, helper, plain, route, service};

/// What other nodes send: the outer source must be a node, and the inner one must live there.
pub(crate) struct FromNodes<const DIRECT: bool>;

/// Decapsulated by the overlay device.
pub(crate) type FromOverlay = FromNodes<false>;
/// Decapsulated on an uplink, by [`crate::decap`], which has said where it came from; or plainly, see [`crate::plain`].
pub(crate) type FromTunnel = FromNodes<true>;

impl<const DIRECT: bool> Hook for FromNodes<DIRECT> {
    const BACK: Back = Back::Node;

    /// What was decapsulated on the uplink for the stack has been judged there.
    #[inline(always)]
    fn is_ours(skb: Skb) -> bool {
        let judged = !DIRECT && skb.mark() == SENT_MARK;
        if judged {
            skb.set_mark(0);
        }
        !judged
    }

    #[inline(always)]
    fn foreign(_skb: Skb, _ethertype: u16) -> Outcome {
        Err(DropReason::UnknownEtherType)
    }

    #[inline(always)]
    fn origin(skb: Skb, remote: &mut UnderlayAddress) -> Result<(), DropReason> {
        if DIRECT { Ok(()) } else { encap::origin(skb, remote) }
    }

    /// By whichever device, in a tunnel or plainly: only what comes from other nodes has a slot.
    #[inline(always)]
    fn admits<F: Pipeline>(skb: Skb, ingress: &Ingress, origin: &UnderlayAddress) -> bool {
        let slot = u32::from(ingress.node_slot);
        if DIRECT && plain::is_plain(origin) {
            return slot != 0 && plain::is_from::<F>(skb, slot);
        }
        slot != 0
            && slot < epoch::MAX_NODES
            && helper::row(&NODES, slot).is_some_and(|node| route::is_node_at(node, origin))
    }

    #[inline(always)]
    fn neighbour<F: Pipeline>(_skb: Skb, _headers: &Headers<F::Addr>) -> Outcome {
        Err(DropReason::ForgedNeighbour)
    }

    #[inline(always)]
    fn reporter<F: Pipeline>(
        _skb: Skb,
        headers: &Headers<F::Addr>,
        origin: &UnderlayAddress,
    ) -> Result<(), DropReason> {
        // A router reports as well, by the way that the node's packets come: its flow says whose.
        if DIRECT && plain::is_plain(origin) { Ok(()) } else { sender::<F>(headers, origin).map(|_| ()) }
    }

    /// What comes plainly may be the world's, for the node itself.
    #[inline(always)]
    fn lost(origin: &UnderlayAddress) -> Result<Next, DropReason> {
        if DIRECT && plain::is_plain(origin) { Ok(Next::Leave) } else { Err(DropReason::HopLimit) }
    }

    #[inline(always)]
    fn relay<F: Pipeline>(
        _skb: Skb,
        headers: &Headers<F::Addr>,
        scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason> {
        if DIRECT && plain::is_plain(&memory::<F>()?.origin) {
            return Ok(Next::Leave);
        }
        let overlay = route::config()?.overlay_ifindex;
        // Whoever it is, the packet was routed on its way.
        scratch.from.be_world(overlay);
        receiver::<F>(overlay, &headers.key.dst, &mut scratch.to)?;
        Ok(Next::Forward)
    }

    #[inline(always)]
    fn resolve<F: Pipeline>(
        skb: Skb,
        headers: &Headers<F::Addr>,
        origin: &UnderlayAddress,
        existing: Option<&Flow<F::Addr>>,
        scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason> {
        let config = route::config()?;
        let slot = if DIRECT && plain::is_plain(origin) {
            plain::sender::<F>(skb, &headers.key.src)?
        } else {
            sender::<F>(headers, origin)?
        };
        if slot == 0 {
            return Ok(Next::Leave);
        }
        route::node(config, slot, F::NATIVE, &mut scratch.from)?;
        let kept = begin::<F>(headers, config, existing, scratch)?;
        if !goes_back(skb, scratch) {
            receiver::<F>(config.overlay_ifindex, &scratch.out.dst, &mut scratch.to)?;
        }
        if !kept {
            if lost_its_client::<F>(headers, config) {
                flow::ask_for_restore(scratch.from.dep);
                return Err(DropReason::NoFlow);
            }
            let to_pod = scratch.to.is_routed();
            if to_pod && is_stray(headers) && service::may_be_answer::<F>(headers) {
                flow::ask_for_restore(scratch.to.dep);
                return Err(DropReason::NoFlow);
            }
            service::pick_up(headers, &mut scratch.flow);
        }
        if expires(headers, scratch) {
            return Ok(Next::Forward);
        }
        if !kept && may_lack_its_name::<F>(headers, config, scratch.to.dep, scratch) {
            flow::complete::<F>(headers, scratch);
            return Ok(Next::Forward);
        }
        finish::<F>(headers, config, scratch)
    }
}

/// Whether it is the answer to a client in the world, whose entry was lost: nobody else speaks with the gateway's
/// address from these ports (E12).
#[inline(always)]
fn lost_its_client<F: Pipeline>(headers: &Headers<F::Addr>, config: &Config) -> bool {
    let key = &headers.key;
    (key.proto == ip::TCP || key.proto == ip::UDP)
        && key.dst == F::gateway(config)
        && Ports::of(config).is_some_and(|ports| ports.contains(key.dport.get()))
}

/// The slot of the sending node (E20).
#[inline(never)]
fn sender<F: Pipeline>(headers: &Headers<F::Addr>, origin: &UnderlayAddress) -> Result<u16, DropReason> {
    let slot = *helper::find(&NODE_SLOTS, origin).ok_or(DropReason::UnknownTunnelSource)?;
    match route::find::<F>(headers.key.src) {
        Some(route) if route.kind == kind::REMOTE_PODS && u32::from(route.node_slot) == slot => {
            Ok(route.node_slot)
        }
        _ => Err(DropReason::WrongTunnelSource),
    }
}

/// A local Pod or this node itself; the overlay is no way through.
#[inline(always)]
fn receiver<F: Pipeline>(overlay: u32, addr: &F::Addr, side: &mut Side) -> Result<(), DropReason> {
    if route::endpoint::<F>(addr, side) {
        return Ok(());
    }
    match route::find::<F>(*addr) {
        Some(route) if route.kind == kind::HOST => {
            side.be_stack(overlay);
            Ok(())
        }
        _ => Err(DropReason::NoEndpoint),
    }
}

/// What the host's stack sends to Pods of other nodes.
pub(crate) struct ToOverlay;

impl Hook for ToOverlay {
    const EGRESS: bool = true;

    #[inline(always)]
    fn is_ours(skb: Skb) -> bool {
        skb.mark() != SENT_MARK
    }

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
        scratch.from.be_stack(skb.ifindex());
        other_node::<F>(route::config()?, headers.key.dst, &mut scratch.to)?;
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
        scratch.from.be_stack(skb.ifindex());
        other_node::<F>(config, scratch.out.dst, &mut scratch.to)?;
        finish::<F>(headers, config, scratch)
    }
}

/// The node on which a Pod address lives.
#[inline(always)]
fn other_node<F: Pipeline>(config: &Config, addr: F::Addr, side: &mut Side) -> Result<(), DropReason> {
    match target(route::find::<F>(addr)) {
        Ok(Target::Node(slot)) => route::node(config, slot, 0, side),
        _ => Err(DropReason::UnknownNode),
    }
}
