//! What arrives in a Pod's namespace for an address that is not the Pod's: the kernel there drops it in silence, and no
//! socket of the Pod's own sees it.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// `ETH_P_IP` and `ETH_P_IPV6`: received packets only, unlike `ETH_P_ALL`.
const PROTOCOLS: [u16; 2] = [0x0800, 0x86dd];
/// So much of a packet says whose it is.
const HEAD: u32 = 64;

// Instructions of `linux/bpf_common.h`, with absolute loads and constants.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

/// A packet socket for each family, on which the kernel leaves only what is astray.
#[derive(Debug)]
pub(super) struct Strays([Socket; 2]);

impl Strays {
    /// In the calling thread's namespace, whose Pod has these addresses.
    pub(super) fn watch(own: [IpAddr; 2]) -> Result<Self> {
        let open = |protocol: u16| -> Result<Socket> {
            let protocol = Protocol::from(i32::from(protocol.to_be()));
            let socket =
                Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).context("open a packet socket")?;
            socket.set_nonblocking(true).context("do not wait")?;
            Ok(socket)
        };
        let [v4, v6] = PROTOCOLS.map(open);
        let strays = Self([v4?, v6?]);
        for (socket, address) in strays.0.iter().zip(own) {
            socket.attach_filter(&filter(address)).context("attach a filter")?;
        }
        // Whatever came before the filter.
        strays.take();
        Ok(strays)
    }

    /// What has come astray since it was asked last.
    pub(super) fn take(&self) -> Vec<String> {
        let mut found = Vec::new();
        for mut socket in &self.0 {
            let mut head = [0; HEAD as usize];
            loop {
                match socket.read(&mut head) {
                    Ok(length) => found.push(describe(&head[..length])),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => {
                        found.push(format!("what cannot be read: {error}"));
                        break;
                    }
                }
            }
        }
        found
    }
}

/// Passes what is for another unicast address. Loopback and, of IPv6, link-local addresses are the kernel's own affairs.
fn filter(own: IpAddr) -> Vec<SockFilter> {
    let mut program = Vec::new();
    let mut step = |code, if_not, value| program.push(SockFilter::new(code, 0, if_not, value));
    match own {
        IpAddr::V4(own) => {
            step(LOAD, 0, 16);
            step(JUMP_IF_EQUAL, 1, own.to_bits());
            step(RETURN, 0, 0);
            step(JUMP_IF_NOT_LESS, 1, Ipv4Addr::new(224, 0, 0, 0).to_bits());
            step(RETURN, 0, 0);
            step(AND, 0, 0xff00_0000);
            step(JUMP_IF_EQUAL, 1, Ipv4Addr::new(127, 0, 0, 0).to_bits());
            step(RETURN, 0, 0);
        }
        IpAddr::V6(own) => {
            for (mask, prefix) in [(0xff00_0000, 0xff00_0000), (0xffc0_0000, 0xfe80_0000)] {
                step(LOAD, 0, 24);
                step(AND, 0, mask);
                step(JUMP_IF_EQUAL, 1, prefix);
                step(RETURN, 0, 0);
            }
            for address in [own, Ipv6Addr::LOCALHOST] {
                let words = address.octets();
                for (number, word) in (0_u8..).zip(words.chunks_exact(4)) {
                    let word = word.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
                    step(LOAD, 0, 24 + 4 * u32::from(number));
                    // To behind the `RETURN`.
                    step(JUMP_IF_EQUAL, 2 * (3 - number) + 1, word);
                }
                step(RETURN, 0, 0);
            }
        }
    }
    step(RETURN, 0, HEAD);
    program
}

fn describe(head: &[u8]) -> String {
    let v4 = |at: usize| head.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let v6 = |at: usize| head.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let ends = match head.first().map(|first| first >> 4) {
        Some(4) => v4(12).zip(v4(16)).map(|(from, to)| (IpAddr::from(from), IpAddr::from(to))),
        Some(6) => v6(8).zip(v6(24)).map(|(from, to)| (IpAddr::from(from), IpAddr::from(to))),
        _ => None,
    };
    match ends {
        Some((from, to)) => format!("a packet from {from} to {to}"),
        None => format!("a packet {head:02x?}"),
    }
}
