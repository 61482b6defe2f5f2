//! `fragments_v4`, `fragments_v6`: the ports of a fragmented datagram, remembered from its first fragment (E3).

use crate::address::Be16;
use crate::plain;

/// What the fragments of one datagram share.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Identification, as in the packet (16 bits for IPv4, 32 for IPv6).
    pub id: u32,
    /// IP protocol number.
    pub proto: u8,
    /// [`crate::flow::scope`]
    pub scope: u8,
    /// Always 0.
    pub pad: [u8; 2],
}

/// What the first fragment said.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Source port.
    pub sport: Be16,
    /// Destination port.
    pub dport: Be16,
    /// Low 32 bits of `jiffies64`.
    pub seen: u32,
}

plain!(FragmentKey<[u8; 4]> = 16, FragmentKey<[u8; 16]> = 40, Fragment = 8);
