//! Working memory of the slow path, per CPU: two flow entries do not fit on a 512-byte stack.
//!
//! Programs run with bottom halves off and never nest on a CPU, so one row is enough. Nothing in it outlives a packet.

use quilla_abi::Address;
use quilla_abi::epoch::Dep;
use quilla_abi::flow::{Flow, FlowKey, Forward, Ingress, action};
use quilla_abi::node::UnderlayAddress;
use quilla_ebpf_core::Headers;

/// A party of a flow, seen from this node: how to send to it, and where its packets come from.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Side {
    /// How to send to it.
    pub forward: Forward,
    /// Where its packets arrive.
    pub ingress: Ingress,
    /// What knowing it depends on.
    pub dep: Dep,
    /// [`action`] that sends to it.
    pub action: u8,
    pub pad: [u8; 3],
}

impl Side {
    /// The host's own stack, whose packets are met at the hook on `ifindex`.
    pub fn be_stack(&mut self, ifindex: u32) {
        *self = Self { dep: Dep::NONE, action: action::STACK, ..Self::default() };
        self.ingress.ifindex = ifindex;
    }

    /// The world behind the uplink.
    pub fn be_world(&mut self, ifindex: u32) {
        self.be_stack(ifindex);
        self.forward.ifindex = ifindex;
        self.action = action::UPLINK;
    }

    /// Whether we are a router to it: the stack does its own counting of hops.
    pub fn is_routed(&self) -> bool {
        self.action != action::STACK
    }
}

/// What the slow path builds before it is written to the maps.
#[repr(C)]
#[derive(Default)]
pub struct Scratch<A> {
    /// The entry of the packet's own direction.
    pub flow: Flow<A>,
    /// The entry of the answers.
    pub twin: Flow<A>,
    /// The tuple after translation.
    pub out: FlowKey<A>,
    /// The key of `twin`.
    pub twin_key: FlowKey<A>,
    /// Who sends.
    pub from: Side,
    /// Who receives.
    pub to: Side,
    /// The global epoch before anything was read.
    pub global: Dep,
    /// Hash of the tuple as it arrived.
    pub hash: u32,
    /// Whether the entry existed and keeps its translation.
    pub kept: u32,
}

impl<A: Address> Scratch<A> {
    /// Forgets the last packet.
    pub fn clear(&mut self) {
        *self = Self::default();
        self.flow.deps = [Dep::NONE; 4];
    }
}

/// The row of the map.
#[repr(C)]
pub struct Memory<A> {
    /// What the parser found.
    pub headers: Headers<A>,
    /// The far end of the tunnel, at the hook that has one.
    pub origin: UnderlayAddress,
    /// What the slow path builds.
    pub scratch: Scratch<A>,
}
