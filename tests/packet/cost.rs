//! Promise 1: a packet of an established flow costs one lookup in the flow table, whatever its way.

use anyhow::Result;
use quilla_abi::counter::helper;
use quilla_tests::packet::{Packet, tcp};

use crate::outside::balance;
use crate::rig::{
    DEVICE_A, FROM_OTHER_NODE, Family, Hook, OTHER_VTEP, Rig, SNAT_MIN, TCP, VTEP, Who, from_a, from_b,
    namespace, tell,
};

pub(crate) fn an_established_packet_costs_one_lookup() -> Result<()> {
    let netns = namespace("cost")?;
    netns.run(|| {
        for family in Family::BOTH {
            let mut rig = Rig::load(&format!("cost-{family:?}"), true)?;
            let mut all = ways(&mut rig, family);
            all.extend(outside(&mut rig, family)?);
            for (way, hook, packet) in all {
                let counts = rig.helpers(hook, &packet);
                let count = |kind| counts.get(&kind).copied().unwrap_or_default();
                assert_eq!(count(helper::LOOKUP_FLOW), 1, "{family:?} {way}: {counts:?}");
                for (kind, name) in [
                    (helper::LOOKUP_HASH, "hash"),
                    (helper::LOOKUP_LPM, "prefix"),
                    (helper::UPDATE, "update"),
                    (helper::DELETE, "delete"),
                    (helper::PACKET, "packet"),
                ] {
                    assert_eq!(count(kind), 0, "{family:?} {way}, {name}: {counts:?}");
                }
                // The sum of the whole packet is one more in IPv6, whose header has none of its own.
                let sums = if family == Family::V4 { 2 } else { 3 };
                assert!(count(helper::CHECKSUM) <= sums, "{family:?} {way}: {counts:?}");
                println!("{family:?} {way}: {counts:?}");
            }
            uninteresting(&mut rig, family);
        }
        Ok(())
    })?
}

/// E7: whichever way packets go, the sum of all bytes that a network card gave them stays right.
pub(crate) fn sums_come_out_right() -> Result<()> {
    tell("sums-of-cards", |rig, family| {
        rig.summed = true;
        let mut all = ways(rig, family);
        all.extend(outside(rig, family)?);
        for (way, hook, packet) in all {
            for payload in [&b""[..], b"odd", b"even"] {
                let seen = rig.run(hook, &packet.clone().payload(payload));
                assert!(seen.reason.is_none(), "{way}: {seen:?}");
            }
        }
        Ok(())
    })
}

/// Sets each kind of flow up, and gives a packet of it that is neither first nor last.
fn ways(rig: &mut Rig, family: Family) -> Vec<(&'static str, Hook, Packet)> {
    let client = family.at(Who::PodA, 40_000);
    let (b, remote) = (family.at(Who::PodB, 8080), family.at(Who::Remote, 8080));
    let (local, other) = (family.at(Who::Service(10), 80), family.at(Who::Service(15), 80));
    let (outgoing, world) = (family.at(Who::PodA, SNAT_MIN), family.at(Who::World, 443));
    let (masquerade, gateway) = (family.at(Who::Host, SNAT_MIN), family.at(Who::Gateway, 50_000));
    let tunnel = |packet: Packet| packet.macs(OTHER_VTEP, VTEP);
    let ways = vec![
        ("Service on this node", Hook::FromPodA, from_a(Packet::tcp(client, local))),
        ("its answer", Hook::FromPodB, from_b(Packet::tcp(b, client))),
        ("Service on another node", Hook::FromPodA, from_a(Packet::tcp(client, other))),
        ("its answer", FROM_OTHER_NODE, tunnel(Packet::tcp(remote, client))),
        ("Pod on another node", Hook::FromPodA, from_a(Packet::udp(client, remote))),
        ("its answer", FROM_OTHER_NODE, tunnel(Packet::udp(remote, client))),
        ("Pod on this node", Hook::FromPodA, from_a(Packet::udp(client, b))),
        ("world", Hook::FromPodA, from_a(Packet::tcp(outgoing, world))),
        ("its answer", Hook::FromUplink, Packet::tcp(world, masquerade)),
        ("host to Pod", Hook::ToPodA, Packet::tcp(gateway, family.at(Who::PodA, 80))),
        ("its answer", Hook::FromPodA, from_a(Packet::tcp(family.at(Who::PodA, 80), gateway))),
        ("host to another node", Hook::ToOverlay, Packet::tcp(gateway, family.at(Who::Remote, 80))),
        ("its answer", FROM_OTHER_NODE, tunnel(Packet::tcp(family.at(Who::Remote, 80), gateway))),
        ("Pod to world by the stack", Hook::ToUplink(DEVICE_A), Packet::udp(outgoing, world)),
    ];
    for (_, hook, packet) in &ways {
        rig.run(*hook, &packet.clone().flags(tcp::SYN));
        // Once more, so that the state of both directions is settled.
        rig.run(*hook, packet);
    }
    ways
}

/// The same for clients in the world, with each kind of backend behind the Service.
fn outside(rig: &mut Rig, family: Family) -> Result<Vec<(&'static str, Hook, Packet)>> {
    let mut config = Rig::config();
    config.flags |= quilla_abi::config::flag::NODE_BACKENDS;
    rig.datapath.maps().config.set(0, &config)?;
    let client = family.at(Who::World, SNAT_MIN + 40);
    let [gateway, host] = [Who::Gateway, Who::Host].map(|who| family.at(who, client.port()));
    let mut ways = Vec::new();
    for (port, way, who, peer) in [
        (81, "world to Pod", Who::PodB, client),
        (82, "world to another node", Who::Remote, gateway),
        (83, "world to this node", Who::Host, client),
        (84, "world to world", Who::OtherNode, host),
    ] {
        let (vip, backend) = (family.at(Who::Vip(1), port), family.at(who, 9000 + port));
        balance(rig, vip, TCP, &[backend])?;
        let answer = Packet::tcp(backend, peer);
        let (hook, answer) = match who {
            Who::PodB => (Hook::FromPodB, from_b(answer)),
            Who::Remote => (FROM_OTHER_NODE, answer.macs(OTHER_VTEP, VTEP)),
            Who::Host => (Hook::ToUplink(0), answer),
            _ => (Hook::FromUplink, answer),
        };
        ways.push((way, Hook::FromUplink, Packet::tcp(client, vip)));
        ways.push(("its answer", hook, answer));
    }
    for (_, hook, packet) in &ways {
        let first = rig.run(*hook, &packet.clone().flags(tcp::SYN));
        assert!(first.reason.is_none(), "{first:?}");
        rig.run(*hook, packet);
    }
    Ok(ways)
}

/// What is not ours costs no lookup at all.
fn uninteresting(rig: &mut Rig, family: Family) {
    let packet = Packet::udp(family.at(Who::World, 4000), family.at(Who::Host, 8472));
    let before = rig.datapath.maps().helpers.total(helper::LOOKUP_FLOW).expect("counters");
    rig.run(Hook::FromUplink, &packet).passed();
    rig.run(Hook::ToUplink(0), &packet).passed();
    let after = rig.datapath.maps().helpers.total(helper::LOOKUP_FLOW).expect("counters");
    assert_eq!(before, after);
}
