//! ICMP errors with the meaning they share in both families.

use std::net::IpAddr;

/// Why a router or host sends a packet's head back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Fragmentation needed, or packet too big.
    TooBig {
        /// The next hop's MTU.
        mtu: u16,
    },
    /// Nobody listens on the port.
    PortUnreachable,
    /// No way to the host or address.
    HostUnreachable,
    /// TTL or hop limit ran out.
    TimeExceeded,
}

impl IcmpError {
    /// Type, code and the four bytes after the checksum.
    pub(super) fn header(self, family: IpAddr) -> (u8, u8, [u8; 4]) {
        let v4 = family.is_ipv4();
        match self {
            Self::TooBig { mtu } if v4 => (3, 4, u32::from(mtu).to_be_bytes()),
            Self::TooBig { mtu } => (2, 0, u32::from(mtu).to_be_bytes()),
            Self::PortUnreachable if v4 => (3, 3, [0; 4]),
            Self::PortUnreachable => (1, 4, [0; 4]),
            Self::HostUnreachable if v4 => (3, 1, [0; 4]),
            Self::HostUnreachable => (1, 3, [0; 4]),
            Self::TimeExceeded if v4 => (11, 0, [0; 4]),
            Self::TimeExceeded => (3, 0, [0; 4]),
        }
    }
}
