//! E12, E16: when a flow that nobody ended is over. Time passes by setting the entries' stamps back.

use anyhow::Result;
use quilla_abi::counter::path;
use quilla_abi::{DropReason, epoch};
use quilla_tests::packet::{Packet, tcp};

use crate::rig::{Family, Hook, REDIRECT, Rig, SNAT_MIN, UPLINK, Who, from_a, from_b, tell};

const HOUR: u32 = 3600;

/// One port for everybody.
fn one_port(rig: &Rig) -> Result<()> {
    let mut config = Rig::config();
    config.snat_port_max = SNAT_MIN;
    rig.datapath.maps().config.set(0, &config)?;
    rig.bump(epoch::GLOBAL)
}

/// A server that takes its time before it answers is answered for: a flow lives as long as either side speaks.
pub(crate) fn late_answers() -> Result<()> {
    tell("late", |rig, family| {
        let (client, frontend) = (family.at(Who::PodA, 40_000), family.at(Who::Service(12), 53));
        let backend = family.at(Who::PodB, 5353);
        let question = from_a(Packet::udp(client, frontend).payload(b"question"));
        let answer = Packet::udp(backend, client).payload(b"answer");
        let answered = answer.clone().between(frontend, client).ttl(63);
        for silence in [40, 100] {
            for _ in 0..3 {
                rig.run(Hook::FromPodA, &question);
                rig.pass(silence)?;
            }
            rig.run(Hook::FromPodB, &from_b(answer.clone())).to_pod_a(&answered);
        }
        // The other way round: one question, many answers.
        for _ in 0..3 {
            rig.pass(100)?;
            rig.run(Hook::FromPodB, &from_b(answer.clone())).to_pod_a(&answered);
        }
        assert!(rig.run(Hook::FromPodA, &question).slow(), "its own side was silent");
        rig.run(Hook::FromPodB, &from_b(answer)).to_pod_a(&answered);
        Ok(())
    })
}

/// E16: the port of a flow that only speaks is not given away; that of a silent one is, and it comes back under another.
pub(crate) fn one_way_masquerade() -> Result<()> {
    tell("oneway", |rig, family| {
        one_port(rig)?;
        let (world, host) = (family.at(Who::World, 443), family.at(Who::Host, SNAT_MIN));
        let (client, other) = (family.at(Who::PodA, 1000), family.at(Who::PodB, 1000));
        let sent = from_a(Packet::udp(client, world));
        let rival = Packet::udp(other, world);
        for _ in 0..3 {
            rig.run(Hook::FromPodA, &sent);
            rig.pass(40)?;
        }
        rig.run(Hook::FromPodB, &from_b(rival.clone())).dropped(DropReason::PortsExhausted);
        let answer = Packet::udp(world, host);
        rig.run(Hook::FromUplink, &answer).to_pod_a(&answer.clone().between(world, client).ttl(63));
        rig.pass(181)?;
        let seen = rig.run(Hook::FromPodB, &from_b(rival.clone()));
        seen.went(path::UPLINK, REDIRECT, UPLINK, &from_b(rival.between(host, world).ttl(63)));
        rig.run(Hook::FromUplink, &answer).to_pod_b(&answer.between(world, other).ttl(63));
        rig.run(Hook::FromPodA, &sent).dropped(DropReason::PortsExhausted);
        Ok(())
    })
}

/// A TCP connection to the world, at some stage of its life.
fn advance_to(rig: &mut Rig, family: Family, port: u16, stage: &str) {
    let (client, world) = (family.at(Who::PodA, port), family.at(Who::World, 443));
    let host = family.at(Who::Host, SNAT_MIN);
    let mut send = |flags| {
        let seen = rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, world).flags(flags)));
        assert!(seen.reason.is_none(), "{stage}: {seen:?}");
    };
    send(tcp::SYN);
    if stage == "new" {
        return;
    }
    rig.run(Hook::FromUplink, &Packet::tcp(world, host).flags(tcp::SYN | tcp::ACK));
    let mut send = |flags| rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, world).flags(flags)));
    match stage {
        "fin" => send(tcp::FIN | tcp::ACK),
        "reset" => send(tcp::RST),
        _ => send(tcp::ACK),
    };
}

/// E16: ports come back, also from connections that nobody ended, and never while they may be alive.
pub(crate) fn recovered_ports() -> Result<()> {
    for (stage, alive, over) in
        [("new", 59, 2), ("fin", 119, 2), ("reset", 59, 2), ("established", 5 * HOUR, HOUR + 1)]
    {
        tell(&format!("recover-{stage}"), |rig, family| {
            one_port(rig)?;
            advance_to(rig, family, 1000, stage);
            let (world, host) = (family.at(Who::World, 443), family.at(Who::Host, SNAT_MIN));
            let next = family.at(Who::PodB, 1001);
            let opening = Packet::tcp(next, world).flags(tcp::SYN);
            rig.pass(alive)?;
            rig.run(Hook::FromPodB, &from_b(opening.clone())).dropped(DropReason::PortsExhausted);
            rig.pass(over)?;
            let seen = rig.run(Hook::FromPodB, &from_b(opening.clone()));
            let expected = from_b(opening.between(host, world).ttl(63));
            seen.went(path::UPLINK, REDIRECT, UPLINK, &expected);
            // Whoever had the port comes too late to speak under it.
            let late = from_a(Packet::tcp(family.at(Who::PodA, 1000), world));
            rig.run(Hook::FromPodA, &late).dropped(DropReason::PortsExhausted);
            let answer = Packet::tcp(world, host).flags(tcp::SYN | tcp::ACK);
            rig.run(Hook::FromUplink, &answer).to_pod_b(&answer.between(world, next).ttl(63));
            Ok(())
        })?;
    }
    Ok(())
}

/// E16: a port is in use as long as one side speaks.
pub(crate) fn downloads() -> Result<()> {
    tell("download", |rig, family| {
        one_port(rig)?;
        advance_to(rig, family, 1000, "established");
        let (client, world) = (family.at(Who::PodA, 1000), family.at(Who::World, 443));
        let data = Packet::tcp(world, family.at(Who::Host, SNAT_MIN)).payload(b"data");
        let rival = from_b(Packet::tcp(family.at(Who::PodB, 1001), world).flags(tcp::SYN));
        let upload = from_a(Packet::tcp(client, world).payload(b"data"));
        for _ in 0..3 {
            rig.pass(4 * HOUR)?;
            rig.run(Hook::FromPodA, &upload);
        }
        rig.run(Hook::FromPodB, &rival).dropped(DropReason::PortsExhausted);
        rig.run(Hook::FromUplink, &data).to_pod_a(&data.clone().between(world, client).ttl(63));
        Ok(())
    })
}
