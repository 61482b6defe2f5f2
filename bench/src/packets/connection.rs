//! What each packet of a TCP connection costs, from the first to the last, with direct encapsulation.
//!
//! Every connection is a new one, and every packet is run once: what the kernel says a run took is its own clock around
//! that one run, and the middle of many such runs counts. So these times have more in them than those of a packet that is
//! repeated, and are to be compared with each other and with the empty program beside them.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use quilla_abi::config::OVERLAY_PORT;
use quilla_abi::counter::path;
use quilla_datapath::{TestContext, TestRunner};
use quilla_tests::packet::{Fault, Packet, tcp};

use super::candidate::Candidate;
use super::path::{from_pod, from_world};
use super::rig::{Calls, Rig, Step};
use super::{COLUMNS, Options, pin, world};
use crate::statistics::Summary;
use crate::table::Table;

/// Which side sends a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Server,
}

/// The last opens another connection under the same tuple, which its client may use again by now.
const PACKETS: [(&str, Sender, u8); 10] = [
    ("SYN", Sender::Client, tcp::SYN),
    ("SYN and ACK back", Sender::Server, tcp::SYN | tcp::ACK),
    ("ACK", Sender::Client, tcp::ACK),
    ("data", Sender::Client, tcp::PSH | tcp::ACK),
    ("data back", Sender::Server, tcp::PSH | tcp::ACK),
    ("FIN", Sender::Client, tcp::FIN | tcp::ACK),
    ("FIN back", Sender::Server, tcp::FIN | tcp::ACK),
    ("last ACK", Sender::Client, tcp::ACK),
    ("RST", Sender::Client, tcp::RST | tcp::ACK),
    ("SYN again", Sender::Client, tcp::SYN),
];

/// Where client and server are: a Pod of this node, by its number, or one of another node.
struct Parties {
    name: &'static str,
    client: Option<usize>,
    server: Option<usize>,
}

const PARTIES: [Parties; 3] = [
    Parties { name: "to another node", client: Some(0), server: None },
    Parties { name: "from another node", client: None, server: Some(1) },
    Parties { name: "same node", client: Some(0), server: Some(1) },
];

impl Parties {
    /// A packet of the connection at the hook that meets it first, and the way it leaves by.
    fn step(&self, (_, sender, flags): (&str, Sender, u8), client_port: u16) -> (Step, u32) {
        let client = (address(self.client), client_port);
        let server = (address(self.server), world::PORTS[1]);
        let (from, to, pod, receiver) = match sender {
            Sender::Client => (client, server, self.client, self.server),
            Sender::Server => (server, client, self.server, self.client),
        };
        let step = match pod {
            Some(pod) => from_pod(pod, from, to).with_flags(flags),
            None => from_tunnel(&Packet::tcp(from, to).flags(flags)),
        };
        (step, if receiver.is_some() { path::LOCAL_POD } else { path::OVERLAY })
    }
}

fn address(pod: Option<usize>) -> IpAddr {
    let at = &world::FAMILIES[0];
    pod.map_or(at.remote, |pod| at.pods[pod])
}

/// What the other node sends in its tunnel.
fn from_tunnel(inner: &Packet) -> Step {
    const OUTER_PORT: u16 = 0x8123;
    let outer = Packet::vxlan(
        (world::PEER.1.into(), OUTER_PORT),
        (world::FAMILIES[0].host, OVERLAY_PORT),
        world::VNI,
        inner,
    );
    from_world(outer.fault(Fault::NoUdpChecksum))
}

/// The table for `docs/performance.md`.
pub(super) fn measure(options: &Options, candidates: &[Candidate], empty: &mut TestRunner) -> Result<String> {
    let mut counted = Rig::load("counted-connections", &candidates[0].object(), options.flows, true, true)?;
    world::encapsulate(counted.maps())?;
    let calls = count(&mut counted)?;
    drop(counted);
    pin()?;
    let mut times = Times::new(candidates.len());
    for load in 0..options.loads.max(1) {
        // Where the kernel puts programs and maps moves a time by more than a change does.
        let mut rigs = Vec::new();
        for (number, candidate) in candidates.iter().enumerate() {
            let name = format!("connections-{load}-{number}");
            let rig = Rig::load(&name, &candidate.object(), options.flows, false, false)?;
            world::encapsulate(rig.maps())?;
            rigs.push(rig);
        }
        for round in 0..options.rounds.max(1) {
            times.round(&mut rigs, empty, options.connections, round)?;
        }
    }
    Ok(times.report(candidates, &calls))
}

/// Helper calls of every packet of every kind of connection, in order.
fn count(rig: &mut Rig) -> Result<Vec<Calls>> {
    let mut all = Vec::new();
    // The first finds the way to the other node.
    for port in [1000, 1001] {
        all.clear();
        for parties in &PARTIES {
            for packet in PACKETS {
                let (step, _) = parties.step(packet, port);
                let before = rig.calls()?;
                rig.run(&step, &step.frame(), 1)?;
                let mut calls = rig.calls()?;
                calls.iter_mut().zip(before).for_each(|(calls, before)| *calls -= before);
                all.push(calls);
            }
        }
    }
    Ok(all)
}

/// Medians of rounds, in nanoseconds.
struct Times {
    empty: Vec<f64>,
    /// By candidate, then by kind of connection and packet.
    each: Vec<Vec<Vec<f64>>>,
}

impl Times {
    fn new(candidates: usize) -> Self {
        let kinds = PARTIES.len() * PACKETS.len();
        Self { empty: Vec::new(), each: vec![vec![Vec::new(); kinds]; candidates] }
    }

    /// Interleaved, packet by packet: whatever disturbs the machine disturbs all of them.
    fn round(
        &mut self,
        rigs: &mut [Rig],
        empty: &mut TestRunner,
        connections: u16,
        round: usize,
    ) -> Result<()> {
        let kinds = PARTIES.len() * PACKETS.len();
        let mut nothing = Vec::new();
        let mut samples = vec![vec![Vec::new(); kinds]; rigs.len()];
        for number in 0..connections {
            // Never used before: the table has room for all of them.
            let port = u16::try_from(1024 + (round * usize::from(connections)) % 60_000)? + number;
            for (kind, (parties, packet)) in
                PARTIES.iter().flat_map(|parties| PACKETS.map(|packet| (parties, packet))).enumerate()
            {
                let (step, exit) = parties.step(packet, port);
                let frame = step.frame();
                nothing.push(f64::from(empty.run(&frame, &TestContext::default())?.nanoseconds));
                for turn in 0..rigs.len() {
                    let which = (turn + usize::from(number)) % rigs.len();
                    let before = rigs[which].forwarded(exit)?;
                    let time = rigs[which].run(&step, &frame, 1)?.nanoseconds;
                    let forwarded = rigs[which].forwarded(exit)? - before;
                    ensure!(forwarded == 1, "{} {}: not forwarded", parties.name, packet.0);
                    samples[which][kind].push(f64::from(time));
                }
            }
        }
        self.empty.push(Summary::of(&nothing).median);
        for (rounds, samples) in self.each.iter_mut().zip(&samples) {
            for (rounds, samples) in rounds.iter_mut().zip(samples) {
                rounds.push(Summary::of(samples).median);
            }
        }
        Ok(())
    }

    /// All packets of a kind of connection, which begins at `first`.
    fn sum(&self, name: &str, first: usize, empty: f64) -> Vec<String> {
        let sum = |kinds: &Vec<Vec<f64>>| -> f64 {
            kinds[first..first + PACKETS.len()].iter().map(|times| Summary::of(times).median - empty).sum()
        };
        let mut cells = vec![name.to_owned(), "all".to_owned(), String::new()];
        cells.extend(self.each.iter().map(|kinds| format!("{:.0}", sum(kinds))));
        cells.extend((0..=COLUMNS.len()).map(|_| String::new()));
        cells
    }

    fn report(&self, candidates: &[Candidate], calls: &[Calls]) -> String {
        let names = COLUMNS.map(|(_, name)| name);
        let empty = Summary::of(&self.empty).median;
        let times: Vec<String> =
            candidates.iter().map(|candidate| format!("ns {}", candidate.name)).collect();
        let times: Vec<&str> = times.iter().map(String::as_str).collect();
        let mut table =
            Table::new(&[&["connection", "packet", "program"][..], &times, &["range"], &names].concat());
        let kinds = PARTIES.iter().flat_map(|parties| PACKETS.map(|packet| (parties, packet)));
        for (kind, (parties, packet)) in kinds.enumerate() {
            let program = parties.step(packet, 1).0.program;
            let summaries = self.each.iter().map(|kinds| Summary::of(&kinds[kind])).collect::<Vec<_>>();
            let mut cells = vec![parties.name.to_owned(), packet.0.to_owned(), program.to_owned()];
            cells.extend(summaries.iter().map(|time| format!("{:.0}", time.median - empty)));
            cells.push(format!("{:.0}-{:.0}", summaries[0].least - empty, summaries[0].most - empty));
            cells.extend(COLUMNS.map(|(column, _)| calls[kind][column as usize].to_string()));
            table.row(cells);
            if (kind + 1).is_multiple_of(PACKETS.len()) {
                table.row(self.sum(parties.name, kind + 1 - PACKETS.len(), empty));
            }
        }
        format!("Over the empty program, which took {empty:.0} ns.\n\n{table}")
    }
}
