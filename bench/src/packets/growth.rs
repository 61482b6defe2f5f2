//! What the first packet of a connection costs as Services and their endpoints grow: rows for `scale`.
//!
//! Every packet is run once and is the first of a connection of its own, so each finds its Service, chooses a backend
//! and makes its flows; Services are asked for in no order, so that the caches do not help. An established packet is not
//! measured here: it looks up its flow and no Service, which `packets` counts.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use anyhow::{Result, ensure};
use quilla_abi::Be16;
use quilla_abi::backend::Backend;
use quilla_abi::counter::path;
use quilla_abi::service::{Service, ServiceKey, scope};
use quilla_datapath::{Maps, Object};
use quilla_plan::{BackendKey, Member, maglev};
use quilla_tests::packet::number::TCP;
use quilla_tests::packet::tcp;

use super::path::from_pod;
use super::rig::Rig;
use super::{pin, world};
use crate::statistics::Summary;
use crate::table::Table;

const SIZES: [u32; 6] = [1, 10, 100, 1_000, 10_000, 100_000];
/// Of each size and round; both entries of all their flows fit the table.
const PACKETS: u32 = 8_000;
const ROUNDS: usize = 7;
const FLOWS: u32 = 65_536;
/// Of the Service with many endpoints.
const MANY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 112, 0, 1));
/// Where its slots begin.
const SLOTS: u32 = 1_000;
/// Endpoints of the Maglev table.
const MEMBERS: u8 = 100;

/// The table for `docs/performance.md`.
pub(crate) fn measure() -> Result<String> {
    world::namespace()?.run(inside)?
}

fn inside() -> Result<String> {
    pin()?;
    let mut rig = Rig::load("growth", &Object::embedded(), FLOWS, false, false)?;
    let mut table =
        Table::new(&["there are", "ns to find a Service", "range", "ns to choose an endpoint", "range"]);
    let mut before = 0;
    for size in SIZES {
        add_services(rig.maps(), before..size)?;
        add_endpoints(rig.maps(), before..size)?;
        before = size;
        let (mut found, mut chosen) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let service = |number: u32| IpAddr::V4(service(number.wrapping_mul(2_654_435_761) % size));
            found.push(run(&mut rig, round, path::LOCAL_POD, service)?);
            chosen.push(run(&mut rig, round, path::OVERLAY, |_| MANY)?);
        }
        let cells = |times: &[f64]| {
            let Summary { median, least, most } = Summary::of(times);
            [format!("{median:.0}"), format!("{least:.0}-{most:.0}")]
        };
        table.row([&[size.to_string()][..], &cells(&found), &cells(&chosen)].concat());
    }
    Ok(format!("{table}\n{}", publish(rig.maps())?))
}

/// The middle of the times of packets that are each the first of a connection.
fn run(rig: &mut Rig, round: usize, exit: u32, to: impl Fn(u32) -> IpAddr) -> Result<f64> {
    let flows = rig.maps().flows_v4.entries()?;
    rig.maps().flows_v4.remove_batch(&flows.iter().map(|(key, _)| *key).collect::<Vec<_>>())?;
    let before = rig.forwarded(exit)?;
    let mut times = Vec::new();
    for number in 0..PACKETS {
        let port = u16::try_from(1024 + number)?;
        // Elsewhere in the list of Services each time.
        let to = to(number + u32::try_from(round)? * PACKETS);
        let step = from_pod(0, (world::FAMILIES[0].pods[0], port), (to, world::PORTS[0]));
        times.push(f64::from(rig.run(&step, &step.flags(tcp::SYN), 1)?.nanoseconds));
    }
    let forwarded = rig.forwarded(exit)? - before;
    ensure!(forwarded == u64::from(PACKETS), "{forwarded} of {PACKETS} packets were forwarded");
    Ok(Summary::of(&times).median)
}

fn service(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 100, 0, 0)) + number)
}

fn key(addr: Ipv4Addr) -> ServiceKey<[u8; 4]> {
    let port = Be16::new(world::PORTS[0]);
    ServiceKey { addr: addr.octets(), port, proto: TCP, scope: scope::INTERNAL }
}

/// All of them with the one backend that the world has.
fn add_services(maps: &Maps, numbers: std::ops::Range<u32>) -> Result<()> {
    let row = |number| {
        let row = Service { id: 10 + number, slot_base: 0, slot_count: 1, ..Service::default() };
        (key(service(number)), row)
    };
    Ok(maps.services_v4.insert_batch(&numbers.map(row).collect::<Vec<_>>())?)
}

/// More backends on another node behind one Service.
fn add_endpoints(maps: &Maps, numbers: std::ops::Range<u32>) -> Result<()> {
    let (IpAddr::V4(remote), IpAddr::V4(many)) = (world::FAMILIES[0].remote, MANY) else {
        unreachable!("IPv4 comes first")
    };
    let backend = |number: u32| {
        let [.., high, low] = number.to_be_bytes();
        Backend {
            addr: remote.octets(),
            port: Be16::new(u16::from_be_bytes([high, low]).max(1)),
            proto: TCP,
            pad: 0,
        }
    };
    let id = |number| 2 + number;
    let count = numbers.end;
    maps.backends_v4
        .set_batch(&numbers.clone().map(|number| (id(number), backend(number))).collect::<Vec<_>>())?;
    maps.slots.set_batch(&numbers.map(|number| (SLOTS + number, id(number))).collect::<Vec<_>>())?;
    let row = Service { id: 9, slot_base: SLOTS, slot_count: count, ..Service::default() };
    Ok(maps.services_v4.insert(&key(many), &row)?)
}

/// What it takes to write a Maglev table, beside making it.
fn publish(maps: &Maps) -> Result<String> {
    let member = |number| {
        let backend = BackendKey { address: [10, 244, 2, number].into(), port: 8080, protocol: TCP };
        Member { backend, weight: 1 }
    };
    let members: Vec<Member> = (1..=MEMBERS).map(member).collect();
    let (mut made, mut both, mut slots) = (Vec::new(), Vec::new(), 0);
    for _ in 0..100 {
        let start = Instant::now();
        let table = maglev::table(&members, maglev::FULL_DENSITY);
        made.push(start.elapsed().as_secs_f64() * 1e3);
        maps.slots.set_batch(&(SLOTS..).zip(table.iter().copied()).collect::<Vec<_>>())?;
        both.push(start.elapsed().as_secs_f64() * 1e3);
        slots = table.len();
    }
    let [made, both] = [made, both].map(|times| Summary::of(&times).median);
    Ok(format!(
        "A Maglev table of {MEMBERS} endpoints, {slots} slots: {made:.2} ms to make, {both:.2} ms to make and write, {:.2} times as long.",
        both / made
    ))
}
