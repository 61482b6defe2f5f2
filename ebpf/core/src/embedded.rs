//! The packet inside an ICMP error: enough of it to find its flow, and what translating it does to the sums (E4).
//!
//! Called by the glue in `icmp`. Only the first 8 bytes of the embedded transport header are promised (RFC 792), and
//! its lengths describe a packet that is not there.

use quilla_abi::Be16;
use quilla_abi::DropReason;
use quilla_abi::flow::FlowKey;

use crate::checksum;
use crate::family::Family;
use crate::frame::Frame;
use crate::headers::{Headers, Message};
use crate::protocol::{ETHERNET, ip};

/// Bytes of an ICMP error before the packet it is about.
const ERROR: u32 = 8;

/// An embedded packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Embedded<A> {
    /// Its tuple, as it was where the error arose.
    pub key: FlowKey<A>,
    /// Offset of its IP header in the frame.
    pub network: u32,
    /// Offset of its ports, or of its echo identifier.
    pub ports: u32,
    /// Offset of its transport checksum; 0 if it is not among the bytes that were kept.
    pub sum: u32,
    /// What it is, if it is ICMP.
    pub message: Message,
    /// Always 0.
    pub pad: [u8; 3],
}

/// Reads the packet that the error in `headers` is about.
#[inline(always)]
pub fn parse<F: Family, P: Frame + ?Sized>(
    frame: &P,
    headers: &Headers<F::Addr>,
    embedded: &mut Embedded<F::Addr>,
) -> Result<(), DropReason> {
    *embedded = Embedded::default();
    embedded.network = headers.transport.wrapping_add(ERROR);
    embedded.key.scope = headers.key.scope;
    let transport = F::embedded(frame, embedded)?;
    if transport.wrapping_add(8) > headers.end || transport < ETHERNET {
        return Err(DropReason::Truncated);
    }
    let bytes: [u8; 8] = frame.bytes(transport)?;
    let port = |at: usize| Be16::from_wire(u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
    match embedded.key.proto {
        ip::TCP | ip::UDP => {
            embedded.key.sport = port(0);
            embedded.key.dport = port(2);
            embedded.ports = transport;
            let sum = transport.wrapping_add(if embedded.key.proto == ip::TCP { 16 } else { 6 });
            embedded.sum = if sum.wrapping_add(2) <= headers.end { sum } else { 0 };
        }
        proto if proto == F::ICMP => {
            embedded.message = F::message(bytes[0]);
            match embedded.message {
                Message::EchoRequest => embedded.key.sport = port(4),
                Message::EchoReply => embedded.key.dport = port(4),
                _ => return Err(DropReason::NoFlow),
            }
            embedded.ports = transport.wrapping_add(4);
            embedded.sum = transport.wrapping_add(2);
        }
        _ => {}
    }
    frame.settle();
    Ok(())
}

/// What a new tuple does to the sums of an embedded packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Difference over the addresses, for the embedded IPv4 header.
    pub addresses: u32,
    /// Difference over what the embedded transport checksum covers.
    pub transport: u32,
    /// Difference over ports or identifier.
    pub ports: u32,
}

/// Compares the embedded tuple with what it shall be.
#[inline(always)]
pub fn change<F: Family>(old: &FlowKey<F::Addr>, new: &FlowKey<F::Addr>) -> Change {
    let sum = |key: &FlowKey<F::Addr>| checksum::add(F::sum(&key.src), F::sum(&key.dst));
    let pair = |key: &FlowKey<F::Addr>| u32::from(key.sport.wire()) + u32::from(key.dport.wire());
    let addresses = checksum::difference(sum(old), sum(new));
    let ports = checksum::difference(pair(old), pair(new));
    let covers_addresses = old.proto != F::ICMP || F::ICMP_PSEUDO_HEADER;
    let transport = if covers_addresses { checksum::add(addresses, ports) } else { ports };
    Change { addresses, transport, ports }
}
