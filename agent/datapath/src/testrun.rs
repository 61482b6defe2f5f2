//! Running one packet through a loaded program, by `BPF_PROG_TEST_RUN`: packet and specification tests, `quilla trace`.
//!
//! Made for many millions of runs: one system call and no allocation each. A run executes no redirect; with
//! [`crate::Options::trace`] the programs say in `cb` where the packet would have gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::datapath::Datapath;
use crate::error::{DatapathError, Result};
use crate::sys;

/// `struct __sk_buff`, as far as a test run accepts it; the kernel wants everything else to be zero.
#[repr(C)]
#[derive(Clone, Copy)]
struct SkBuff {
    len: u32,
    pkt_type: u32,
    mark: u32,
    unused: [u32; 6],
    ingress_ifindex: u32,
    ifindex: u32,
    tc_index: u32,
    cb: [u32; 5],
    more: [u32; 27],
    gso_size: u32,
    rest: [u32; 3],
}

const _: () = assert!(size_of::<SkBuff>() == 192);
// SAFETY: made of `u32` only.
unsafe impl aya::Pod for SkBuff {}

/// Where a packet seems to come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TestContext {
    /// The device whose hook runs; it must exist in the calling thread's namespace. 0 for the loopback device.
    pub ifindex: u32,
    /// The device the packet came in by; 0 for a packet of the host itself.
    pub ingress_ifindex: u32,
    /// The packet's scratch words; [`quilla_abi::trace`] says what the programs make of them.
    pub cb: [u32; 5],
    /// The packet's mark.
    pub mark: u32,
    /// The length of the segments that the packet is to be cut into (`gso_size`); 0 = it is one.
    pub segment: u32,
    /// The packet comes with the sum of all its bytes (`CHECKSUM_COMPLETE`), as many network cards give it, and the kernel
    /// looks afterwards whether the programs kept that right: if not, the run fails with `EBADMSG`. Since Linux 6.17;
    /// `EINVAL` before.
    pub summed: bool,
}

/// What became of a packet. The packet borrows the runner's buffer and lives until the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome<'a> {
    /// The program's return value, such as `TC_ACT_SHOT`.
    pub verdict: i32,
    /// The frame as the program left it.
    pub packet: &'a [u8],
    /// The packet's scratch words.
    pub cb: [u32; 5],
    /// The packet's mark.
    pub mark: u32,
    /// How long a run took on average.
    pub nanoseconds: u32,
}

/// Runs packets through one program.
#[derive(Debug)]
pub struct TestRunner {
    name: String,
    program: OwnedFd,
    /// Where `program` finds the one that it goes on with; it is empty when nobody has it open.
    #[expect(dead_code, reason = "kept open")]
    table: Option<OwnedFd>,
    packet: Vec<u8>,
}

/// Longest frame that comes out: the longest that goes in (64 kB), and what an encapsulation adds.
const PACKET_LIMIT: usize = 68 * 1024;

impl TestRunner {
    /// Of a program of `datapath`.
    pub fn new(datapath: &Datapath, program: &str) -> Result<Self> {
        Self::from_fd(program, datapath.program(program)?)
    }

    /// Of the same program for packets that the kernel takes for ones in a tunnel (`skb->encapsulation`), as those are
    /// which a program has taken out of one.
    pub fn in_tunnel(datapath: &Datapath, program: &str) -> Result<Self> {
        Self::behind(program, datapath.program(program)?, &tunnel())
    }

    /// Of the same program for frames from which the device took a VLAN tag, the way of a tagged frame out of a veth.
    pub fn tagged(datapath: &Datapath, program: &str, tag: u16) -> Result<Self> {
        Self::behind(program, datapath.program(program)?, &tagging(tag))
    }

    /// Of any program behind instructions that prepare the packet for it and leave the context in register 6.
    pub fn behind(name: &str, program: BorrowedFd<'_>, instructions: &[u64]) -> Result<Self> {
        let error = |source| DatapathError::kernel("prepare packets for", name, source);
        let table = sys::program_table(program).map_err(error)?;
        let before = [instructions, &go_on(table.as_fd())].concat();
        let before = sys::load_classifier(&before).map_err(error)?;
        Ok(Self { table: Some(table), ..Self::from_fd(name, before.as_fd())? })
    }

    /// Of any program for packets with an Ethernet header.
    pub fn from_fd(name: &str, program: BorrowedFd<'_>) -> Result<Self> {
        let program = program
            .try_clone_to_owned()
            .map_err(|source| DatapathError::kernel("duplicate program", name, source))?;
        Ok(Self { name: name.to_owned(), program, table: None, packet: vec![0; PACKET_LIMIT] })
    }

    /// Runs `packet`, an Ethernet frame, once.
    pub fn run(&mut self, packet: &[u8], context: &TestContext) -> Result<Outcome<'_>> {
        self.repeat(packet, context, 1)
    }

    /// Runs it `times` times, each on what the run before left, to learn the time of one run.
    pub fn repeat(&mut self, packet: &[u8], context: &TestContext, times: u32) -> Result<Outcome<'_>> {
        let TestContext { ifindex, ingress_ifindex, cb, mark, segment, summed } = *context;
        let mut skb = [SkBuff {
            len: 0,
            pkt_type: 0,
            mark,
            unused: [0; 6],
            ingress_ifindex,
            ifindex,
            tc_index: 0,
            cb,
            more: [0; 27],
            gso_size: segment,
            rest: [0; 3],
        }];
        let run = sys::test_run(
            self.program.as_fd(),
            packet,
            &mut self.packet,
            crate::map::bytes_mut(&mut skb),
            times,
            summed,
        )
        .map_err(|source| self.error(source))?;
        let [skb] = skb;
        Ok(Outcome {
            verdict: run.verdict.cast_signed(),
            packet: &self.packet[..run.len.min(PACKET_LIMIT)],
            cb: skb.cb,
            mark: skb.mark,
            nanoseconds: run.nanoseconds,
        })
    }

    fn error(&self, source: io::Error) -> DatapathError {
        DatapathError::kernel("test-run program", &self.name, source)
    }
}

/// An instruction (`struct bpf_insn`).
fn instruction(code: u8, registers: u8, offset: u8, value: i32) -> u64 {
    u64::from(code)
        | u64::from(registers) << 8
        | u64::from(offset) << 16
        | u64::from(value.cast_unsigned()) << 32
}

fn set(register: u8, value: i32) -> u64 {
    instruction(0xb7, register, 0, value)
}

fn copy(to: u8, from: u8) -> u64 {
    instruction(0xbf, from << 4 | to, 0, 0)
}

/// A register is set to 64 bits; `kind` 1 makes them of a map's descriptor.
fn long(register: u8, kind: u8, value: u64) -> [u64; 2] {
    let first = u64::from(kind << 4 | register) << 8 | 0x18;
    [first | value << 32, value >> 32 << 32]
}

fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, helper)
}

/// Goes on with the program in `table`.
fn go_on(table: BorrowedFd<'_>) -> Vec<u64> {
    let mut program = vec![copy(1, 6)];
    program.extend(long(2, 1, u64::from(table.as_raw_fd().cast_unsigned())));
    program.extend([set(3, 0), call(12), set(0, -1), instruction(0x95, 0, 0, 0)]);
    program
}

/// Makes room for the headers of a tunnel, and takes it away again.
fn tunnel() -> Vec<u64> {
    const ROOM: i32 = 50;
    /// UDP with Ethernet inside, and segments stay as long as they are (`BPF_F_ADJ_ROOM_*`).
    const REST: u64 = 14 << 56 | 1 << 6 | 1 << 4 | 1;
    const IPV4: u64 = 1 << 1 | REST;
    const IPV6: u64 = 1 << 2 | REST;
    let mut program = vec![copy(6, 1), instruction(0x61, 0x17, 16, 0)];
    program.extend(long(4, 0, IPV4));
    // Over IPv6 if that is the packet's own protocol.
    program.push(instruction(0x55, 7, 2, i32::from(0x86dd_u16.to_be())));
    program.extend(long(4, 0, IPV6));
    program.extend([set(2, ROOM), set(3, 1), call(50)]);
    program.extend([copy(1, 6), set(2, -ROOM), set(3, 1), set(4, 1), call(50)]);
    program
}

/// Tags the frame beside its bytes.
fn tagging(tag: u16) -> Vec<u64> {
    vec![copy(6, 1), set(2, i32::from(0x8100_u16.to_be())), set(3, tag.into()), call(18)]
}
