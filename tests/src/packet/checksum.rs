//! The Internet checksum, the slow and obvious way (RFC 1071).

use std::net::IpAddr;

/// Sum of big-endian 16-bit words, an odd last byte padded with zero, carries not yet folded.
pub fn ones_complement_sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0))).sum()
}

/// Folds the carries in and complements: what goes into the header.
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// Checksum of a TCP, UDP or `ICMPv6` segment with its pseudo header; `segment` has zero in the checksum's place, or
/// the checksum itself, in which case a right one yields 0.
pub fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let addresses = octet_sum(source) + octet_sum(destination);
    fold(addresses + u64::from(protocol) + segment.len() as u64 + ones_complement_sum(segment))
}

/// What a sender leaves in the checksum's place when its device is to finish it: the pseudo header's sum.
pub fn pseudo_header_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u16 {
    !fold(octet_sum(source) + octet_sum(destination) + u64::from(protocol) + length as u64)
}

fn octet_sum(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => ones_complement_sum(&address.octets()),
        IpAddr::V6(address) => ones_complement_sum(&address.octets()),
    }
}
