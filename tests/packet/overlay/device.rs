//! The overlay device: what it is told to write around a packet, seen on the wire, because a test run shows no tunnel key.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use quilla_abi::config::Config;
use quilla_abi::{epoch, node};
use quilla_tests::command::Run;
use socket2::{Domain, Protocol, Socket, Type};

use super::{NEXT_HOP, PORT, direct};
use crate::rig::{Family, OTHER_VTEP, OVERLAY, Rig, SLOT, UPLINK, Who, namespace};

const V4: u16 = node::flag::IPV4;
const V6: u16 = node::flag::IPV6;
const BOTH: u16 = V4 | V6;

/// The families of this node's ends and of the other's, and the one that the tunnel has: IPv4 where both have it; where none is
/// common the other's, so that whatever the kernel knows of the way decides.
const CASES: [(u16, u16, Family); 9] = [
    (BOTH, BOTH, Family::V4),
    (BOTH, V4, Family::V4),
    (BOTH, V6, Family::V6),
    (V4, BOTH, Family::V4),
    (V4, V4, Family::V4),
    (V4, V6, Family::V6),
    (V6, BOTH, Family::V6),
    (V6, V4, Family::V4),
    (V6, V6, Family::V6),
];

/// A tunnel by the device runs over a family in which both ends have an address, as one of the programs' own does, and from the
/// address by which other nodes know this one (E20), whatever the host's routes would choose.
pub(crate) fn both_ends_choose_the_device_s_family() -> Result<()> {
    namespace("device-families")?.run(|| {
        for family in Family::BOTH {
            let rig = Rig::load(&format!("device-families-{family:?}"), false)?;
            let wire = lay(&rig)?;
            for (own, other, expected) in CASES {
                set_ends(&rig, own, other)?;
                let seen = cross(&wire, family, &[own, other].map(u16::to_be_bytes).concat())?;
                let has_end = own & if expected == Family::V4 { V4 } else { V6 } != 0;
                let source = if has_end { expected.ip(Who::Host) } else { routed_from(expected) };
                let outer = (source, expected.ip(Who::OtherNode));
                assert_eq!(seen, outer, "{family:?} from {own:02b} to {other:02b}");
            }
        }
        Ok(())
    })?
}

/// A real device in the overlay's place, with the programs on it, and all frames of the namespace.
fn lay(rig: &Rig) -> Result<Socket> {
    let (overlay, uplink) = (format!("d{OVERLAY}"), format!("d{UPLINK}"));
    let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    let [index, port] = [OVERLAY, PORT.into()].map(|number| number.to_string());
    ip(&["link", "del", &overlay])?;
    ip(&["link", "add", &overlay, "index", &index, "type", "vxlan", "external", "dstport", &port])?;
    ip(&["link", "set", &overlay, "up"])?;
    for family in Family::BOTH {
        let address = |who| family.ip(who).to_string();
        let [gateway, remote, node] = [Who::Gateway, Who::Remote, Who::OtherNode].map(address);
        ip(&["address", "add", &gateway, "dev", &overlay, "nodad"])?;
        ip(&["route", "add", &remote, "dev", &overlay, "src", &gateway])?;
        let other = routed_from(family).to_string();
        ip(&["address", "replace", &other, "dev", &uplink])?;
        ip(&["route", "replace", &node, "dev", &uplink, "src", &other])?;
        for (address, mac, device) in [(remote, OTHER_VTEP, &overlay), (node, NEXT_HOP, &uplink)] {
            ip(&["neigh", "replace", &address, "lladdr", &text(mac), "dev", device, "nud", "permanent"])?;
        }
    }
    rig.datapath.attach_overlay(&overlay)?;
    let wire = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(EVERYTHING.to_be()))))
        .context("open a packet socket")?;
    wire.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(wire)
}

/// Another address of this node, from which the host's route to the other node is.
fn routed_from(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, 77, 9).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 9).into(),
    }
}

/// `ETH_P_ALL`.
const EVERYTHING: u16 = 3;

fn ip(arguments: &[&str]) -> Result<String> {
    Command::new("ip").args(arguments).text()
}

fn set_ends(rig: &Rig, own: u16, other: u16) -> Result<()> {
    let maps = rig.datapath.maps();
    let both = direct(Rig::config());
    let config = Config {
        flags: Rig::config().flags,
        tunnel_ipv4: if own & V4 == 0 { [0; 4] } else { both.tunnel_ipv4 },
        tunnel_ipv6: if own & V6 == 0 { [0; 16] } else { both.tunnel_ipv6 },
        ..both
    };
    maps.config.set(0, &config)?;
    let row = maps.nodes.get(SLOT)?.context("the other node")?;
    maps.nodes.set(SLOT, &node::Node { flags: other, ..row })?;
    rig.bump(epoch::NODES + SLOT)
}

/// The host sends a datagram to a Pod of the other node. Where the tunnel that carries it begins and ends. Each frame is seen at both ends
/// of the uplink: no two datagrams are alike.
fn cross(mut wire: &Socket, family: Family, datagram: &[u8]) -> Result<(IpAddr, IpAddr)> {
    let socket = UdpSocket::bind(family.at(Who::Gateway, 0)).context("bind the gateway's address")?;
    socket.send_to(datagram, family.at(Who::Remote, 9000)).context("send")?;
    let mut frame = [0; 2048];
    loop {
        let length = wire.read(&mut frame).context("wait for the tunnel's packet")?;
        let frame = &frame[..length];
        let ends = match frame.get(12..14) {
            Some([0x08, 0x00]) => (address::<4>(frame, 26)?, address::<4>(frame, 30)?),
            Some([0x86, 0xdd]) => (address::<16>(frame, 22)?, address::<16>(frame, 38)?),
            _ => continue,
        };
        // Nothing else has the other node's Ethernet address.
        if frame.starts_with(&NEXT_HOP) && frame.ends_with(datagram) {
            return Ok(ends);
        }
    }
}

fn address<const N: usize>(frame: &[u8], at: usize) -> Result<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    let octets = frame.get(at..).and_then(<[u8]>::first_chunk).context("an address")?;
    Ok(IpAddr::from(*octets))
}
