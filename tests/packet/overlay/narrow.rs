//! E4, E5: ways that are narrower than the uplink: as the host's routes say, or a router underneath.
//!
//! What does not fit is told so with what does, and nobody is told less than every link of the family carries: such ways are
//! the device's, which sends in pieces.

use std::process::Command;

use anyhow::Result;
use quilla_abi::config::{Config, flag};
use quilla_abi::{DropReason, epoch};
use quilla_tests::command::Run;
use quilla_tests::packet::{IcmpError, Packet};

use super::{PORT, Under, VNI, direct, tell};
use crate::answers::{error, to_a};
use crate::rig::{DEVICE_A, Family, Hook, OTHER_VTEP, Rig, SLOT, UPLINK, VTEP, Who, from_a};

/// From Pod A to the other node's, so long from the IP header on.
fn sized(family: Family, length: usize) -> Packet {
    let header = if family == Family::V4 { 40 } else { 60 };
    let (client, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 80));
    Packet::tcp(client, remote).payload(&vec![9; length - header])
}

/// Direct encapsulation, with the overlay's MTU known.
fn prepare(rig: &Rig) -> Result<Config> {
    let config = Config { overlay_mtu: 1430, ..direct(Rig::config()) };
    rig.datapath.maps().config.set(0, &config)?;
    rig.bump(epoch::GLOBAL)?;
    Ok(config)
}

/// Pod A is told what fits.
#[track_caller]
fn told(rig: &mut Rig, family: Family, length: usize, fits: u16) {
    let sent = sized(family, length);
    let error = error(IcmpError::TooBig { mtu: fits }, &sent);
    rig.run(Hook::FromPodA, &from_a(sent)).answered(DropReason::TooBig, DEVICE_A, &to_a(error));
}

#[track_caller]
fn gets_there(rig: &mut Rig, family: Family, under: Under, length: usize) {
    let sent = sized(family, length);
    under.left(&rig.run(Hook::FromPodA, &from_a(sent.clone())), &sent.ttl(63));
}

/// The host's route says it, or what it has learnt from errors: the packet that finds out is sent in pieces.
pub(crate) fn routes_say_what_fits() -> Result<()> {
    tell("narrow-route", false, |rig, family, under| {
        let overhead = if under.family == Family::V4 { 50 } else { 70 };
        prepare(rig)?;
        gets_there(rig, family, under, 1400);
        route(under, Some(1300 + overhead))?;
        rig.bump(epoch::NODES + SLOT)?;
        let first = sized(family, 1400);
        rig.run(Hook::FromPodA, &from_a(first.clone())).to_other_node(&first.ttl(63));
        told(rig, family, 1400, 1300);
        told(rig, family, 1301, 1300);
        gets_there(rig, family, under, 1300);
        // Too narrow for IPv6.
        route(under, Some(1200 + overhead))?;
        rig.bump(epoch::NODES + SLOT)?;
        let first = sized(family, 1280);
        rig.run(Hook::FromPodA, &from_a(first.clone())).to_other_node(&first.clone().ttl(63));
        if family == Family::V4 {
            told(rig, family, 1280, 1200);
        } else {
            told(rig, family, 1281, 1280);
            rig.run(Hook::FromPodA, &from_a(first.clone())).to_other_node(&first.ttl(63));
        }
        gets_there(rig, family, under, 1200);
        route(under, None)?;
        rig.bump(epoch::NODES + SLOT)?;
        // What fits asks again.
        gets_there(rig, family, under, 1200);
        gets_there(rig, family, under, 1430);
        Ok(())
    })
}

/// A router reports about a packet of the tunnel, of which it quotes no more than it must: the next packet is answered, in
/// both modes. The stack gets the report as well.
pub(crate) fn routers_say_what_fits() -> Result<()> {
    tell("narrow-router", false, |rig, family, under| {
        let overhead = if under.family == Family::V4 { 50 } else { 70 };
        let whole = prepare(rig)?;
        let by_device = Config { flags: whole.flags & !flag::DIRECT, ..whole };
        gets_there(rig, family, under, 1400);
        rig.run(Hook::FromUplink, &report(under, 1350 + overhead, PORT)).passed();
        told(rig, family, 1400, 1350);
        gets_there(rig, family, under, 1350);
        rig.datapath.maps().config.set(0, &by_device)?;
        rig.bump(epoch::GLOBAL)?;
        told(rig, family, 1400, 1350);
        rig.run(Hook::FromUplink, &report(under, 1330 + overhead, PORT)).passed();
        told(rig, family, 1350, 1330);
        let fits = sized(family, 1330);
        rig.run(Hook::FromPodA, &from_a(fits.clone())).to_other_node(&fits.ttl(63));
        // More than before, less than any way carries, of another port, of no node: not believed.
        for (mtu, port) in [(1340 + overhead, PORT), (1290 + overhead, PORT + 1), (9000, PORT), (0, PORT)] {
            rig.run(Hook::FromUplink, &report(under, mtu, port)).passed();
            told(rig, family, 1331, 1330);
        }
        rig.run(Hook::FromUplink, &report(under, 100, PORT)).passed();
        let least = if under.family == Family::V4 { 502 } else { 1210 };
        let told_least = if family == Family::V6 { 1280 } else { least };
        told(rig, family, 1331, told_least);
        Ok(())
    })
}

/// For the slot there is another node by now, of which nobody has said anything.
pub(crate) fn another_node_in_the_slot_is_another_way() -> Result<()> {
    tell("narrow-slot", false, |rig, family, under| {
        prepare(rig)?;
        gets_there(rig, family, under, 1400);
        rig.run(Hook::FromUplink, &report(under, 1400, PORT)).passed();
        let row = rig.datapath.maps().nodes.get(SLOT)?.expect("the other node");
        let other = quilla_abi::node::Node { ipv4: [192, 168, 77, 99], ipv6: [0xfd; 16], ..row };
        rig.datapath.maps().nodes.set(SLOT, &other)?;
        rig.bump(epoch::NODES + SLOT)?;
        let sent = sized(family, 1400);
        assert_eq!(rig.run(Hook::FromPodA, &from_a(sent)).reason, None, "somebody else's way");
        Ok(())
    })
}

/// What a router says of a packet for the other node that is too large for its next link: 28 bytes of IPv4 (RFC 792).
fn report(under: Under, mtu: u16, port: u16) -> Packet {
    let (here, there) = under.ends();
    let inner = sized(Family::V4, 1400).macs(VTEP, OTHER_VTEP);
    let outer = Packet::vxlan((here, 0x9000), (there, port), VNI, &inner);
    let mut quoted = outer.network_layer();
    quoted.truncate(if under.family == Family::V4 { 28 } else { 400 });
    let router = under.family.ip(Who::World);
    Packet::icmp_error(router, here, IcmpError::TooBig { mtu }, &outer).payload(&quoted)
}

/// The host's route to the other node, with an MTU as an ICMP error teaches it, or as it was.
fn route(under: Under, mtu: Option<u16>) -> Result<()> {
    let (_, there) = under.ends();
    let device = format!("d{UPLINK}");
    let (route, size) = (there.to_string(), mtu.map(|mtu| mtu.to_string()));
    let mut arguments = vec!["route", if mtu.is_some() { "replace" } else { "del" }, &route, "dev", &device];
    arguments.extend(size.iter().flat_map(|size| ["mtu", "lock", size]));
    Command::new("ip").args(arguments).text().map(drop)
}
