//! The IPv6 header and its chain of extension headers.

use quilla_abi::DropReason;

use crate::embedded::Embedded;
use crate::frame::{Frame, HEADERS};
use crate::headers::{Headers, Part};
use crate::protocol::ip;

const FIXED: u32 = 40;
/// Longer chains are not followed.
const MAX_EXTENSIONS: usize = 8;

/// Reads the header at `at` and follows its extensions.
#[inline(always)]
pub(crate) fn network<P: Frame + ?Sized>(
    frame: &P,
    at: u32,
    headers: &mut Headers<[u8; 16]>,
) -> Result<(), DropReason> {
    let ip: [u8; 8] = frame.bytes(at)?;
    if ip[0] >> 4 != 6 {
        return Err(DropReason::BadIpHeader);
    }
    headers.key.src = frame.bytes(at.wrapping_add(8))?;
    headers.key.dst = frame.bytes(at.wrapping_add(24))?;
    headers.key.proto = ip[6];
    headers.hop_limit = ip[7];
    headers.transport = at.wrapping_add(FIXED);
    headers.end = headers.transport.wrapping_add(u32::from(u16::from_be_bytes([ip[4], ip[5]])));
    if headers.end > frame.len() {
        return Err(DropReason::Truncated);
    }
    extensions(frame, headers)
}

/// Moves `proto` and `transport` to the header behind the chain.
#[inline(always)]
fn extensions<P: Frame + ?Sized>(frame: &P, headers: &mut Headers<[u8; 16]>) -> Result<(), DropReason> {
    for _ in 0..MAX_EXTENSIONS {
        frame.settle();
        match headers.key.proto {
            ip::HOP_BY_HOP | ip::ROUTING | ip::DESTINATION | ip::AUTHENTICATION => skip(frame, headers)?,
            ip::FRAGMENT => return fragment(frame, headers),
            _ => return Ok(()),
        }
    }
    if is_extension(headers.key.proto) { Err(DropReason::ExtensionHeaders) } else { Ok(()) }
}

/// Steps over a header that tells its own length.
#[inline(always)]
fn skip<P: Frame + ?Sized>(frame: &P, headers: &mut Headers<[u8; 16]>) -> Result<(), DropReason> {
    let [next, length, _, segments_left] = extension(frame, headers)?;
    if headers.key.proto == ip::ROUTING && segments_left != 0 {
        return Err(DropReason::SourceRoute);
    }
    let length = if headers.key.proto == ip::AUTHENTICATION {
        (u32::from(length) + 2) * 4
    } else {
        (u32::from(length) + 1) * 8
    };
    headers.transport = headers.transport.wrapping_add(length);
    if headers.transport > headers.end {
        return Err(DropReason::Truncated);
    }
    headers.key.proto = next;
    Ok(())
}

/// The fragment header, which must be the last of the chain: what follows in a later fragment is not a header at all.
#[inline(always)]
fn fragment<P: Frame + ?Sized>(frame: &P, headers: &mut Headers<[u8; 16]>) -> Result<(), DropReason> {
    let [next, _, high, low] = extension(frame, headers)?;
    if is_extension(next) {
        return Err(DropReason::ExtensionHeaders);
    }
    let bits = u16::from_be_bytes([high, low]);
    headers.id = u32::from_be_bytes(frame.bytes(headers.transport.wrapping_add(4))?);
    headers.position = u32::from(bits & 0xfff8);
    headers.part = match (headers.position, bits & 1) {
        (0, 0) => Part::Whole,
        (0, _) => Part::First,
        _ => Part::Later,
    };
    headers.transport = headers.transport.wrapping_add(8);
    headers.key.proto = next;
    Ok(())
}

/// The first four bytes of an extension header, which is at least eight bytes long.
#[inline(always)]
fn extension<P: Frame + ?Sized>(frame: &P, headers: &Headers<[u8; 16]>) -> Result<[u8; 4], DropReason> {
    if headers.transport.wrapping_add(8) > headers.end {
        return Err(DropReason::Truncated);
    }
    if headers.transport.wrapping_add(8) > HEADERS {
        return Err(DropReason::ExtensionHeaders);
    }
    frame.bytes(headers.transport)
}

#[inline(always)]
fn is_extension(proto: u8) -> bool {
    matches!(proto, ip::HOP_BY_HOP | ip::ROUTING | ip::DESTINATION | ip::AUTHENTICATION | ip::FRAGMENT)
}

/// Reads the header of a packet inside an ICMP error. Packets with extension headers are nobody's we translate.
#[inline(always)]
pub(crate) fn embedded<P: Frame + ?Sized>(
    frame: &P,
    embedded: &mut Embedded<[u8; 16]>,
) -> Result<u32, DropReason> {
    let at = embedded.network;
    let ip: [u8; 8] = frame.bytes(at)?;
    if ip[0] >> 4 != 6 {
        return Err(DropReason::BadIpHeader);
    }
    embedded.key.src = frame.bytes(at.wrapping_add(8))?;
    embedded.key.dst = frame.bytes(at.wrapping_add(24))?;
    embedded.key.proto = ip[6];
    Ok(at.wrapping_add(FIXED))
}
