//! Transport headers, encoded with zero in the checksum's place.

use super::number;

/// TCP flag bits.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise.
    pub const SYN: u8 = 2;
    /// Reset.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// Acknowledgement is valid.
    pub const ACK: u8 = 16;
    /// Urgent pointer is valid.
    pub const URG: u8 = 32;

    pub(in crate::packet) const NAMES: [(u8, &str); 6] =
        [(SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK"), (URG, "URG")];
}

#[derive(Clone, Debug)]
pub(super) enum Transport {
    Tcp { flags: u8, seq: u32, ack: u32, window: u16, options: Vec<u8> },
    Udp,
    Icmp { kind: u8, code: u8, rest: [u8; 4] },
    Other(u8),
}

impl Transport {
    pub(super) fn protocol(&self, v4: bool) -> u8 {
        match self {
            Self::Tcp { .. } => number::TCP,
            Self::Udp => number::UDP,
            Self::Icmp { .. } if v4 => number::ICMP,
            Self::Icmp { .. } => number::ICMPV6,
            Self::Other(protocol) => *protocol,
        }
    }

    /// Where in the segment the checksum is.
    pub(super) fn checksum_at(&self) -> Option<usize> {
        match self {
            Self::Tcp { .. } => Some(16),
            Self::Udp => Some(6),
            Self::Icmp { .. } => Some(2),
            Self::Other(_) => None,
        }
    }

    pub(super) fn encode(&self, source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
        let ports = u32::from(source) << 16 | u32::from(destination);
        let mut segment = Vec::new();
        match self {
            Self::Tcp { flags, seq, ack, window, options } => {
                let words = 5 + options.len().div_ceil(4);
                segment.extend(ports.to_be_bytes());
                segment.extend(seq.to_be_bytes());
                segment.extend(ack.to_be_bytes());
                segment.extend([u8::try_from(words).expect("at most 40 bytes of options") << 4, *flags]);
                segment.extend(window.to_be_bytes());
                segment.extend([0; 4]);
                segment.extend(options);
                segment.resize(words * 4, 0);
            }
            Self::Udp => {
                let length = u16::try_from(8 + payload.len()).expect("payload fits a datagram");
                segment.extend(ports.to_be_bytes());
                segment.extend(length.to_be_bytes());
                segment.extend([0; 2]);
            }
            Self::Icmp { kind, code, rest } => {
                segment.extend([*kind, *code, 0, 0]);
                segment.extend(rest);
            }
            Self::Other(_) => {}
        }
        segment.extend(payload);
        segment
    }
}
