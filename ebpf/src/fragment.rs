//! Ports of fragments: remembered from the first one, recalled for the rest (E3).
//!
//! In order only: a fragment that comes before its first is dropped. The first one is remembered after it was let
//! through, so that a forged one cannot speak for another sender's datagram.

use quilla_abi::DropReason;
use quilla_abi::fragment::{Fragment, FragmentKey};
use quilla_ebpf_core::Headers;
use quilla_ebpf_core::headers::{Part, has_ports};

use crate::helper::{self, ANY};
use crate::maps::Maps;

/// Nobody waits longer for the rest of a datagram (seconds).
const TIMEOUT: u32 = 30;

fn key<F: Maps>(headers: &Headers<F::Addr>) -> FragmentKey<F::Addr> {
    FragmentKey {
        src: headers.key.src,
        dst: headers.key.dst,
        id: headers.id,
        proto: headers.key.proto,
        scope: headers.key.scope,
        pad: [0; 2],
    }
}

/// Completes the tuple of a later fragment.
#[inline(always)]
pub(crate) fn recall<F: Maps>(headers: &mut Headers<F::Addr>) -> Result<(), DropReason> {
    if headers.part != Part::Later || !has_ports::<F>(headers.key.proto) {
        return Ok(());
    }
    let known = helper::find_recent(F::fragments(), &key::<F>(headers)).ok_or(DropReason::Fragment)?;
    if helper::now().wrapping_sub(known.seen) > TIMEOUT * helper::hz() {
        return Err(DropReason::Fragment);
    }
    headers.key.sport = known.sport;
    headers.key.dport = known.dport;
    Ok(())
}

/// Remembers the ports of a first fragment. Its loss costs only the datagram.
#[inline(always)]
pub(crate) fn remember<F: Maps>(headers: &Headers<F::Addr>) {
    if headers.part != Part::First || !has_ports::<F>(headers.key.proto) {
        return;
    }
    let ports = Fragment { sport: headers.key.sport, dport: headers.key.dport, seen: helper::now() };
    let (Ok(()) | Err(_)) = helper::insert(F::fragments(), &key::<F>(headers), &ports, ANY);
}
