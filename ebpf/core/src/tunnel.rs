//! What the outer headers of the overlay are made of: VXLAN (RFC 7348) over UDP over IPv4 or IPv6.
//!
//! The kernel side writes and reads them in words; this is the part that can be said without a packet.

use quilla_abi::Be16;

use crate::family::Family;
use crate::protocol::ETHERNET;

/// UDP and VXLAN headers.
const UDP_VXLAN: u32 = 16;
/// Outer IPv4 header without options.
const IPV4: u32 = 20;
/// Outer IPv6 header without extensions.
const IPV6: u32 = 40;

/// What direct encapsulation adds between the Ethernet header and the packet.
pub const OVERHEAD_V4: u32 = IPV4 + UDP_VXLAN + ETHERNET;
/// The same over IPv6.
pub const OVERHEAD_V6: u32 = IPV6 + UDP_VXLAN + ETHERNET;

/// The hop limit of outer headers.
pub const HOPS: u8 = 64;

/// First word of the VXLAN header: a network identifier is there, and nothing else.
pub const VXLAN_FLAGS: u32 = 0x0800_0000;

/// Congestion experienced (RFC 3168).
pub const CE: u8 = 3;
/// Capable of it, code point 0.
const ECT0: u8 = 2;

/// The outer source port of a flow: 14 bits of its hash, from below the ports of masquerading.
#[inline(always)]
pub const fn port(hash: u32) -> Be16 {
    Be16::new(0x8000 | ((hash >> 18) as u16))
}

/// The outer ECN field for an inner one (RFC 6040, normal mode, as the kernel's tunnels do it).
#[inline(always)]
pub const fn ecn(inner: u8) -> u8 {
    if inner & 3 == CE { ECT0 } else { inner & 3 }
}

/// Second word of the VXLAN header.
#[inline(always)]
pub const fn vni_word(vni: u32) -> u32 {
    vni << 8
}

/// What fits a tunnel over the family, as a router has it that was sent too large an outer packet: the first bytes of its
/// ICMP error. Less than any way has is not believed.
#[inline(always)]
pub fn reported_mtu<F: Family>(message: [u8; 8]) -> Option<u16> {
    let [kind, code, _, _, high, low, a, b] = message;
    // The field has 16 bits in IPv4 (RFC 1191) and 32 in IPv6; what does not fit them is no news.
    let fits = F::CHECKSUM.is_some() || (high == 0 && low == 0);
    let mtu = u16::from_be_bytes([a, b]);
    if (kind, code) != F::TOO_BIG || !fits || mtu == 0 {
        return None;
    }
    let mtu = if mtu < F::LEAST_PATH_MTU { F::LEAST_PATH_MTU } else { mtu };
    Some(mtu - F::OVERHEAD)
}

#[cfg(test)]
mod tests {
    use quilla_abi::config::SNAT_PORT_MIN;

    use super::*;
    use crate::family::{V4, V6};

    /// E4, E5: only "too big" says an MTU, and nobody makes a way narrower than there are.
    #[test]
    fn routers_say_what_fits() {
        let message = |kind, code, mtu: u32| {
            let [a, b, c, d] = mtu.to_be_bytes();
            [kind, code, 0xab, 0xcd, a, b, c, d]
        };
        assert_eq!(reported_mtu::<V4>(message(3, 4, 1400)), Some(1350));
        assert_eq!(
            reported_mtu::<V4>(message(3, 4, 0x00ff_0578)),
            Some(1350),
            "length of the quote (RFC 4884)"
        );
        assert_eq!(reported_mtu::<V4>(message(3, 4, 68)), Some(502));
        assert_eq!(reported_mtu::<V6>(message(2, 0, 1400)), Some(1330));
        assert_eq!(reported_mtu::<V6>(message(2, 0, 600)), Some(1210));
        for (kind, code) in [(3, 3), (11, 0), (2, 0)] {
            assert_eq!(reported_mtu::<V4>(message(kind, code, 1400)), None);
        }
        for (kind, code) in [(1, 4), (3, 4), (2, 1)] {
            assert_eq!(reported_mtu::<V6>(message(kind, code, 1400)), None);
        }
        assert_eq!(reported_mtu::<V4>(message(3, 4, 0)), None);
        assert_eq!(reported_mtu::<V6>(message(2, 0, 0x0001_0578)), None);
    }

    #[test]
    fn ports_spread_over_a_range_of_their_own() {
        assert_eq!(port(0).get(), 0x8000);
        assert_eq!(port(u32::MAX).get(), 0xbfff);
        assert!(port(u32::MAX).get() < SNAT_PORT_MIN);
        assert_ne!(port(0x1234_0000), port(0x4321_0000));
    }

    /// E5: the overheads are those by which the agent lowers the Pods' MTU.
    #[test]
    fn overheads_are_those_of_the_kernel() {
        assert_eq!((OVERHEAD_V4, OVERHEAD_V6), (50, 70));
    }

    #[test]
    fn congestion_is_not_invented_on_the_way_in() {
        assert_eq!([0, 1, 2, 3].map(ecn), [0, 1, 2, ECT0]);
    }
}
