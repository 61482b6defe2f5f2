//! IPv6 extension headers.

/// One extension header, in the order in which the test adds them.
#[derive(Clone, Debug)]
pub enum Extension {
    /// Hop-by-hop options: the option bytes, padded here to a multiple of eight.
    HopByHop(Vec<u8>),
    /// Destination options.
    Destination(Vec<u8>),
    /// Routing header: type-specific data after type 0 and no segments left.
    Routing(Vec<u8>),
    /// Fragment header; the offset in bytes, a multiple of eight.
    Fragment {
        /// Identification.
        id: u32,
        /// Offset in bytes.
        offset: u16,
        /// More fragments follow.
        more: bool,
    },
    /// Authentication header with this check value.
    Authentication(Vec<u8>),
}

impl Extension {
    /// Protocol number of this header.
    pub(super) fn number(&self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Routing(_) => 43,
            Self::Fragment { .. } => 44,
            Self::Authentication(_) => 51,
            Self::Destination(_) => 60,
        }
    }

    pub(super) fn encode(&self, next: u8) -> Vec<u8> {
        match self {
            Self::HopByHop(options) | Self::Destination(options) => {
                with_length(next, &padded_options(options))
            }
            Self::Routing(data) => {
                let mut body = vec![0, 0];
                body.extend(data);
                with_length(next, &body)
            }
            Self::Fragment { id, offset, more } => {
                let offset = (offset & !7) | u16::from(*more);
                let mut header = vec![next, 0];
                header.extend(offset.to_be_bytes());
                header.extend(id.to_be_bytes());
                header
            }
            Self::Authentication(value) => authentication(next, value),
        }
    }
}

/// Next header, length in units of eight bytes beyond the first eight, and the body padded to that.
fn with_length(next: u8, body: &[u8]) -> Vec<u8> {
    let total = (body.len() + 2).next_multiple_of(8);
    let units = u8::try_from(total / 8 - 1).expect("extension header of at most 2048 bytes");
    let mut header = vec![next, units];
    header.extend(body);
    header.resize(total, 0);
    header
}

/// `PadN` fills the place up to the multiple of eight; a single byte is `Pad1`, which is zero.
fn padded_options(options: &[u8]) -> Vec<u8> {
    let missing = (options.len() + 2).next_multiple_of(8) - options.len() - 2;
    let mut padded = options.to_vec();
    if missing >= 2 {
        padded.extend([1, u8::try_from(missing - 2).expect("at most five")]);
        padded.resize(options.len() + missing, 0);
    }
    padded
}

/// Its length counts units of four bytes beyond the first eight.
fn authentication(next: u8, value: &[u8]) -> Vec<u8> {
    let total = (12 + value.len()).next_multiple_of(8);
    let units = u8::try_from(total / 4 - 2).expect("authentication header of at most 1024 bytes");
    let mut header = vec![next, units, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    header.extend(value);
    header.resize(total, 0);
    header
}
