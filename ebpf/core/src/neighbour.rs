//! What a Pod may say about addresses on its link: ARP, neighbour discovery and listener reports (E19).

use quilla_abi::DropReason;
use quilla_abi::Mac;
use quilla_abi::endpoint::{Interface, flag};

use crate::family::{Family, V6};

/// Bytes of an ARP packet for IPv4 over Ethernet.
pub const ARP: usize = 28;

const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const LISTENER_QUERY: u8 = 130;

/// Whether the type is neighbour discovery, not listener discovery.
#[inline(always)]
pub const fn is_discovery(kind: u8) -> bool {
    matches!(kind, 133..=137)
}

/// Whether the message names a target address behind its first 8 bytes.
#[inline(always)]
pub const fn has_target(kind: u8) -> bool {
    matches!(kind, NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT)
}

/// A Pod may ask, and may answer about itself.
#[inline(always)]
pub fn arp(packet: &[u8; ARP], interface: &Interface) -> Result<(), DropReason> {
    let ethernet_and_ipv4 = packet[..6] == [0, 1, 8, 0, 6, 4];
    let operation = u16::from_be_bytes([packet[6], packet[7]]);
    let sender_mac: Mac = [packet[8], packet[9], packet[10], packet[11], packet[12], packet[13]];
    let sender: [u8; 4] = [packet[14], packet[15], packet[16], packet[17]];
    let honest = ethernet_and_ipv4
        && matches!(operation, 1 | 2)
        && interface.flags & flag::IPV4 != 0
        && sender_mac == interface.pod_mac
        && sender == interface.ipv4;
    if honest { Ok(()) } else { Err(DropReason::ForgedNeighbour) }
}

/// A neighbour discovery message as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Discovery {
    /// ICMP type.
    pub kind: u8,
    /// Source of the packet.
    pub src: [u8; 16],
    /// The address a solicitation or an advertisement is about.
    pub target: [u8; 16],
    /// It must be 255: nothing has routed the packet.
    pub hop_limit: u8,
}

/// A Pod may solicit anybody and advertise itself; it is no router.
#[inline(always)]
pub fn discovery(message: &Discovery, interface: &Interface) -> Result<(), DropReason> {
    let own = V6::of_interface(interface) == Some(message.src);
    let local = V6::is_link_local(message.src);
    let honest = message.hop_limit == 255
        && match message.kind {
            ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION => own || local || message.src == [0; 16],
            NEIGHBOUR_ADVERTISEMENT => {
                let about_itself = V6::of_interface(interface) == Some(message.target);
                (own || local) && (about_itself || (local && message.target == message.src))
            }
            _ => false,
        };
    if honest { Ok(()) } else { Err(DropReason::ForgedNeighbour) }
}

/// Reports are harmless and end at the host; only routers query.
#[inline(always)]
pub fn listener(kind: u8, src: [u8; 16], interface: &Interface) -> Result<(), DropReason> {
    let own = V6::of_interface(interface) == Some(src);
    if kind != LISTENER_QUERY && (own || V6::is_link_local(src) || src == [0; 16]) {
        Ok(())
    } else {
        Err(DropReason::ForgedNeighbour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    const LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    const OTHER: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    fn interface() -> Interface {
        Interface {
            id: 1,
            pod_mac: [2, 0, 0, 0, 0, 9],
            flags: flag::IPV4 | flag::IPV6,
            ipv4: [10, 0, 0, 9],
            ipv6: OWN,
        }
    }

    fn request() -> [u8; ARP] {
        let mut packet = [0; ARP];
        packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        packet[8..14].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        packet[14..18].copy_from_slice(&[10, 0, 0, 9]);
        packet[24..].copy_from_slice(&[10, 0, 0, 1]);
        packet
    }

    /// E19: every byte that says who the sender is must be true.
    #[test]
    fn arp_is_honest_or_dropped() {
        assert_eq!(arp(&request(), &interface()), Ok(()));
        for at in (0..6).chain(8..18) {
            let mut forged = request();
            forged[at] ^= 1;
            assert_eq!(arp(&forged, &interface()), Err(DropReason::ForgedNeighbour), "byte {at}");
        }
        let mut inverse = request();
        inverse[7] = 8;
        assert_eq!(arp(&inverse, &interface()), Err(DropReason::ForgedNeighbour));
        let no_ipv4 = Interface { flags: flag::IPV6, ..interface() };
        assert_eq!(arp(&request(), &no_ipv4), Err(DropReason::ForgedNeighbour));
    }

    /// E19: forged neighbour discovery.
    #[test]
    fn discovery_is_about_oneself() {
        let message = |kind, src, target| Discovery { kind, src, target, hop_limit: 255 };
        let honest = [
            message(135, OWN, OTHER),
            message(135, LOCAL, OTHER),
            message(135, [0; 16], OWN),
            message(136, OWN, OWN),
            message(136, LOCAL, OWN),
            message(136, LOCAL, LOCAL),
            message(133, LOCAL, [0; 16]),
        ];
        for message in honest {
            assert_eq!(discovery(&message, &interface()), Ok(()), "{message:?}");
            let routed = Discovery { hop_limit: 254, ..message };
            assert!(discovery(&routed, &interface()).is_err(), "{routed:?}");
        }
        let forged = [
            message(135, OTHER, OWN),
            message(136, OWN, OTHER),
            message(136, OTHER, OTHER),
            message(136, LOCAL, OTHER),
            message(136, [0; 16], OWN),
            message(134, LOCAL, OWN),
            message(137, LOCAL, OWN),
        ];
        for message in forged {
            assert!(discovery(&message, &interface()).is_err(), "{message:?}");
        }
    }

    #[test]
    fn listeners_report_and_never_query() {
        assert_eq!(listener(143, LOCAL, &interface()), Ok(()));
        assert!(listener(130, LOCAL, &interface()).is_err());
        assert!(listener(143, OTHER, &interface()).is_err());
    }
}
