//! From the bytes of a frame to its tuple: the network header by family, the transport header once for both.
//!
//! A packet is judged by what it is, not by what its headers claim (E1): every length is checked against the frame
//! before a byte behind it is believed.

use quilla_abi::flow::FlowKey;
use quilla_abi::{Be16, DropReason};

use crate::family::Family;
use crate::frame::{Frame, HEADERS};
use crate::protocol::{ETHERNET, ip};

/// Which part of a datagram the packet is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    #[default]
    Whole,
    /// The first fragment, with the transport header.
    First,
    /// A later fragment, without one.
    Later,
}

/// What an ICMP message is to the data path.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Message {
    /// Not ICMP.
    #[default]
    None,
    /// Starts a flow that can be translated.
    EchoRequest,
    /// Answers one.
    EchoReply,
    /// Speaks about a packet that it embeds.
    Error,
    /// IPv6 neighbour discovery.
    Neighbour,
    /// IPv6 multicast listener discovery.
    Listener,
    /// Anything else.
    Other,
}

/// Everything the data path wants to know of a packet's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<A> {
    /// The tuple, in the scope of the cluster.
    pub key: FlowKey<A>,
    /// Bytes from the IP header on.
    pub length: u32,
    /// Identification, for fragments.
    pub id: u32,
    /// Offset of the transport header in the frame.
    pub transport: u32,
    /// Offset of the end of the packet in the frame; padding may follow.
    pub end: u32,
    /// Offset of a later fragment's bytes in the datagram.
    pub position: u32,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TCP flags, 0 for others.
    pub tcp: u8,
    /// Which fragment.
    pub part: Part,
    /// What an ICMP message is.
    pub message: Message,
    /// ICMP type, 0 for others.
    pub kind: u8,
    /// Always 0.
    pub pad: [u8; 3],
}

/// Length of the fixed TCP header.
const TCP: u32 = 20;
/// Length of a UDP header, and of the fixed part of ICMP.
const UDP: u32 = 8;
/// A first fragment ends on a multiple of 8: later ones that begin before this overlap the TCP header (RFC 1858).
const TCP_FRAGMENT: u32 = 24;

/// Reads all headers of an IP packet in an Ethernet frame.
///
/// The result is written through a reference and not returned: in the kernel it is memory that the verifier does not
/// follow, so that what comes after the parser is verified once and not once for each way through it.
#[inline(always)]
pub fn parse<F: Family, P: Frame + ?Sized>(
    frame: &P,
    headers: &mut Headers<F::Addr>,
) -> Result<(), DropReason> {
    *headers = Headers::default();
    F::network(frame, ETHERNET, headers)?;
    frame.settle();
    if headers.transport > HEADERS {
        return Err(DropReason::ExtensionHeaders);
    }
    headers.length = headers.end.wrapping_sub(ETHERNET);
    match headers.key.proto {
        ip::TCP => tcp(frame, headers)?,
        ip::UDP => udp(frame, headers)?,
        proto if proto == F::ICMP => icmp::<F, P>(frame, headers)?,
        _ => {}
    }
    frame.settle();
    Ok(())
}

/// Fails unless the packet holds `size` bytes of transport header. The bytes that it holds.
#[inline(always)]
fn need<A>(headers: &Headers<A>, size: u32) -> Result<u32, DropReason> {
    let left = headers.end.wrapping_sub(headers.transport);
    if left >= size {
        Ok(left)
    } else if headers.part == Part::First {
        Err(DropReason::Fragment)
    } else {
        Err(DropReason::Truncated)
    }
}

#[inline(always)]
fn tcp<A, P: Frame + ?Sized>(frame: &P, headers: &mut Headers<A>) -> Result<(), DropReason> {
    if headers.part == Part::Later {
        return if headers.position < TCP_FRAGMENT { Err(DropReason::Fragment) } else { Ok(()) };
    }
    let left = need(headers, TCP)?;
    let bytes: [u8; 14] = frame.bytes(headers.transport)?;
    let length = u32::from(bytes[12] >> 4) * 4;
    if length < TCP || length > left {
        return Err(DropReason::BadTransportHeader);
    }
    set_ports(headers, [bytes[0], bytes[1], bytes[2], bytes[3]]);
    headers.tcp = bytes[13];
    Ok(())
}

#[inline(always)]
fn udp<A, P: Frame + ?Sized>(frame: &P, headers: &mut Headers<A>) -> Result<(), DropReason> {
    if headers.part == Part::Later {
        return Ok(());
    }
    let left = need(headers, UDP)?;
    let bytes: [u8; 6] = frame.bytes(headers.transport)?;
    let length = u32::from(u16::from_be_bytes([bytes[4], bytes[5]]));
    // The length is that of the datagram, of which a first fragment is only a part.
    if length < UDP || (length > left && headers.part == Part::Whole) {
        return Err(DropReason::BadTransportHeader);
    }
    set_ports(headers, [bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(())
}

#[inline(always)]
fn icmp<F: Family, P: Frame + ?Sized>(frame: &P, headers: &mut Headers<F::Addr>) -> Result<(), DropReason> {
    if headers.part == Part::Later {
        return Ok(());
    }
    need(headers, UDP)?;
    let bytes: [u8; 6] = frame.bytes(headers.transport)?;
    let id = Be16::from_wire(u16::from_ne_bytes([bytes[4], bytes[5]]));
    headers.kind = bytes[0];
    headers.message = F::message(bytes[0]);
    match headers.message {
        Message::EchoRequest => headers.key.sport = id,
        Message::EchoReply => headers.key.dport = id,
        // Neither may come in pieces: nothing could be checked, and nobody sends them so (RFC 6980).
        Message::Error | Message::Neighbour | Message::Listener if headers.part == Part::First => {
            return Err(DropReason::Fragment);
        }
        _ => {}
    }
    Ok(())
}

#[inline(always)]
fn set_ports<A>(headers: &mut Headers<A>, bytes: [u8; 4]) {
    headers.key.sport = Be16::from_wire(u16::from_ne_bytes([bytes[0], bytes[1]]));
    headers.key.dport = Be16::from_wire(u16::from_ne_bytes([bytes[2], bytes[3]]));
}

/// Whether fragments of the protocol share ports that only the first one carries.
#[inline(always)]
pub fn has_ports<F: Family>(proto: u8) -> bool {
    proto == ip::TCP || proto == ip::UDP || proto == F::ICMP
}

#[cfg(test)]
mod tests;
