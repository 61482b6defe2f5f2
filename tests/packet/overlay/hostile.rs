//! E20: overlay frames on the uplink that are not what they say, or not for us.

use anyhow::Result;
use quilla_abi::DropReason;
use quilla_abi::config::flag;
use quilla_tests::packet::{Fault, Packet};

use super::{OUTER, PORT, Under, VNI, at, direct, tell};
use crate::rig::{Family, Hook, OTHER_VTEP, Rig, SHOT, Seen, VTEP, Who};

/// Dropped for a reason; the outer headers may be gone already.
#[track_caller]
fn lost(seen: &Seen, reason: DropReason) {
    assert_eq!((seen.reason, seen.verdict()), (Some(reason), SHOT), "{seen:?}");
}

/// The outer source must be a node, and the inner one must live there; also when the flow is established.
pub(crate) fn from_nobody() -> Result<()> {
    tell("nobody", false, |rig, family, under| {
        let (b, remote) = (family.at(Who::PodB, 80), at(family, Who::Remote));
        let honest = Packet::udp(remote, b);
        let stranger = |inner: &Packet| {
            let inner = inner.clone().macs(OTHER_VTEP, VTEP);
            let (here, _) = under.ends();
            let from = (under.family.ip(Who::World), OUTER);
            Under::outer(&Packet::vxlan(from, (here, PORT), VNI, &inner))
        };
        lost(&rig.run(Hook::FromUplink, &stranger(&honest)), DropReason::UnknownTunnelSource);
        for who in [Who::PodA, Who::World, Who::Service(10), Who::Host] {
            let lie = Packet::udp(at(family, who), b);
            lost(&rig.run(Hook::FromUplink, &under.frame(&lie)), DropReason::WrongTunnelSource);
        }
        rig.run(Hook::FromUplink, &under.frame(&honest)).to_pod_b(&honest.clone().ttl(63));
        lost(&rig.run(Hook::FromUplink, &stranger(&honest)), DropReason::UnknownTunnelSource);
        // The overlay is no way through.
        let through = Packet::udp(remote, family.at(Who::World, 2));
        lost(&rig.run(Hook::FromUplink, &under.frame(&through)), DropReason::NoEndpoint);
        Ok(())
    })
}

/// Headers that lie are dropped and counted.
pub(crate) fn malformed() -> Result<()> {
    tell("malformed", false, |rig, family, under| {
        let honest = Packet::udp(at(family, Who::Remote), family.at(Who::PodA, 80)).payload(&[1; 40]);
        let frame = under.frame(&honest).build();
        let network = if under.family == Family::V4 { 20 } else { 40 };
        let (udp, vxlan, inner) = (14 + network, 14 + network + 8, 14 + network + 30);
        let changed = |at: usize, bytes: &[u8]| {
            let mut frame = frame.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        let cases = [
            // No identifier, other flags, reserved bits.
            (changed(vxlan, &[0]), DropReason::BadTunnelHeader),
            (changed(vxlan, &[0x0c]), DropReason::BadTunnelHeader),
            (changed(vxlan + 3, &[1]), DropReason::BadTunnelHeader),
            (changed(vxlan + 7, &[1]), DropReason::BadTunnelHeader),
            (changed(vxlan + 4, &[0, 0, 8]), DropReason::WrongVni),
            // UDP that says more or less than there is.
            (changed(udp + 4, &[0, 29]), DropReason::BadTransportHeader),
            (changed(udp + 4, &[0xff, 0xff]), DropReason::Truncated),
            (frame[..frame.len() - 1].to_vec(), DropReason::Truncated),
            // ARP, and an inner header that lies.
            (changed(inner - 2, &[8, 6]), DropReason::UnknownEtherType),
            (changed(inner, &[0x15]), DropReason::BadIpHeader),
        ];
        for (number, (frame, reason)) in cases.iter().enumerate() {
            let seen = rig.run_frame(Hook::FromUplink, frame);
            assert_eq!((seen.reason, seen.verdict()), (Some(*reason), SHOT), "case {number}: {seen:?}");
        }
        if under.family == Family::V4 {
            let wrong = under.frame(&honest).fault(Fault::HeaderChecksum);
            lost(&rig.run(Hook::FromUplink, &wrong), DropReason::BadIpHeader);
        }
        Ok(())
    })
}

/// What is for somebody else, or cannot be opened here, is the stack's, untouched.
pub(crate) fn not_ours() -> Result<()> {
    tell("not-ours", false, |rig, family, under| {
        let honest = Packet::udp(at(family, Who::Remote), family.at(Who::PodA, 80));
        let tunnel = |from, to, port| {
            let inner = honest.clone().macs(OTHER_VTEP, VTEP);
            Under::outer(&Packet::vxlan((from, OUTER), (to, port), VNI, &inner))
        };
        let (here, there) = under.ends();
        let others = [
            tunnel(there, under.family.ip(Who::World), PORT),
            tunnel(there, here, PORT + 1),
            // A piece, options, and a checksum that nobody has verified.
            under.frame(&honest).fragment(7, 0, true),
            under.frame(&honest).ip_options(&[1, 1, 1, 1]),
            Packet::vxlan((there, OUTER), (here, PORT), VNI, &honest.clone().macs(OTHER_VTEP, VTEP)),
        ];
        for (number, packet) in others.iter().enumerate() {
            if number == 3 && under.family == Family::V6 {
                continue;
            }
            rig.run(Hook::FromUplink, packet).passed();
        }
        let mut config = direct(Rig::config());
        config.flags &= !flag::OPEN;
        rig.datapath.maps().config.set(0, &config)?;
        rig.run(Hook::FromUplink, &under.frame(&honest)).passed();
        Ok(())
    })
}
