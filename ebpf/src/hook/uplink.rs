//! `from_uplink` and `to_uplink`: the node's way to the world.
//!
//! Nearly everything here is the host's own traffic or the overlay's outer packets; both are let go as early as can be.

use quilla_abi::DropReason;
use quilla_abi::config::{self, Config};
use quilla_abi::flow::{Flow, scope, state};
use quilla_abi::node::UnderlayAddress;
use quilla_abi::program::SENT_MARK;
use quilla_abi::route::kind;
use quilla_abi::service::scope::EXTERNAL;
use quilla_ebpf_core::Headers;
use quilla_ebpf_core::headers::{Message, Part};
use quilla_ebpf_core::nat::Ports;
use quilla_ebpf_core::protocol::ip;
use quilla_ebpf_core::route::{self as targets, Target};

use super::{begin, expires, finish, goes_back};
use crate::answer::Back;
use crate::packet::Skb;
use crate::pipeline::{Hook, Next, Pipeline};
use crate::scratch::Scratch;
use crate::verdict::{Exit, Outcome, Verdict};
use crate::{flow, route, service, way};

/// What the world sends: clients of Services, and answers to flows that left under the node's address.
pub(crate) struct FromUplink;

impl Hook for FromUplink {
    const BACK: Back = Back::Device;
    const SCOPE: u8 = scope::UPLINK;

    #[inline(always)]
    fn is_ours(skb: Skb) -> bool {
        !skb.is_for_another()
    }

    #[inline(always)]
    fn foreign(_skb: Skb, _ethertype: u16) -> Outcome {
        Ok(Verdict::of(Exit::Passed))
    }

    #[inline(always)]
    fn malformed(_reason: DropReason) -> Outcome {
        Ok(Verdict::of(Exit::Passed))
    }

    /// The stack would send it on to nowhere, if it is for an address that only Services have (E8).
    #[inline(always)]
    fn headless<F: Pipeline>(headers: &Headers<F::Addr>, reason: DropReason) -> Outcome {
        if is_service::<F>(&headers.key.dst) { Err(reason) } else { Ok(Verdict::of(Exit::Passed)) }
    }

    /// What is for the node is judged by its port alone; addresses of Services look like anybody's.
    #[inline(always)]
    fn concerns<F: Pipeline>(_skb: Skb, headers: &Headers<F::Addr>) -> bool {
        let Ok(config) = route::config() else { return false };
        let dst = headers.key.dst;
        if is_overlay(config, headers) || F::is_multicast(dst) {
            return false;
        }
        F::host(config) != Some(dst) || may_concern::<F>(config, headers)
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
    fn lost(_origin: &UnderlayAddress) -> Result<Next, DropReason> {
        Ok(Next::Leave)
    }

    #[inline(always)]
    fn relay<F: Pipeline>(
        skb: Skb,
        headers: &Headers<F::Addr>,
        scratch: &mut Scratch<F::Addr>,
    ) -> Result<Next, DropReason> {
        if way::learn::<F>(skb, headers, &scratch.twin_key).is_some() {
            return Ok(Next::Leave);
        }
        if is_service::<F>(&headers.key.dst) { Err(DropReason::NotAService) } else { Ok(Next::Leave) }
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
        let known = begin::<F>(headers, config, existing, scratch)? || select::<F>(headers, config, scratch)?;
        if !known {
            return Ok(Next::Leave);
        }
        scratch.from.be_world(skb.ifindex());
        route::measure(skb, &mut scratch.from);
        receiver::<F>(skb, config, scratch)?;
        if expires(headers, scratch) {
            return Ok(Next::Forward);
        }
        finish::<F>(headers, config, scratch)
    }
}

/// Chooses a backend for a client in the world. Says whether the packet is for a Service.
#[inline(always)]
fn select<F: Pipeline>(
    headers: &Headers<F::Addr>,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
) -> Result<bool, DropReason> {
    let key = &headers.key;
    if F::select(scratch, EXTERNAL)? {
        return Ok(true);
    }
    if F::host(config) == Some(key.dst) || !is_service::<F>(&key.dst) {
        return Ok(false);
    }
    service::from_outside::<F>(&key.src)?;
    Err(service::nobody::<F>(headers, EXTERNAL))
}

/// Whether only Services have the address: the stack would send it back to where it came from.
#[inline(never)]
fn is_service<F: Pipeline>(addr: &F::Addr) -> bool {
    route::find::<F>(*addr).is_some_and(|route| route.kind == kind::SERVICES)
}

/// A local Pod, another node, this node itself, or somebody else in the world.
#[inline(always)]
fn receiver<F: Pipeline>(
    skb: Skb,
    config: &Config,
    scratch: &mut Scratch<F::Addr>,
) -> Result<(), DropReason> {
    if goes_back(skb, scratch) || route::endpoint::<F>(&scratch.out.dst, &mut scratch.to) {
        return Ok(());
    }
    match targets::target(route::find::<F>(scratch.out.dst))? {
        Target::Node(slot) => route::node(config, slot, F::NATIVE, &mut scratch.to),
        Target::Stack => {
            scratch.to.be_host(skb.ifindex());
            Ok(())
        }
        Target::Native | Target::World => route::outside::<F>(skb, config, &scratch.out, &mut scratch.to),
    }
}

/// Whether it is the overlay's own packet.
#[inline(always)]
fn is_overlay<A>(config: &Config, headers: &Headers<A>) -> bool {
    headers.key.proto == ip::UDP && headers.key.dport.get() == config.overlay_port
}

/// Whether a packet to the node's address can be for a Service, or an answer to what left under it.
#[inline(always)]
fn may_concern<F: Pipeline>(config: &Config, headers: &Headers<F::Addr>) -> bool {
    if headers.part == Part::Later {
        return true;
    }
    let port = headers.key.dport.get();
    let translated = Ports::of(config).is_some_and(|ports| ports.contains(port));
    match headers.key.proto {
        ip::TCP | ip::UDP => {
            translated || (port >= config.frontend_port_min && port <= config.frontend_port_max)
        }
        proto if proto == F::ICMP => match headers.message {
            Message::EchoReply => translated,
            Message::Error => true,
            _ => false,
        },
        _ => false,
    }
}

/// What leaves the node: Pods' packets that came through the stack are masqueraded here, and what the node itself
/// answers to clients of Services gets the Service's name.
pub(crate) struct ToUplink;

impl Hook for ToUplink {
    const SCOPE: u8 = scope::NODE;
    const EGRESS: bool = true;

    #[inline(always)]
    fn is_ours(skb: Skb) -> bool {
        if skb.mark() == SENT_MARK {
            return false;
        }
        match skb.ingress_ifindex() {
            0 => {
                let answers = |config: &Config| config.flags & config::flag::NODE_BACKENDS != 0;
                route::config().is_ok_and(answers)
            }
            came_by => came_by != skb.ifindex(),
        }
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
    fn concerns<F: Pipeline>(_skb: Skb, headers: &Headers<F::Addr>) -> bool {
        route::config().is_ok_and(|config| !is_overlay(config, headers))
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
        let own = skb.ingress_ifindex() == 0;
        let masqueraded = if own { Some(false) } else { leaves::<F>(headers, config) };
        let Some(masqueraded) = masqueraded.filter(|begins| *begins || existing.is_some()) else {
            return Ok(Next::Leave);
        };
        if !begin::<F>(headers, config, existing, scratch)? {
            if own || speaks_for_itself::<F>(headers, scratch) {
                return Ok(Next::Leave);
            }
            if !masqueraded {
                flow::forget::<F>(&headers.key, scratch);
                return Ok(Next::Leave);
            }
            service::pick_up(headers, &mut scratch.flow);
        }
        if own {
            scratch.from.be_host(skb.ifindex());
            // Whatever else the node sends was never ours.
            if !goes_back(skb, scratch) {
                return Ok(Next::Leave);
            }
        } else {
            scratch.to.be_world(skb.ifindex());
            if !route::endpoint::<F>(&headers.key.src, &mut scratch.from) {
                return Err(DropReason::NoEndpoint);
            }
            // The packet does not come from the Pod's device but through the stack.
            scratch.from.ingress = scratch.to.ingress;
        }
        finish::<F>(headers, config, scratch)
    }
}

/// Whether the Pod and the world know each other by their own addresses: the connection was begun outside, or before what
/// is outside was to be masqueraded.
#[inline(always)]
fn speaks_for_itself<F: Pipeline>(headers: &Headers<F::Addr>, scratch: &mut Scratch<F::Addr>) -> bool {
    scratch.other = headers.key;
    scratch.other.scope = scope::CLUSTER;
    flow::lookup::<F>(&scratch.other).is_some_and(|entry| entry.state != state::NEW)
}

/// Whether it is a Pod's and leaves the cluster; if so, whether what begins there is masqueraded. What is already, stays so.
#[inline(always)]
fn leaves<F: Pipeline>(headers: &Headers<F::Addr>, config: &Config) -> Option<bool> {
    let masqueraded = match route::find::<F>(headers.key.dst) {
        None => F::masquerade(config).is_some(),
        Some(route) if route.kind == kind::NATIVE => false,
        Some(_) => return None,
    };
    route::find::<F>(headers.key.src)
        .is_some_and(|route| route.kind == kind::LOCAL_PODS)
        .then_some(masqueraded)
}
