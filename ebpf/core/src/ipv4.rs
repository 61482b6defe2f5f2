//! The IPv4 header and its options.

use quilla_abi::DropReason;

use crate::checksum;
use crate::embedded::Embedded;
use crate::family::HOP_LIMIT;
use crate::frame::Frame;
use crate::headers::{Headers, Part};

const FIXED: u32 = 20;
/// More entries than this in the options are nobody's honest packet.
const MAX_OPTIONS: usize = 10;

/// Options that tell routers where to go.
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// Reads the header at `at`.
#[inline(always)]
pub(crate) fn network<P: Frame + ?Sized>(
    frame: &P,
    at: u32,
    headers: &mut Headers<[u8; 4]>,
) -> Result<(), DropReason> {
    let ip: [u8; FIXED as usize] = frame.bytes(at)?;
    let header = u32::from(ip[0] & 0x0f) * 4;
    let total = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    if ip[0] >> 4 != 4 || header < FIXED || total < header {
        return Err(DropReason::BadIpHeader);
    }
    headers.end = at.wrapping_add(total);
    if headers.end > frame.len() {
        return Err(DropReason::Truncated);
    }
    let fragment = u32::from(u16::from_be_bytes([ip[6], ip[7]]));
    headers.position = (fragment & 0x1fff) * 8;
    headers.part = if headers.position != 0 {
        Part::Later
    } else if fragment & 0x2000 != 0 {
        Part::First
    } else {
        Part::Whole
    };
    // As words, in which the kernel reads them again to look the tuple up.
    let word = |at: usize| u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]).to_ne_bytes();
    headers.key.src = word(12);
    headers.key.dst = word(16);
    headers.key.proto = ip[9];
    headers.id = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
    headers.hop_limit = ip[8];
    headers.transport = at.wrapping_add(FIXED);
    let end = at.wrapping_add(header);
    options(frame, end, headers)?;
    headers.transport = end;
    Ok(())
}

/// The header up to its addresses, for a packet that we make; it may not be fragmented.
#[inline(always)]
pub(crate) fn preamble(proto: u8, payload: u16, addresses: u32) -> [u8; 12] {
    let [high, low] = payload.wrapping_add(FIXED as u16).to_be_bytes();
    let words = [[4 << 4 | 5, 0], [high, low], [0x40, 0], [HOP_LIMIT, proto]];
    let mut sum = addresses;
    for word in words {
        sum = checksum::add(sum, u32::from(u16::from_ne_bytes(word)));
    }
    let [a, b] = (!checksum::fold(sum)).to_ne_bytes();
    [4 << 4 | 5, 0, high, low, 0, 0, 0x40, 0, HOP_LIMIT, proto, a, b]
}

/// Walks the options: source routes are refused, everything else is the receiver's business.
#[inline(always)]
fn options<P: Frame + ?Sized>(frame: &P, end: u32, headers: &mut Headers<[u8; 4]>) -> Result<(), DropReason> {
    for _ in 0..MAX_OPTIONS {
        frame.settle();
        let at = headers.transport;
        if at >= end {
            break;
        }
        let [kind] = frame.bytes(at)?;
        match kind {
            0 => return Ok(()),
            1 => headers.transport = at.wrapping_add(1),
            LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => return Err(DropReason::SourceRoute),
            _ => {
                if at.wrapping_add(1) >= end {
                    return Err(DropReason::BadIpHeader);
                }
                let [length] = frame.bytes(at.wrapping_add(1))?;
                if length < 2 {
                    return Err(DropReason::BadIpHeader);
                }
                headers.transport = at.wrapping_add(u32::from(length));
            }
        }
    }
    if headers.transport == end { Ok(()) } else { Err(DropReason::BadIpHeader) }
}

/// Reads the header of a packet inside an ICMP error.
#[inline(always)]
pub(crate) fn embedded<P: Frame + ?Sized>(
    frame: &P,
    embedded: &mut Embedded<[u8; 4]>,
) -> Result<u32, DropReason> {
    let ip: [u8; FIXED as usize] = frame.bytes(embedded.network)?;
    let header = u32::from(ip[0] & 0x0f) * 4;
    if ip[0] >> 4 != 4 || header < FIXED {
        return Err(DropReason::BadIpHeader);
    }
    // Bytes of a later fragment are no ports.
    if u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff != 0 {
        return Err(DropReason::Fragment);
    }
    embedded.key.src = [ip[12], ip[13], ip[14], ip[15]];
    embedded.key.dst = [ip[16], ip[17], ip[18], ip[19]];
    embedded.key.proto = ip[9];
    Ok(embedded.network.wrapping_add(header))
}
