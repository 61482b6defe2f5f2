//! The peers' programs: one or two helper calls each, with everything else in their code.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::TcAttachType;
use quilla_tests::netns::Netns;

use crate::program::{self, Instruction};

const SET_TUNNEL_KEY: u32 = 21;
const REDIRECT: u32 = 23;
const REDIRECT_PEER: u32 = 155;
/// No checksum in the outer UDP header.
const ZERO_CSUM_TX: u32 = 2;

const EXIT: Instruction = [0x95, 0, 0, 0, 0, 0, 0, 0];
/// The stack's end.
const FRAME: u8 = 10;

fn with(head: [u8; 4], immediate: u32) -> Instruction {
    let [a, b, c, d] = immediate.to_le_bytes();
    [head[0], head[1], head[2], head[3], a, b, c, d]
}

fn set(register: u8, value: u32) -> Instruction {
    with([0xb7, register, 0, 0], value)
}

fn copy(to: u8, from: u8) -> Instruction {
    with([0xbf, from << 4 | to, 0, 0], 0)
}

fn add(register: u8, value: i32) -> Instruction {
    with([0x07, register, 0, 0], value.cast_unsigned())
}

/// A word so far below the stack's end.
fn store(below: i16, value: u32) -> Instruction {
    let [low, high] = (-below).to_le_bytes();
    with([0x62, FRAME, low, high], value)
}

fn call(helper: u32) -> Instruction {
    with([0x85, 0, 0, 0], helper)
}

/// Everything to the far end of the veth with this index.
pub(super) fn to_peer_of(index: u32) -> Vec<Instruction> {
    vec![set(1, index), set(2, 0), call(REDIRECT_PEER), EXIT]
}

/// Everything to one node, by the overlay device with this index.
pub(super) fn to_node(node: Ipv4Addr, vni: u32, overlay: u32) -> Vec<Instruction> {
    vec![
        // The shortest `struct bpf_tunnel_key` that the kernel takes: identifier and address, the latter as a number.
        store(8, vni),
        store(4, node.to_bits()),
        copy(2, FRAME),
        add(2, -8),
        set(3, 8),
        set(4, ZERO_CSUM_TX),
        call(SET_TUNNEL_KEY),
        set(1, overlay),
        set(2, 0),
        call(REDIRECT),
        EXIT,
    ]
}

/// Runs the program for everything that comes in by a device of the namespace, for as long as the result lives.
pub(super) fn attach(netns: &Netns, device: &str, code: &[Instruction]) -> Result<Ebpf> {
    const NAME: &str = "bare";
    let mut loaded = program::load(NAME, code)?;
    let attached = netns.run(|| {
        program::get(&mut loaded, NAME)?.attach(device, TcAttachType::Ingress).map_err(anyhow::Error::from)
    })?;
    attached.with_context(|| format!("attach to {device} of {}", netns.name()))?;
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use super::{EXIT, copy, store, to_peer_of};

    #[test]
    fn instructions_are_as_the_kernel_reads_them() {
        let code = to_peer_of(0x0102);
        assert_eq!(code[0], [0xb7, 1, 0, 0, 2, 1, 0, 0]);
        assert_eq!(code[2], [0x85, 0, 0, 0, 155, 0, 0, 0]);
        assert_eq!(code[3], EXIT);
        assert_eq!(copy(2, 10), [0xbf, 0xa2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(store(8, 5), [0x62, 10, 0xf8, 0xff, 5, 0, 0, 0]);
    }
}
