//! What an established packet costs when there are many flows: every packet is another flow's than the one before.
//!
//! The kernel repeats a program on one packet, so a few instructions before ours make it another flow's each time: they draw
//! a connection by chance, write its ports, and undo what the run before has changed. What they cost themselves is measured
//! with a program behind them that does nothing, and taken away. The table is as full for few connections as for many: only
//! how many are visited differs.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use aya::Pod;
use quilla_abi::counter::path;
use quilla_abi::flow::{Flow, FlowKey, state};
use quilla_abi::program::FROM_POD;
use quilla_abi::{Address, Be16};
use quilla_datapath::{Object, Table as Flows};
use quilla_tests::packet::tcp;

use super::path::{from_pod, v4, v6};
use super::rig::{Rig, Step};
use super::{Options, empty, pin, world};
use crate::statistics::Summary;
use crate::table::Table;

/// Connections that are visited; of the last, all. Each has two entries.
const SIZES: [u32; 6] = [1, 100, 1_000, 10_000, 100_000, 500_000];
const MOST: u32 = SIZES[SIZES.len() - 1];
/// Entries that the tables have room for: the kernel evicts before it is out of room.
const ROOM: u32 = 2 * MOST + 50_000;
/// Packets of a sample: enough to find the caches as the packets before left them.
const PACKETS: u32 = 200_000;
/// Where ports begin, and the logarithm of how many sources there are to each destination.
const PORT: u16 = 1024;
const SOURCES: u32 = 15;

/// What one of this node's Pods sends, and how it leaves.
struct Way {
    name: &'static str,
    to: IpAddr,
    exit: u32,
}

/// The table for `docs/performance.md`.
pub(super) fn measure(options: &Options) -> Result<String> {
    let mut rig = Rig::load("flows", &Object::embedded(), ROOM, false, false)?;
    pin()?;
    let sizes = SIZES.map(|size| size.to_string());
    let names = sizes.each_ref().map(String::as_str);
    let mut table = Table::new(&[&["Pod → Pod, over empty", "IP"][..], &names].concat());
    let mut sizes = [0; 2];
    for (family, at) in world::FAMILIES.iter().enumerate() {
        for way in [
            Way { name: "same node", to: at.pods[1], exit: path::LOCAL_POD },
            Way { name: "another node", to: at.remote, exit: path::OVERLAY },
        ] {
            let step = from_pod(0, (at.pods[0], PORT), (way.to, PORT)).with_payload(&SEED);
            sizes[family] = match way.to {
                IpAddr::V4(_) => fill(&mut rig, &step, v4, |rig| &rig.maps().flows_v4)?,
                IpAddr::V6(_) => fill(&mut rig, &step, v6, |rig| &rig.maps().flows_v6)?,
            };
            let times = time(&mut rig, &step, way.exit, options.rounds)?;
            let ip = if way.to.is_ipv4() { "4" } else { "6" };
            let cells =
                times.map(|Summary { median, least, most }| format!("{median:.0} ({least:.0}-{most:.0})"));
            table.row([&[way.name.to_owned(), ip.to_owned()][..], &cells].concat());
        }
    }
    Ok(format!(
        "Median, least and most of {} rounds of {PACKETS} packets, by connections visited; {} entries, keys and values of \
         {} and {} bytes.\n\n{table}",
        options.rounds,
        2 * MOST,
        sizes[0],
        sizes[1]
    ))
}

/// Opens one connection and fills the table with others like it. The size of key and value.
fn fill<A: Address>(
    rig: &mut Rig,
    step: &Step,
    address: impl Fn(IpAddr) -> A,
    table: impl Fn(&Rig) -> &Flows<FlowKey<A>, Flow<A>>,
) -> Result<usize>
where
    FlowKey<A>: Pod + Default,
    Flow<A>: Pod + Default,
{
    let old: Vec<FlowKey<A>> = table(rig).entries()?.into_iter().map(|(key, _)| key).collect();
    table(rig).remove_batch(&old)?;
    rig.run(step, &step.flags(tcp::SYN), 1)?;
    let table = table(rig);
    let there = step.key(address);
    let pair = [there, there.mirrored()];
    let entry = |key| table.get(&key)?.context("the entry of a connection");
    let [first, back] =
        [entry(pair[0])?, entry(pair[1])?].map(|entry| Flow { state: state::ESTABLISHED, ..entry });
    let numbers: Vec<u32> = shuffled().collect();
    for part in numbers.chunks(8192) {
        let rows: Vec<_> = part
            .iter()
            .flat_map(|&number| {
                let [sport, dport] = ports(number).map(Be16::new);
                let there = FlowKey { sport, dport, ..pair[0] };
                let mut rows = [(there, first), (there.mirrored(), back)];
                for (key, flow) in &mut rows {
                    (flow.rewrite.sport, flow.rewrite.dport) = (key.sport, key.dport);
                }
                rows
            })
            .collect();
        table.insert_batch(&rows)?;
    }
    Ok(size_of::<FlowKey<A>>() + size_of::<Flow<A>>())
}

/// All connections, in no order: as they lie in memory, they are not neighbours.
fn shuffled() -> impl Iterator<Item = u32> {
    let bits = MOST.next_power_of_two();
    (0..bits)
        .map(move |number| number.wrapping_mul(2_654_435_761) & (bits - 1))
        .filter(|&number| number < MOST)
}

/// Source and destination port of a connection, as [`walk`] has them.
fn ports(number: u32) -> [u16; 2] {
    let part = |part| PORT + u16::try_from(part).expect("less than there are ports");
    [part(number & ((1 << SOURCES) - 1)), part(number >> SOURCES)]
}

/// Nanoseconds of a packet by how many connections are visited. Interleaved: whatever disturbs the machine disturbs all.
fn time(rig: &mut Rig, step: &Step, exit: u32, rounds: usize) -> Result<[Summary; SIZES.len()]> {
    let frame = step.frame();
    let mut runners = Vec::new();
    for size in SIZES {
        let walk = walk(&frame, step.packet().source().is_ipv4(), size);
        runners.push([empty::behind(&walk)?, rig.behind(FROM_POD, &walk)?]);
    }
    let mut times = SIZES.map(|_| Vec::new());
    for _ in 0..rounds.max(1) {
        for (runners, times) in runners.iter_mut().zip(&mut times) {
            let before = rig.forwarded(exit)?;
            let mut each = Vec::new();
            for runner in runners {
                let start = Instant::now();
                runner.repeat(&frame, &step.context(), PACKETS)?;
                each.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(PACKETS));
            }
            let forwarded = rig.forwarded(exit)? - before;
            ensure!(forwarded == u64::from(PACKETS), "{forwarded} of {PACKETS} packets were forwarded");
            times.push(each[1] - each[0]);
        }
    }
    Ok(times.map(|times| Summary::of(&times)))
}

/// What chance begins with; the packet carries it on.
const SEED: [u8; 4] = [0x5e, 0xed, 0x5e, 0xed];

/// An instruction (`struct bpf_insn`); the register that is written is in the lower half of `registers`.
fn op(code: u8, registers: u8, offset: u16, value: u32) -> u64 {
    u64::from(code) | u64::from(registers) << 8 | u64::from(offset) << 16 | u64::from(value) << 32
}

/// Makes the packet that of a connection drawn by chance, otherwise as `frame` has it.
fn walk(frame: &[u8], is_v4: bool, size: u32) -> Vec<u64> {
    let [transport, hops] = if is_v4 { [34, 22] } else { [54, 21] };
    let (chance, end) = (transport + 20, transport + 24);
    let byte = |at: u16| frame[usize::from(at)];
    let half = |at: u16| u16::from_ne_bytes([byte(at), byte(at + 1)]);
    let word = |at: u16| u32::from_ne_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
    let mut then = vec![
        op(0x61, 0x25, chance, 0),
        op(0x24, 0x05, 0, 1_664_525),
        op(0x04, 0x05, 0, 1_013_904_223),
        op(0x63, 0x52, chance, 0),
        op(0xbf, 0x54, 0, 0),
        op(0x27, 0x04, 0, size),
        op(0x77, 0x04, 0, 32),
        op(0xbf, 0x45, 0, 0),
        op(0x57, 0x05, 0, (1 << SOURCES) - 1),
        op(0x07, 0x05, 0, PORT.into()),
        op(0xdc, 0x05, 0, 16),
        op(0x6b, 0x52, transport, 0),
        op(0x77, 0x04, 0, SOURCES),
        op(0x07, 0x04, 0, PORT.into()),
        op(0xdc, 0x04, 0, 16),
        op(0x6b, 0x42, transport + 2, 0),
    ];
    then.extend([0, 4, 8].map(|at| op(0x62, 0x02, at, word(at))));
    then.push(op(0x6a, 0x02, 12, half(12).into()));
    // With the hops IPv4 has a protocol and a sum.
    then.push(if is_v4 { op(0x62, 0x02, hops, word(hops)) } else { op(0x72, 0x02, hops, byte(hops).into()) });
    let mut program = vec![
        op(0xbf, 0x16, 0, 0),
        op(0x61, 0x62, 76, 0),
        op(0x61, 0x63, 80, 0),
        op(0xbf, 0x24, 0, 0),
        op(0x07, 0x04, 0, end.into()),
        op(0x2d, 0x34, u16::try_from(then.len()).expect("a short program"), 0),
    ];
    program.append(&mut then);
    program
}
