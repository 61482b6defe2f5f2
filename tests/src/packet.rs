//! Frames for tests: built from what they mean, decoded into named fields, compared with a readable difference.
//!
//! Every packet story and the specification's cases use it. Invariant: a frame is correct unless the test asked for
//! the fault by name, and the decoder shares no code with the data path under test.
//!
//! ```
//! use quilla_tests::packet::{Packet, decode, tcp};
//!
//! let frame = Packet::tcp("10.244.1.2:40000", "10.96.0.10:80").flags(tcp::SYN).ttl(63).build();
//! let decoded = decode(&frame);
//! assert_eq!(decoded.get("ipv4.ttl"), Some("63"));
//! assert_eq!(decoded.get("tcp.flags"), Some("SYN"));
//! ```

mod arp;
mod build;
mod checksum;
mod decode;
mod diff;
mod extension;
mod fault;
mod icmp;
mod transport;

pub use arp::Arp;
pub use build::{Endpoint, Packet};
pub use checksum::{fold, ones_complement_sum, pseudo_header_sum, transport_checksum};
pub use decode::{Decoded, Field, decode};
pub use diff::difference;
pub use extension::Extension;
pub use fault::Fault;
pub use icmp::IcmpError;
pub use transport::tcp;

/// `EtherType`s and protocol numbers by the names the decoder prints.
pub mod number {
    /// IPv4.
    pub const ETHERTYPE_IPV4: u16 = 0x0800;
    /// ARP.
    pub const ETHERTYPE_ARP: u16 = 0x0806;
    /// One VLAN tag.
    pub const ETHERTYPE_VLAN: u16 = 0x8100;
    /// IPv6.
    pub const ETHERTYPE_IPV6: u16 = 0x86dd;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// `ICMPv6`.
    pub const ICMPV6: u8 = 58;
}

/// Compares two frames field by field and panics with the fields that differ.
#[macro_export]
macro_rules! assert_frames_eq {
    ($expected:expr, $actual:expr $(,)?) => {
        if let Some(difference) = $crate::packet::difference($expected, $actual) {
            panic!("frames differ:\n{difference}");
        }
    };
}

#[cfg(test)]
mod tests {
    use super::{Arp, Extension, Fault, IcmpError, Packet, decode, difference, tcp};

    fn both_families() -> [Packet; 4] {
        [
            Packet::tcp("10.0.0.1:1000", "10.0.0.2:80").flags(tcp::SYN | tcp::ACK).payload(b"odd"),
            Packet::udp("10.0.0.1:1000", "10.0.0.2:53").payload(b"question"),
            Packet::tcp("[fd00::1]:1000", "[fd00::2]:80").payload(b"odd"),
            Packet::udp("[fd00::1]:1000", "[fd00::2]:53").payload(b"even"),
        ]
    }

    #[test]
    fn checksums_are_right_unless_asked_otherwise() {
        for packet in both_families() {
            let decoded = decode(&packet.clone().build());
            for (name, value) in decoded.fields().filter(|(name, _)| name.ends_with("checksum")) {
                assert!(value.ends_with("good"), "{name}: {value}");
            }
            let decoded = decode(&packet.fault(Fault::TransportChecksum).build());
            let wrong = decoded.fields().find(|(_, value)| value.contains("wrong"));
            assert!(wrong.is_some(), "{decoded}");
        }
    }

    /// E7: no checksum stays zero in IPv4, and a computed zero is sent as all ones.
    #[test]
    fn udp_without_checksum() {
        let frame = Packet::udp("10.0.0.1:1", "10.0.0.2:2").fault(Fault::NoUdpChecksum).build();
        assert_eq!(decode(&frame).get("udp.checksum"), Some("0x0000 none"));
    }

    /// E2: options and extension headers come before the ports, wherever they end.
    #[test]
    fn options_and_extension_headers() {
        let frame = Packet::tcp("10.0.0.1:1000", "10.0.0.2:80").ip_options(&[1, 1, 1]).build();
        let decoded = decode(&frame);
        assert_eq!((decoded.get("ipv4.ihl"), decoded.get("tcp.dport")), (Some("6"), Some("80")), "{decoded}");

        let frame = Packet::tcp("[fd00::1]:1000", "[fd00::2]:80")
            .extension(Extension::HopByHop(vec![]))
            .extension(Extension::Destination(vec![0; 12]))
            .extension(Extension::Fragment { id: 7, offset: 0, more: true })
            .build();
        let decoded = decode(&frame);
        assert_eq!(
            (decoded.get("fragment.id"), decoded.get("tcp.dport")),
            (Some("7"), Some("80")),
            "{decoded}"
        );
    }

    #[test]
    fn embedded_packets_are_decoded() {
        for (source, inner) in ["10.0.0.9", "fd00::9"]
            .into_iter()
            .zip([Packet::udp("10.0.0.1:1000", "10.0.0.2:53"), Packet::udp("[fd00::1]:1000", "[fd00::2]:53")])
        {
            let to = inner.source().ip();
            let source = source.parse().expect("address");
            let frame = Packet::icmp_error(source, to, IcmpError::TooBig { mtu: 1400 }, &inner).build();
            let decoded = decode(&frame);
            assert_eq!(decoded.get("embedded.udp.dport"), Some("53"), "{decoded}");
            assert_eq!(decoded.get("embedded.udp.checksum").map(|sum| sum.ends_with("good")), Some(true));
        }
    }

    #[test]
    fn vlan_arp_and_overlay() {
        let frame = Packet::udp("10.0.0.1:1", "10.0.0.2:2").vlan(100).build();
        assert_eq!(decode(&frame).get("vlan.id"), Some("100"));
        let request = Arp::request([2, 0, 0, 0, 0, 1], "10.0.0.1", "10.0.0.2").build();
        assert_eq!(decode(&request).get("arp.operation"), Some("request"));
        let inner = Packet::tcp("10.244.0.1:1", "10.244.1.1:2");
        let frame = Packet::vxlan("192.168.0.1:5000", "192.168.0.2:8472", 7, &inner).build();
        let decoded = decode(&frame);
        assert_eq!(decoded.get("vxlan.vni"), Some("7"));
        assert_eq!(decoded.get("inner.ipv4.dst"), Some("10.244.1.1"), "{decoded}");
    }

    /// E1: every prefix of every frame decodes to something, and the faults are what they say.
    #[test]
    fn lying_and_truncated_frames_are_decoded() {
        for packet in both_families() {
            let frame = packet.build();
            for length in 0..frame.len() {
                assert!(!decode(&frame[..length]).to_string().is_empty());
            }
        }
        let frame = Packet::tcp("10.0.0.1:1", "10.0.0.2:2").fault(Fault::Ihl(3)).build();
        assert_eq!(decode(&frame).get("ipv4.ihl"), Some("3"));
        let frame = Packet::tcp("10.0.0.1:1", "10.0.0.2:2").fault(Fault::Truncate(20)).build();
        assert_eq!(frame.len(), 20);
    }

    #[test]
    fn differences_name_the_field() {
        let packet = Packet::tcp("10.0.0.1:1000", "10.0.0.2:80");
        assert_eq!(difference(&packet.clone().build(), &packet.clone().build()), None);
        let text = difference(&packet.clone().build(), &packet.ttl(63).build()).expect("ttl differs");
        assert!(text.contains("ipv4.ttl"), "{text}");
        assert!(!text.contains("tcp.dport"), "{text}");
    }
}
