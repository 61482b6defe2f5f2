//! The peers' programs: one or two helper calls each, with everything else in their code.

use std::iter;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::TcAttachType;
use quilla_tests::netns::Netns;

use crate::program::{self, Instruction};

const SET_TUNNEL_KEY: u32 = 21;
const REDIRECT: u32 = 23;
const ADJUST_ROOM: u32 = 50;
const REDIRECT_PEER: u32 = 155;
/// No checksum in the outer UDP header.
const ZERO_CSUM_TX: u32 = 2;

/// Room behind the Ethernet header (`BPF_ADJ_ROOM_MAC`).
const BEHIND_ETHERNET: u32 = 1;
/// Segments as long as before.
const FIXED_GSO: u32 = 1 << 0;
/// IPv4, UDP and an Ethernet header are added, the latter so long (the flags `BPF_F_ADJ_ROOM_ENCAP_*`).
const ENCAPSULATED: [u32; 2] = [14 << 24, 1 << 1 | 1 << 4 | 1 << 6 | FIXED_GSO];
/// They are taken away, and what is known of the checksum stays (`BPF_F_ADJ_ROOM_NO_CSUM_RESET`).
const OPENED: [u32; 2] = [0, 1 << 5 | FIXED_GSO];

/// Offsets in `struct __sk_buff`.
const DATA: u8 = 76;
const DATA_END: u8 = 80;

/// The code of a drop.
const SHOT: u32 = 2;

/// Bytes of the headers that VXLAN over IPv4 adds: IPv4, UDP, VXLAN, Ethernet.
const OVERHEAD: i32 = 50;
/// The same with the outer Ethernet header.
const HEADERS: u8 = 64;

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

fn set_long(register: u8, [high, low]: [u32; 2]) -> [Instruction; 2] {
    [with([0x18, register, 0, 0], low), with([0; 4], high)]
}

/// A word at an offset from what a register points to.
fn store(register: u8, offset: i16, value: u32) -> Instruction {
    let [low, high] = offset.to_le_bytes();
    with([0x62, register, low, high], value)
}

fn load(to: u8, from: u8, offset: u8) -> Instruction {
    with([0x61, from << 4 | to, offset, 0], 0)
}

/// Skips instructions, if the first register has more than the second.
fn skip_if_greater(first: u8, second: u8, instructions: u8) -> Instruction {
    with([0x2d, second << 4 | first, instructions, 0], 0)
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
        store(FRAME, -8, vni),
        store(FRAME, -4, node.to_bits()),
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

/// Everything behind constant headers, out of the device with this index, to the Ethernet address. They say no more than what
/// is read on the way: what follows each of them, for segmentation.
pub(super) fn in_tunnel(to: [u8; 6], underlay: u32) -> Vec<Instruction> {
    let mut headers = [0; HEADERS as usize];
    headers[..6].copy_from_slice(&to);
    // EtherType, version and length, protocol; the EtherType within.
    for (at, value) in [(12, 0x08), (14, 0x45), (23, 17), (62, 0x08)] {
        headers[at] = value;
    }
    let words = headers.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let writes = iter::zip((0..).step_by(4), words).map(|(offset, word)| store(7, offset, word));
    let mut code = vec![copy(6, 1)];
    code.extend(adjust_room(OVERHEAD, ENCAPSULATED));
    code.extend([load(7, 6, DATA), load(8, 6, DATA_END), copy(2, 7), add(2, HEADERS.into())]);
    code.push(skip_if_greater(2, 8, HEADERS / 4 + 4));
    code.extend(writes);
    code.extend([set(1, underlay), set(2, 0), call(REDIRECT), EXIT]);
    code.extend([set(0, SHOT), EXIT]);
    code
}

/// Everything without those headers to the far end of the veth with this index.
pub(super) fn out_of_tunnel(index: u32) -> Vec<Instruction> {
    let mut code = adjust_room(-OVERHEAD, OPENED);
    code.extend(to_peer_of(index));
    code
}

/// Makes room for headers, or takes it away.
fn adjust_room(bytes: i32, flags: [u32; 2]) -> Vec<Instruction> {
    let mut code = vec![set(2, bytes.cast_unsigned()), set(3, BEHIND_ETHERNET)];
    code.extend(set_long(4, flags));
    code.push(call(ADJUST_ROOM));
    code
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
    use super::{EXIT, FRAME, copy, set_long, skip_if_greater, store, to_peer_of};

    #[test]
    fn instructions_are_as_the_kernel_reads_them() {
        let code = to_peer_of(0x0102);
        assert_eq!(code[0], [0xb7, 1, 0, 0, 2, 1, 0, 0]);
        assert_eq!(code[2], [0x85, 0, 0, 0, 155, 0, 0, 0]);
        assert_eq!(code[3], EXIT);
        assert_eq!(copy(2, 10), [0xbf, 0xa2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(store(FRAME, -8, 5), [0x62, 10, 0xf8, 0xff, 5, 0, 0, 0]);
        assert_eq!(set_long(4, [5, 3]), [[0x18, 4, 0, 0, 3, 0, 0, 0], [0, 0, 0, 0, 5, 0, 0, 0]]);
        assert_eq!(skip_if_greater(2, 8, 20), [0x2d, 0x82, 20, 0, 0, 0, 0, 0]);
    }
}
