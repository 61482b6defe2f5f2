//! Deliberate faults, applied to a correct frame.

/// What is wrong with the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// IPv4 header checksum off by one bit.
    HeaderChecksum,
    /// TCP, UDP or ICMP checksum off by one bit.
    TransportChecksum,
    /// UDP checksum zero: allowed in IPv4, not in IPv6.
    NoUdpChecksum,
    /// Only the pseudo header is summed, as a local sender leaves it for the device to finish.
    PartialChecksum,
    /// IP version nibble.
    Version(u8),
    /// IPv4 header length in units of four bytes.
    Ihl(u8),
    /// IPv4 total length, or IPv6 payload length.
    Length(u16),
    /// TCP data offset in units of four bytes.
    DataOffset(u8),
    /// UDP length.
    UdpLength(u16),
    /// The frame ends after so many bytes.
    Truncate(usize),
    /// So many bytes of padding after the end of the packet.
    Padding(usize),
}
