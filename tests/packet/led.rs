//! S45: connections that a Service led to their backend when a Pod's socket was connected, as the Pod's device sees them.
//!
//! Each test run gives its frame a new socket. Its number cannot be chosen, but it can be foreseen: a CPU numbers sockets
//! one by one (`include/linux/cookie.h`, Linux 5.10). Others' sockets on the CPU are numbered, too: whether the run had one
//! of the numbers that were prepared is known afterwards, by the next number.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram;

use anyhow::{Context, Result, bail};
use quilla_abi::backend::Backend;
use quilla_abi::socket::{Frontend, SocketKey};
use quilla_abi::{Be16, DropReason, epoch};
use quilla_tests::packet::{Packet, tcp};
use rustix::net::sockopt::socket_cookie;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::answers::to_a;
use crate::ends::{refused, reset};
use crate::rig::{
    DEVICE_A, DEVICE_B, Family, HOST_MAC_B, Hook, MAC_B, Rig, Seen, TCP, Who, from_a, from_b, tell, v4, v6,
};

/// How many numbers a CPU takes at once.
const BATCH: u64 = 4096;
/// How many sockets others may make on this CPU before the test run does.
const AHEAD: u64 = 512;
/// How often others may make more.
const ATTEMPTS: u32 = 50;

/// Keeps the thread on its CPU.
pub(crate) struct Pinned(CpuSet);

impl Pinned {
    pub(crate) fn here() -> Result<Self> {
        let before = sched_getaffinity(None)?;
        let mut only = CpuSet::new();
        only.set(sched_getcpu());
        sched_setaffinity(None, &only)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The thread ends soon anyway.
        let (Ok(()) | Err(_)) = sched_setaffinity(None, &self.0);
    }
}

/// Does what makes a socket that a Service led to the backend. If others made so many sockets meanwhile that it may be
/// none, `forget` undoes it, and it is done again.
pub(crate) fn led<T>(
    rig: &mut Rig,
    backend: SocketAddr,
    mut act: impl FnMut(&mut Rig) -> Result<T>,
    mut forget: impl FnMut(&mut Rig) -> Result<()>,
) -> Result<T> {
    for _ in 0..ATTEMPTS {
        let last = lead(rig, backend)?;
        let done = act(rig)?;
        if next_number()? <= last {
            return Ok(done);
        }
        forget(rig)?;
    }
    bail!("others make sockets all the time")
}

/// The number of a new socket.
fn next_number() -> Result<u64> {
    Ok(socket_cookie(&UnixDatagram::unbound()?)?)
}

/// Makes the next sockets on this CPU ones that a Service led to the backend, those of test runs as well. The last of their
/// numbers.
fn lead(rig: &Rig, backend: SocketAddr) -> Result<u64> {
    let enough = |number: &Result<u64>| number.as_ref().map_or(true, |last| last % BATCH + AHEAD < BATCH);
    let first = (0..BATCH).map(|_| next_number()).find(enough).context("a batch with enough numbers")??;
    let (maps, port, last) = (rig.datapath.maps(), Be16::new(backend.port()), first + AHEAD);
    for number in first + 1..=last {
        let cookie = [number, number >> 32].map(|half| (half & 0xffff_ffff) as u32);
        match backend.ip() {
            IpAddr::V4(addr) => {
                let key = SocketKey { cookie, addr: addr.octets(), port, proto: TCP, pad: 0 };
                maps.sockets_v4.insert(&key, &Frontend::default())?;
            }
            IpAddr::V6(addr) => {
                let key = SocketKey { cookie, addr: addr.octets(), port, proto: TCP, pad: 0 };
                maps.sockets_v6.insert(&key, &Frontend::default())?;
            }
        }
    }
    Ok(last)
}

/// Runs what Pod A sends by a socket that a Service led to the backend.
fn send_led(rig: &mut Rig, packet: &Packet) -> Result<Seen> {
    let (client, backend) = (packet.source(), packet.destination());
    let frame = from_a(packet.clone());
    led(
        rig,
        backend,
        |rig| Ok(rig.run(Hook::FromPodA, &frame)),
        |rig| {
            // They may be there, as those of a socket that nobody led.
            for (from, to) in [(client, backend), (backend, client)] {
                rig.forget(TCP, from, to)?;
            }
            Ok(())
        },
    )
}

/// Takes a backend away, in the order of an apply.
fn end(rig: &mut Rig, family: Family, backend: SocketAddr) -> Result<()> {
    let id = rig.backend(backend, TCP)?;
    let (port, maps) = (Be16::new(backend.port()), rig.datapath.maps());
    if family == Family::V4 {
        maps.backends_v4.set(id, &Backend::default())?;
        rig.bump(epoch::BACKENDS_V4 + id)?;
        maps.backend_ids_v4.remove(&Backend { addr: v4(backend.ip()), port, proto: TCP, pad: 0 })?;
    } else {
        maps.backends_v6.set(id, &Backend::default())?;
        rig.bump(epoch::BACKENDS_V6 + id)?;
        maps.backend_ids_v6.remove(&Backend { addr: v6(backend.ip()), port, proto: TCP, pad: 0 })?;
    }
    Ok(())
}

/// S45: what a Service led to a Pod is reset once the Pod is no backend any more, for both sides, also when its entries
/// were evicted before or after; whoever only connects is refused. Who asked for the Pod itself goes on.
pub(crate) fn connections() -> Result<()> {
    tell("led", |rig, family| {
        let _pinned = Pinned::here()?;
        let backend = family.at(Who::PodB, 8080);
        let [plain, whole, evicted, restored, late] =
            [40_000, 40_001, 40_002, 40_003, 40_004].map(|port| family.at(Who::PodA, port));
        let from = |client| Packet::tcp(client, backend).sequence(9, 1000);
        let goes = |rig: &mut Rig, packet: Packet| {
            rig.run(Hook::FromPodA, &from_a(packet.clone())).to_pod_b(&packet.ttl(63));
        };
        let lose = |rig: &Rig, client| {
            rig.evict(TCP, client, backend)?;
            rig.evict(TCP, backend, client)
        };
        goes(rig, from(plain).flags(tcp::SYN));
        let goes_led = |rig: &mut Rig, packet: Packet| -> Result<()> {
            send_led(rig, &packet)?.to_pod_b(&packet.ttl(63));
            Ok(())
        };
        for client in [whole, evicted, restored] {
            goes_led(rig, from(client).flags(tcp::SYN))?;
        }
        lose(rig, restored)?;
        goes_led(rig, from(restored))?;
        end(rig, family, backend)?;
        lose(rig, evicted)?;
        for client in [whole, evicted, restored] {
            let reset = Packet::tcp(backend, client).flags(tcp::RST).sequence(1000, 0).window(0);
            let seen = send_led(rig, &from(client))?;
            seen.answered(DropReason::BackendGone, DEVICE_A, &to_a(reset));
        }
        let pushed = from_b(Packet::tcp(backend, whole).sequence(500, 1001).payload(b"an event"));
        rig.run(Hook::FromPodB, &pushed).to_pod_a(&reset(backend, whole, 500).ttl(63));
        let told = refused(whole, backend).macs(HOST_MAC_B, MAC_B);
        rig.run(Hook::FromPodB, &pushed).answered(DropReason::BackendGone, DEVICE_B, &told);
        let reset = Packet::tcp(backend, late).flags(tcp::RST | tcp::ACK).sequence(0, 10).window(0);
        let seen = send_led(rig, &from(late).flags(tcp::SYN))?;
        seen.answered(DropReason::NoBackend, DEVICE_A, &to_a(reset));
        goes(rig, from(plain));
        Ok(())
    })
}

/// S45, E12: one of the two entries was lost, the backend is gone, and the other entry tells: no entry that forgets the
/// backend is written over it. Whoever only reads hears of the end as well.
pub(crate) fn lost_entries() -> Result<()> {
    tell("led-lost", |rig, family| {
        let _pinned = Pinned::here()?;
        let backend = family.at(Who::PodB, 8080);
        let [reads, speaks] = [40_000, 40_001].map(|port| family.at(Who::PodA, port));
        let from = |client| Packet::tcp(client, backend).sequence(9, 1000);
        for client in [reads, speaks] {
            let opening = from(client).flags(tcp::SYN);
            send_led(rig, &opening)?.to_pod_b(&opening.ttl(63));
        }
        end(rig, family, backend)?;
        rig.evict(TCP, backend, reads)?;
        let pushed = from_b(Packet::tcp(backend, reads).sequence(500, 1001).payload(b"an event"));
        rig.run(Hook::FromPodB, &pushed).to_pod_a(&reset(backend, reads, 500).ttl(63));
        let told = refused(reads, backend).macs(HOST_MAC_B, MAC_B);
        rig.run(Hook::FromPodB, &pushed).answered(DropReason::BackendGone, DEVICE_B, &told);
        // This one's socket has lost its row, too.
        rig.evict(TCP, speaks, backend)?;
        for client in [reads, speaks] {
            let reset = Packet::tcp(backend, client).flags(tcp::RST).sequence(1000, 0).window(0);
            let seen = rig.run(Hook::FromPodA, &from_a(from(client)));
            seen.answered(DropReason::BackendGone, DEVICE_A, &to_a(reset));
        }
        Ok(())
    })
}
