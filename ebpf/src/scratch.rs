//! Working memory of the slow path, per CPU: two flow entries do not fit on a 512-byte stack.
//!
//! Programs run with bottom halves off and never nest on a CPU, so one row is enough. Nothing in it outlives a packet.

use quilla_abi::epoch::Dep;
use quilla_abi::flow::{Flow, FlowKey, Forward, Ingress, action, scope};
use quilla_abi::node::UnderlayAddress;
use quilla_abi::service::{Service, ServiceKey};
use quilla_abi::{Address, Be16};
use quilla_ebpf_core::Headers;
use quilla_ebpf_core::embedded::Embedded;

/// A party of a flow, seen from this node: how to send to it, and where its packets come from.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Side {
    /// How to send to it.
    pub(crate) forward: Forward,
    /// Where its packets arrive.
    pub(crate) ingress: Ingress,
    /// What knowing it depends on.
    pub(crate) dep: Dep,
    /// The largest packet that fits the way to it; 0 = any.
    pub(crate) mtu: u16,
    /// [`action`] that sends to it.
    pub(crate) action: u8,
    /// [`scope`] in which its packets are seen.
    pub(crate) scope: u8,
    /// [`quilla_abi::flow::flag::NATIVE`], if packets go to it plainly.
    pub(crate) native: u32,
}

impl Side {
    /// The host's own stack, whose packets are met at the hook on `ifindex`.
    pub(crate) fn be_stack(&mut self, ifindex: u32) {
        *self = Self { dep: Dep::NONE, action: action::STACK, ..Self::default() };
        self.ingress.ifindex = ifindex;
    }

    /// The world behind the uplink.
    pub(crate) fn be_world(&mut self, ifindex: u32) {
        self.be_stack(ifindex);
        self.forward.ifindex = ifindex;
        self.action = action::UPLINK;
        self.scope = scope::UPLINK;
    }

    /// The host's own stack, whose packets to the world are met on the uplink.
    pub(crate) fn be_host(&mut self, uplink: u32) {
        self.be_stack(uplink);
        self.scope = scope::NODE;
    }

    /// Whether we are a router to it: the stack does its own counting of hops.
    pub(crate) fn is_routed(&self) -> bool {
        self.action != action::STACK
    }
}

/// The choice of a backend: what it is made from, and what came of it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Choice<A> {
    /// What is asked for.
    pub(crate) frontend: ServiceKey<A>,
    /// The Service.
    pub(crate) service: Service,
    /// Who asks; all zero for processes of the node itself.
    pub(crate) client: A,
    /// Decides where chance does.
    pub(crate) hash: u32,
    /// 1 for a packet from the middle of a connection, whose backend was chosen before.
    pub(crate) stray: u16,
    /// Of the backend.
    pub(crate) port: Be16,
    /// Of the backend.
    pub(crate) addr: A,
    /// Id of the backend.
    pub(crate) backend: u32,
    /// The backend's generation before its row was read.
    pub(crate) dep: Dep,
}

/// What the slow path builds before it is written to the maps.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Scratch<A: Address> {
    /// The entry of the packet's own direction.
    pub(crate) flow: Flow<A>,
    /// The entry of the answers.
    pub(crate) twin: Flow<A>,
    /// The tuple after translation.
    pub(crate) out: FlowKey<A>,
    /// The key of `twin`.
    pub(crate) twin_key: FlowKey<A>,
    /// The key of the other direction of an entry that is being judged.
    pub(crate) other: FlowKey<A>,
    /// The key of the other direction of the connection whose tuple this one takes over.
    pub(crate) replaced: FlowKey<A>,
    /// Whether there is one.
    pub(crate) replaces: u32,
    /// The backend for which that connection counted, else 0.
    pub(crate) uncounted: u32,
    /// The Service that the packet is for, and the backend that it gets.
    pub(crate) choice: Choice<A>,
    /// Who sends.
    pub(crate) from: Side,
    /// Who receives.
    pub(crate) to: Side,
    /// The global epoch before anything was read.
    pub(crate) global: Dep,
    /// Hash of the tuple as it arrived.
    pub(crate) hash: u32,
    /// Whether the entry existed and keeps its translation.
    pub(crate) kept: u32,
    /// Whether the packet goes on as a reset, by which the client hears that its backend is gone.
    pub(crate) ends: u32,
}

impl<A: Address> Scratch<A> {
    /// Forgets the last packet.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
        self.flow.deps = [Dep::NONE; 4];
    }
}

/// How much of a packet an error about it embeds: all headers, more than any receiver looks at.
pub(crate) const COPY: u32 = 128;

/// The row of the map.
#[repr(C)]
pub(crate) struct Memory<A: Address> {
    /// What the parser found.
    pub(crate) headers: Headers<A>,
    /// The far end of the tunnel, at the hook that has one.
    pub(crate) origin: UnderlayAddress,
    /// Whether the flow table had no entry for the packet.
    pub(crate) is_new: u32,
    /// The packet inside an ICMP error.
    pub(crate) embedded: Embedded<A>,
    /// The beginning of a packet that is answered with an error.
    pub(crate) copy: [u8; COPY as usize],
    /// What a packet that is too big should have kept to.
    pub(crate) mtu: u32,
    /// What the slow path builds.
    pub(crate) scratch: Scratch<A>,
}
