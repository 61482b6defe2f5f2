//! `flows_v4`, `flows_v6`: connection tracking, NAT table and forwarding cache in one LRU hash.
//!
//! A connection has two entries, one per direction, each keyed by the tuple *as the packet carries it when it arrives*
//! at the hook. The value says everything an established packet needs: one lookup, then rewrite and forward.
//! Entries are inserted once by the slow path and written in place afterwards.

use crate::address::{Address, Be16, Mac};
use crate::epoch::Dep;
use crate::plain;

/// The tuple of a packet as it arrives.
///
/// ICMP echo has its identifier in `sport` (request) or `dport` (reply), the other port 0, so that a reply's key is
/// the mirrored key of its request. Protocols without ports have 0 in both.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// IP protocol number of the transport header.
    pub proto: u8,
    /// Where the tuple is valid: [`scope`]. An outside host can never match an entry of the cluster's inside.
    pub scope: u8,
    /// Always 0.
    pub pad: [u8; 2],
}

impl<A: Address> FlowKey<A> {
    /// The tuple of the answer to a packet with this tuple.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*self }
    }
}

/// Values of [`FlowKey::scope`].
pub mod scope {
    /// Seen on a Pod's veth or inside the overlay.
    pub const CLUSTER: u8 = 0;
    /// Came in by the uplink, outside the overlay: clients of Services, replies of masqueraded flows.
    pub const UPLINK: u8 = 1;
    /// On its way out of the uplink: sent by the node itself, or by a Pod through the host's stack.
    pub const NODE: u8 = 2;
}

/// What becomes of a packet that hits the entry; a value of [`action`].
pub mod action {
    /// Hand to the Pod behind `forward.ifindex` (its host side) with `bpf_redirect_peer`.
    pub const LOCAL_POD: u8 = 1;
    /// To node `forward.node_slot`: in a tunnel, or plainly with [`super::flag::NATIVE`].
    pub const OVERLAY: u8 = 2;
    /// Let the host's stack have it.
    pub const STACK: u8 = 3;
    /// Send out of uplink `forward.ifindex` with `bpf_redirect_neigh`.
    pub const UPLINK: u8 = 4;
}

/// Connection state, kept equal in both directions' entries; a value of [`state`].
pub mod state {
    /// Only the original direction was seen.
    pub const NEW: u8 = 0;
    /// Both directions were seen.
    pub const ESTABLISHED: u8 = 1;
    /// A FIN was seen in one direction.
    pub const FIN: u8 = 2;
    /// FINs of both directions were seen.
    pub const CLOSED: u8 = 3;
    /// A RST was seen. Not the end: it may be spurious (E11), but a SYN may reuse the tuple (E10).
    pub const RESET: u8 = 4;
}

/// Bits of [`Flow::flags`].
pub mod flag {
    /// The entry of the answering direction.
    pub const REPLY: u8 = 1 << 0;
    /// The addresses or ports change: apply `rewrite`.
    pub const REWRITE: u8 = 1 << 1;
    /// This direction has sent a FIN.
    pub const FIN_SEEN: u8 = 1 << 2;
    /// We act as a router: TTL/hop limit is decremented.
    pub const ROUTED: u8 = 1 << 3;
    /// The source was translated (masquerade, hairpin, or to keep two frontends apart).
    pub const SNAT: u8 = 1 << 4;
    /// Counted in [`crate::load`] until it is closed.
    pub const COUNTED: u8 = 1 << 5;
    /// Of [`super::action::OVERLAY`]: to the node by plain routing, not in a tunnel.
    pub const NATIVE: u8 = 1 << 6;
}

/// The new tuple, and what it does to the checksums.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite<A> {
    /// New source address.
    pub src: A,
    /// New destination address.
    pub dst: A,
    /// New source port (or ICMP identifier of a request).
    pub sport: Be16,
    /// New destination port (or ICMP identifier of a reply).
    pub dport: Be16,
    /// One's complement difference new - old over both addresses, as `bpf_csum_diff` gives it; applied to the IPv4
    /// header checksum and, as a pseudo-header difference, to the transport checksum.
    pub addr_delta: u32,
    /// The same over both ports; applied to the transport checksum only.
    pub port_delta: u32,
}

/// Where a packet goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// The device: host side of a Pod's veth, overlay device, uplink.
    pub ifindex: u32,
    /// The node slot of [`action::OVERLAY`].
    pub node_slot: u32,
    /// New source Ethernet address (for `LOCAL_POD` and `OVERLAY`).
    pub smac: Mac,
    /// New destination Ethernet address.
    pub dmac: Mac,
}

/// Where a packet with this key may come from: an established flow does not exempt from the anti-spoof check (E19).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// The device the hook runs on (`__sk_buff.ifindex`).
    pub ifindex: u32,
    /// The slot of the node whose overlay frame carried the packet; 0 for packets that are not from the overlay.
    pub node_slot: u16,
    /// Source Ethernet address the packet must have; all zero where the hook does not check it.
    pub mac: Mac,
}

/// One direction of a connection.
///
/// In the order of use: what every packet reads and writes comes first, what only translated ones need last. An element of the
/// kernel's table is 48 bytes of its own, key and value, one after the other, and with [`Flow::spare`] a multiple of 64 bytes: it
/// begins with a cache line, and a packet that is not translated touches three. With IPv4 the value does, too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow<A: Address> {
    /// Packets that hit the entry, the first one included. Racy between CPUs by design: a statistic.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
    /// What the entry was computed from: global, source endpoint, destination endpoint or node, backend generation.
    pub deps: [Dep; 4],
    /// Low 32 bits of `jiffies64` at the last packet.
    pub last_seen: u32,
    /// Where it may come from.
    pub ingress: Ingress,
    /// Where the packet goes.
    pub forward: Forward,
    /// [`action`]
    pub action: u8,
    /// [`state`]
    pub state: u8,
    /// [`flag`]
    pub flags: u8,
    /// [`scope`] of the other direction's key.
    pub twin_scope: u8,
    /// The largest packet (from the IP header on, a segment at a time) that fits the way; 0 = any.
    pub mtu: u16,
    /// Outer UDP source port of [`action::OVERLAY`]: the same for all packets of the flow, so that they keep their order.
    pub tunnel_port: Be16,
    /// Backend id, 0 for none.
    pub backend: u32,
    /// Service id, 0 for none.
    pub service: u32,
    /// The new tuple; without [`flag::REWRITE`] it equals the key's.
    pub rewrite: Rewrite<A>,
    /// Always 0.
    pub spare: A::Spare,
}

/// Positions in [`Flow::deps`].
pub mod dep {
    /// [`crate::epoch::GLOBAL`]
    pub const GLOBAL: usize = 0;
    /// The local endpoint that sends.
    pub const SOURCE: usize = 1;
    /// The local endpoint or the node that receives.
    pub const DESTINATION: usize = 2;
    /// The backend's generation.
    pub const BACKEND: usize = 3;
}

/// A UDP or ICMP flow silent for longer is a new flow (seconds).
pub const UDP_TIMEOUT_SECONDS: u32 = 180;
/// The same before both directions were seen.
pub const UDP_NEW_TIMEOUT_SECONDS: u32 = 60;

/// A tuple of a TCP connection may go to another one after this silence (seconds) while only SYNs were seen, and when
/// it is over: no answer to a SYN takes as long, and it is the length of `TIME_WAIT`.
pub const TCP_SHORT_TIMEOUT_SECONDS: u32 = 60;
/// The same after one FIN: the other side may have something left to say.
pub const TCP_FIN_TIMEOUT_SECONDS: u32 = 120;
/// The same for a connection that nobody ended: three rounds of keep-alive, which is sent every two hours by default.
pub const TCP_TIMEOUT_SECONDS: u32 = 6 * 3600;

plain!(
    FlowKey<[u8; 4]> = 16,
    FlowKey<[u8; 16]> = 40,
    Rewrite<[u8; 4]> = 20,
    Rewrite<[u8; 16]> = 44,
    Forward = 20,
    Ingress = 12,
    Flow<[u8; 4]> = 128,
    Flow<[u8; 16]> = 168,
);

/// An element of the kernel's LRU hash (`struct htab_elem`).
const fn element<A: Address>() -> usize {
    48 + size_of::<FlowKey<A>>() + size_of::<Flow<A>>()
}

const _: () = assert!(element::<[u8; 4]>() == 192 && element::<[u8; 16]>() == 256);
