//! Addresses and ports as they stand in a packet.

/// A 16-bit number in network byte order: a port, an ICMP identifier.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Be16(u16);

impl Be16 {
    /// From a number in the machine's order.
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }

    /// From the two bytes of a packet, as they were loaded.
    pub const fn from_wire(raw: u16) -> Self {
        Self(raw)
    }

    /// As it is to be stored into a packet.
    pub const fn wire(self) -> u16 {
        self.0
    }

    /// In the machine's order.
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The address of one family, in network byte order: `[u8; 4]` or `[u8; 16]`.
///
/// Byte arrays have alignment 1, which keeps the generic structs free of padding for both families.
pub trait Address: Copy + Eq + Default + core::fmt::Debug + 'static {
    /// What an entry of the flow table lacks to whole cache lines; see [`crate::flow::Flow::spare`].
    type Spare: Copy + Eq + Default + core::fmt::Debug;
}

impl Address for [u8; 4] {
    type Spare = [u64; 1];
}

impl Address for [u8; 16] {
    type Spare = [u64; 3];
}

/// The IPv4-mapped IPv6 form, the common key of maps that hold both families.
pub const fn v4_mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}
