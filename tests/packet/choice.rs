//! S17, S18, S24: which backend a client gets: the one it had, one of a table that all nodes share, the less busy one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Result;
use quilla_abi::backend::Backend;
use quilla_abi::load::Load;
use quilla_abi::service::{Service, flag, scope};
use quilla_abi::{DropReason, epoch};
use quilla_tests::packet::{Packet, decode, tcp};

use crate::rig::{Family, Hook, Rig, Seen, TCP, UDP, Who, from_a, from_b, tell};

/// The port of Pod B to which a packet went: it tells backends apart.
fn backend(seen: &Seen) -> u16 {
    let decoded = decode(seen.frame());
    let port = decoded.get("tcp.dport").or_else(|| decoded.get("udp.dport"));
    assert!(seen.reason.is_none(), "{seen:?}");
    port.unwrap_or_else(|| panic!("{decoded}")).parse().expect("a port")
}

fn syn(from: SocketAddr, to: SocketAddr) -> Packet {
    Packet::tcp(from, to).flags(tcp::SYN)
}

/// Two backends that differ in their port.
fn two(family: Family) -> [SocketAddr; 2] {
    [8001, 8002].map(|port| family.at(Who::PodB, port))
}

/// A Service of both scopes.
fn serve(rig: &mut Rig, vip: SocketAddr, row: Service, backends: &[SocketAddr]) -> Result<()> {
    for scope in [scope::INTERNAL, scope::EXTERNAL] {
        rig.serve((vip, TCP), scope, row, backends)?;
    }
    Ok(())
}

/// Where new connections of a client from many ports go.
fn spread(
    rig: &mut Rig,
    hook: Hook,
    who: Who,
    family: Family,
    vip: SocketAddr,
    ports: std::ops::Range<u16>,
) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for port in ports {
        let packet = syn(family.at(who, port), vip);
        let packet = if let Hook::FromPodA = hook { from_a(packet) } else { packet };
        *counts.entry(backend(&rig.run(hook, &packet))).or_default() += 1;
    }
    counts
}

/// S18, E17: a client comes back to its backend while it may and not too long; another Service is another matter.
pub(crate) fn affinity() -> Result<()> {
    tell("affinity", |rig, family| {
        let (vip, other) = (family.at(Who::Vip(1), 80), family.at(Who::Vip(2), 80));
        let backends = two(family);
        let row = Service { id: 7, affinity_seconds: 100, ..Service::default() };
        serve(rig, vip, row, &backends)?;
        serve(rig, other, Service { id: 8, ..row }, &backends)?;
        for id in [7, 8] {
            for backend in backends {
                rig.set_member(id, (backend, TCP), true)?;
            }
        }
        for (hook, who) in [(Hook::FromUplink, Who::World), (Hook::FromPodA, Who::PodA)] {
            let mut used = BTreeMap::new();
            let mut ports = 1000;
            let mut ask = |rig: &mut Rig, vip| {
                ports += 8;
                let counts = spread(rig, hook, who, family, vip, ports - 8..ports);
                assert_eq!(counts.len(), 1, "one client, one backend: {counts:?}");
                counts.into_keys().next().expect("a backend")
            };
            for round in 0..12 {
                let first = ask(rig, vip);
                // Each new connection counts anew; 60 + 60 s are more than 100.
                rig.age_clients(60)?;
                assert_eq!(ask(rig, vip), first);
                rig.age_clients(60)?;
                assert_eq!(ask(rig, vip), first);
                *used.entry((ask(rig, other), first)).or_insert(0) += 1;
                rig.age_clients(101)?;
                assert!(round < 11 || used.len() > 2, "forgotten clients choose anew: {used:?}");
            }
            // A backend that may not be used any more is not, and the other Service's client does not notice.
            let (first, second) = (ask(rig, vip), ask(rig, other));
            let gone = family.at(Who::PodB, first);
            let left: Vec<SocketAddr> = backends.into_iter().filter(|backend| *backend != gone).collect();
            serve(rig, vip, row, &left)?;
            rig.set_member(7, (gone, TCP), false)?;
            assert_ne!(ask(rig, vip), first);
            assert_eq!(ask(rig, other), second);
            serve(rig, vip, row, &backends)?;
            rig.set_member(7, (gone, TCP), true)?;
        }
        Ok(())
    })
}

/// S18: a client comes back to a backend that left the slots for good reasons but may still be used; not to another
/// Service's.
pub(crate) fn members_only() -> Result<()> {
    tell("members", |rig, family| {
        let vip = family.at(Who::Vip(1), 80);
        let [kept, other] = two(family);
        let row = Service { id: 7, affinity_seconds: 100, ..Service::default() };
        serve(rig, vip, row, &[kept])?;
        rig.set_member(7, (kept, TCP), true)?;
        assert_eq!(backend(&rig.run(Hook::FromUplink, &syn(family.at(Who::World, 1), vip))), kept.port());
        serve(rig, vip, row, &[other])?;
        rig.set_member(7, (other, TCP), true)?;
        assert_eq!(backend(&rig.run(Hook::FromUplink, &syn(family.at(Who::World, 2), vip))), kept.port());
        // With an id that stands for somebody else now.
        let id = rig.backend(kept, TCP)?;
        let maps = rig.datapath.maps();
        match family {
            Family::V4 => {
                let mut row = maps.backends_v4.get(id)?.expect("a row");
                row.proto = UDP;
                maps.backends_v4.set(id, &row)?;
            }
            Family::V6 => {
                let mut row = maps.backends_v6.get(id)?.expect("a row");
                row.proto = UDP;
                maps.backends_v6.set(id, &row)?;
            }
        }
        assert_eq!(backend(&rig.run(Hook::FromUplink, &syn(family.at(Who::World, 3), vip))), other.port());
        Ok(())
    })
}

/// S24: who is outside the ranges is dropped without a word, Pods included; a connection that stands is left alone.
pub(crate) fn source_ranges() -> Result<()> {
    tell("ranges", |rig, family| {
        let vip = family.at(Who::Vip(1), 80);
        let row = Service { id: 9, flags: flag::SOURCE_RANGES, ..Service::default() };
        serve(rig, vip, row, &two(family))?;
        let (client, pod) = (family.at(Who::World, 1000), family.at(Who::PodA, 1000));
        let length = if family == Family::V4 { 24 } else { 64 };
        // Another Service's range.
        rig.admit(10, client.ip(), length)?;
        rig.run(Hook::FromUplink, &syn(client, vip)).dropped(DropReason::SourceRange);
        rig.run(Hook::FromPodA, &from_a(syn(pod, vip))).dropped(DropReason::SourceRange);
        rig.admit(9, client.ip(), length)?;
        assert!(rig.run(Hook::FromUplink, &syn(client, vip)).reason.is_none());
        rig.run(Hook::FromPodA, &from_a(syn(pod, vip))).dropped(DropReason::SourceRange);
        rig.admit(9, pod.ip(), if family == Family::V4 { 32 } else { 128 })?;
        assert!(rig.run(Hook::FromPodA, &from_a(syn(pod, vip))).reason.is_none());
        let stranger = syn(family.at(Who::OtherNode, 1000), vip);
        rig.run(Hook::FromUplink, &stranger).dropped(DropReason::SourceRange);
        Ok(())
    })
}

/// A Maglev table is asked with the same hash by every node: no seed of this one's takes part.
pub(crate) fn maglev() -> Result<()> {
    tell("maglev", |rig, family| {
        let vip = family.at(Who::Vip(1), 80);
        let backends: Vec<SocketAddr> = (8000..8016).map(|port| family.at(Who::PodB, port)).collect();
        let mut choices = Vec::new();
        for (flags, seed) in [(0, 1), (0, 2), (flag::MAGLEV, 1), (flag::MAGLEV, 2)] {
            let config = quilla_abi::config::Config { hash_seed: seed, ..Rig::config() };
            rig.datapath.maps().config.set(0, &config)?;
            serve(rig, vip, Service { id: 3, flags, ..Service::default() }, &backends)?;
            let chosen: Vec<u16> = (0..32)
                .map(|n| {
                    let opening = syn(family.at(Who::World, 2000 + n), vip);
                    let seen = rig.run(Hook::FromUplink, &opening);
                    // What is chosen again next time must not be remembered.
                    let reset = Packet::tcp(opening.source(), vip).flags(tcp::RST);
                    rig.run(Hook::FromUplink, &reset);
                    backend(&seen)
                })
                .collect();
            choices.push(chosen);
        }
        assert_ne!(choices[0], choices[1], "a seed of the node's own");
        assert_eq!(choices[2], choices[3], "no seed of the node's own");
        assert_ne!(choices[1], choices[2]);
        Ok(())
    })
}

/// Of two backends the less busy one; connections count from the first packet until they are closed or reset, once.
pub(crate) fn least_connections() -> Result<()> {
    tell("least", |rig, family| {
        let vip = family.at(Who::Vip(1), 80);
        let [first, second] = two(family);
        let row = Service { id: 4, flags: flag::LEAST_CONNECTIONS, ..Service::default() };
        serve(rig, vip, row, &[first, second])?;
        rig.set_load((first, TCP), Load { connections: 20, since: 0 })?;
        let open = |rig: &mut Rig, backend| -> Result<u32> { Ok(rig.load_of((backend, TCP))?.connections) };
        let counts = spread(rig, Hook::FromUplink, Who::World, family, vip, 1000..1040);
        let (busy, idle) = (counts.get(&8001).copied().unwrap_or(0), counts[&8002]);
        assert!(idle > busy, "{counts:?}");
        assert_eq!(open(rig, first)? as usize, 20 + busy);
        assert_eq!(open(rig, second)? as usize, idle);
        // Retransmissions, and packets of what stands, count for nothing.
        spread(rig, Hook::FromUplink, Who::World, family, vip, 1000..1010);
        rig.bump(epoch::GLOBAL)?;
        spread(rig, Hook::FromUplink, Who::World, family, vip, 1000..1010);
        assert_eq!((open(rig, first)? + open(rig, second)?) as usize, 60);
        // One is closed by both sides, one is reset by the Pod, one half closed and its port used again.
        let client = |port| family.at(Who::World, port);
        let send = |rig: &mut Rig, port, flags| {
            backend(&rig.run(Hook::FromUplink, &Packet::tcp(client(port), vip).flags(flags)))
        };
        let answer = |rig: &mut Rig, pod, port, flags| {
            let packet = Packet::tcp(family.at(Who::PodB, pod), client(port)).flags(flags);
            assert!(rig.run(Hook::FromPodB, &from_b(packet)).reason.is_none());
        };
        let pod = send(rig, 1000, tcp::FIN | tcp::ACK);
        assert_eq!(open(rig, first)? + open(rig, second)?, 60, "half closed");
        answer(rig, pod, 1000, tcp::FIN | tcp::ACK);
        send(rig, 1000, tcp::ACK);
        assert_eq!(open(rig, first)? + open(rig, second)?, 59, "closed");
        let pod = send(rig, 1001, tcp::ACK);
        answer(rig, pod, 1001, tcp::RST);
        answer(rig, pod, 1001, tcp::RST);
        send(rig, 1001, tcp::RST);
        assert_eq!(open(rig, first)? + open(rig, second)?, 58, "reset");
        send(rig, 1002, tcp::FIN | tcp::ACK);
        send(rig, 1002, tcp::SYN);
        assert_eq!(open(rig, first)? + open(rig, second)?, 58, "one went, one came");
        Ok(())
    })
}

/// S20: where a row names a backend that was cleared a moment ago nobody is refused; the next packet finds another.
pub(crate) fn cleared_backends() -> Result<()> {
    tell("cleared", |rig, family| {
        let [gone, new] = two(family);
        for (n, proto) in [(10, TCP), (12, UDP)] {
            rig.set_service(family, n, proto, &[gone])?;
            let id = rig.backend(gone, proto)?;
            match family {
                Family::V4 => rig.datapath.maps().backends_v4.set(id, &Backend::default())?,
                Family::V6 => rig.datapath.maps().backends_v6.set(id, &Backend::default())?,
            }
        }
        let client = family.at(Who::PodA, 40_000);
        let (stream, names) = (family.at(Who::Service(10), 80), family.at(Who::Service(12), 53));
        let (opening, datagram) = (from_a(syn(client, stream)), from_a(Packet::udp(client, names)));
        rig.run(Hook::FromPodA, &opening).dropped(DropReason::BackendGone);
        rig.run(Hook::FromPodA, &datagram).dropped(DropReason::BackendGone);
        let middle = from_a(Packet::tcp(client, stream));
        rig.run(Hook::FromPodA, &middle).dropped(DropReason::NoFlow);
        for (n, proto) in [(10, TCP), (12, UDP)] {
            rig.set_service(family, n, proto, &[new])?;
        }
        for packet in [opening, datagram] {
            assert_eq!(backend(&rig.run(Hook::FromPodA, &packet)), new.port());
        }
        Ok(())
    })
}

/// A backend that just appeared gets its share little by little.
pub(crate) fn slow_start() -> Result<()> {
    tell("slow", |rig, family| {
        let vip = family.at(Who::Vip(1), 80);
        let [old, young] = two(family);
        let row = Service { id: 4, slow_start_seconds: 100, ..Service::default() };
        serve(rig, vip, row, &[old, young])?;
        rig.run(Hook::FromUplink, &syn(family.at(Who::World, 999), vip));
        let hz = quilla_datapath::kernel::ticks_per_second()?;
        let now = rig.clock(family)?;
        let mut shares = Vec::new();
        for (round, age) in (0_u16..).zip([0, 50, 100]) {
            rig.set_load((young, TCP), Load { connections: 0, since: now.wrapping_sub(age * hz).max(1) })?;
            let ports = 1000 + round * 300..1300 + round * 300;
            let counts = spread(rig, Hook::FromUplink, Who::World, family, vip, ports);
            shares.push(counts.get(&8002).copied().unwrap_or(0));
        }
        assert!(
            shares[0] < 10 && (45..=105).contains(&shares[1]) && (120..=180).contains(&shares[2]),
            "{shares:?}"
        );
        // Once it has grown up it stays so, however often the clock goes round.
        for age in [86_401 * hz, 1 << 31] {
            rig.set_load((young, TCP), Load { connections: 3, since: now.wrapping_sub(age).max(1) })?;
            spread(rig, Hook::FromUplink, Who::World, family, vip, 3000..3032);
            let load = rig.load_of((young, TCP))?;
            assert_eq!((load.connections, load.since), (3, 0), "{age}");
            let ports = 3000..3032;
            for port in ports {
                let reset = Packet::tcp(family.at(Who::World, port), vip).flags(tcp::RST);
                rig.run(Hook::FromUplink, &reset);
            }
        }
        Ok(())
    })
}
