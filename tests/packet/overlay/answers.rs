//! E5, S45: what is said about packets that came through a tunnel or are in one of the Pod's.
//!
//! Of those the kernel remembers it, where neither a device nor the stack took them out, and cuts no end off
//! (`bpf_skb_change_tail`: `-ENOTSUPP`). The stories are told with and without that memory.

use anyhow::Result;
use quilla_abi::{DropReason, epoch};
use quilla_tests::packet::{IcmpError, Packet, tcp};

use super::{Under, direct, tell};
use crate::answers::{error, made, to_a};
use crate::ends::{end, push, refused, reset};
use crate::rig::{DEVICE_A, Family, Hook, OTHER_VTEP, Rig, UPLINK, VTEP, Who, from_a};

/// Back to the other node, by the overlay device.
fn back(packet: Packet) -> Packet {
    packet.macs(VTEP, OTHER_VTEP)
}

/// What is left of a segment that cannot be cut when it becomes a reset: its options and its data.
fn whole(reset: Packet, options: &[u8], data: &[u8]) -> Packet {
    reset.tcp_options(options).payload(data)
}

/// S45: a connection to an endpoint that is gone is reset, in a frame for the overlay device whichever way the packet came.
pub(crate) fn answers() -> Result<()> {
    tell("direct-answers", false, |rig, family, under| {
        let (remote, gone) = (family.at(Who::Remote, 40_000), family.at(Who::Nobody, 80));
        for (options, data) in
            [(&[][..], &b""[..]), (&[], b"odd"), (&[1, 1, 1, 0], b"even"), (&[], &[7; 1000])]
        {
            let plain = Packet::tcp(remote, gone).sequence(7, 99).tcp_options(options).payload(data);
            let reset = back(made(Packet::tcp(gone, remote).flags(tcp::RST).sequence(99, 0).window(0)));
            // The trace names the device of the hook.
            let seen = rig.run(Hook::FromUplink, &under.frame(&plain));
            seen.answered(DropReason::NoEndpoint, UPLINK, &reset);
            let seen = rig.run(Hook::FromUplinkMarked, &under.frame(&plain));
            seen.answered(DropReason::NoEndpoint, UPLINK, &whole(reset, options, data));
        }
        Ok(())
    })
}

/// S45: the server is on another node. The client hears of the end with its first packet, the server with the next.
pub(crate) fn ends() -> Result<()> {
    tell("direct-ends", false, |rig, family, under| {
        let (frontend, backend) = (family.at(Who::Service(15), 80), family.at(Who::Remote, 8080));
        for (port, hook) in [(40_000, Hook::FromUplink), (40_001, Hook::FromUplinkMarked)] {
            let client = family.at(Who::PodA, port);
            let marked = port == 40_001;
            rig.run(Hook::FromPodA, &from_a(Packet::tcp(client, frontend).flags(tcp::SYN)));
            let options = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
            let pushed = push(backend, client).tcp_options(&options);
            rig.run(hook, &under.frame(&pushed)).to_pod_a(&pushed.clone().between(frontend, client).ttl(63));
            end(rig, family, backend)?;
            let told = if marked {
                pushed.clone().between(frontend, client).flags(tcp::RST | tcp::ACK).window(0)
            } else {
                reset(frontend, client, 500)
            };
            rig.run(hook, &under.frame(&pushed)).to_pod_a(&told.ttl(63));
            let told = back(refused(client, backend));
            let told = if marked { whole(told, &options, b"an event") } else { told };
            rig.run(hook, &under.frame(&pushed)).answered(DropReason::BackendGone, UPLINK, &told);
        }
        under_a_lent_name(rig, family, under)
    })
}

/// A client in the world, who is known to the server by another name: both translations are undone.
fn under_a_lent_name(rig: &mut Rig, family: Family, under: Under) -> Result<()> {
    let (client, vip) = (family.at(Who::World, 40_000), family.at(Who::Vip(1), 81));
    let backend = family.at(Who::Remote, 9090);
    crate::outside::balance(rig, vip, crate::rig::TCP, &[backend])?;
    let seen = rig.run(Hook::FromUplink, &Packet::tcp(client, vip).flags(tcp::SYN));
    let at = if under.family == Family::V4 { 50 } else { 70 } + if family == Family::V4 { 34 } else { 54 };
    let port = u16::from_be_bytes([seen.frame()[at], seen.frame()[at + 1]]);
    let pushed = push(backend, family.at(Who::Gateway, port));
    end(rig, family, backend)?;
    let told = pushed.clone().between(vip, client).flags(tcp::RST | tcp::ACK).window(0);
    let seen = rig.run(Hook::FromUplinkMarked, &under.frame(&pushed));
    seen.to_world(&told.macs(OTHER_VTEP, VTEP).ttl(63));
    Ok(())
}

/// E4: an ICMP error has a source port of the outer header like other packets, of a flow that is known or not.
pub(crate) fn errors() -> Result<()> {
    tell("direct-errors", false, |rig, family, under| {
        let (a, remote) = (family.at(Who::PodA, 9000), family.at(Who::Remote, 40_000));
        let asked = Packet::udp(remote, a);
        for known in [false, true] {
            if known {
                rig.run(Hook::FromUplink, &under.frame(&asked)).to_pod_a(&asked.clone().ttl(63));
            }
            let error = Packet::icmp_error(a.ip(), remote.ip(), IcmpError::PortUnreachable, &asked);
            under.left(&rig.run(Hook::FromPodA, &from_a(error.clone())), &error.ttl(63));
        }
        Ok(())
    })
}

/// E5: a Pod's own tunnel hears of the size that the overlay carries, also about longer packets than the kernel shortens
/// at once.
pub(crate) fn too_big() -> Result<()> {
    tell("direct-large", false, |rig, family, _| {
        rig.datapath
            .maps()
            .config
            .set(0, &quilla_abi::config::Config { overlay_mtu: 1400, ..direct(Rig::config()) })?;
        rig.bump(epoch::GLOBAL)?;
        let (here, remote) = (family.at(Who::PodA, 40_000), family.at(Who::Remote, 4789));
        for length in [1401, 1500, 3500] {
            let large = Packet::udp(here, remote).payload(&vec![9; length]);
            for hook in [Hook::FromPodA, Hook::FromPodAMarked] {
                let seen = rig.run(hook, &from_a(large.clone()));
                let told = to_a(error(IcmpError::TooBig { mtu: 1400 }, &large));
                seen.answered(DropReason::TooBig, DEVICE_A, &told);
            }
        }
        Ok(())
    })
}
