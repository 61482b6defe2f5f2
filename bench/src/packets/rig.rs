//! The loaded programs over maps of their own: established flows in, packets through, counters out.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::Pod;
use quilla_abi::counter::helper;
use quilla_abi::flow::{Flow, FlowKey, flag, scope};
use quilla_abi::program;
use quilla_abi::trace::TUNNEL_SOURCE;
use quilla_abi::{Be16, flow};
use quilla_datapath::{Datapath, Object, Options, Outcome, Table, TestContext, TestRunner, bpffs};
use quilla_ebpf_core::Family;
use quilla_ebpf_core::connection::set_rewrite;
use quilla_tests::packet::Packet;
use quilla_tests::packet::number::TCP;
use quilla_tests::sandbox;

use super::world;

/// A packet at a hook.
#[derive(Clone)]
pub(super) struct Step {
    pub(super) program: &'static str,
    device: u32,
    packet: Packet,
}

impl Step {
    /// The TTL lets one packet go through a program many times.
    pub(super) fn new(program: &'static str, device: u32, packet: Packet) -> Self {
        Self { program, device, packet: packet.ttl(u8::MAX) }
    }

    /// The packet with other TCP flags.
    pub(super) fn flags(&self, flags: u8) -> Vec<u8> {
        self.packet.clone().flags(flags).build()
    }

    /// The step with other TCP flags.
    pub(super) fn with_flags(self, flags: u8) -> Self {
        Self { packet: self.packet.flags(flags), ..self }
    }

    /// The step with something in the packet.
    pub(super) fn with_payload(self, payload: &[u8]) -> Self {
        Self { packet: self.packet.payload(payload), ..self }
    }

    /// The packet as it is in the middle of a connection.
    pub(super) fn frame(&self) -> Vec<u8> {
        self.packet.build()
    }

    pub(super) fn packet(&self) -> &Packet {
        &self.packet
    }

    pub(super) fn context(&self) -> TestContext {
        let mut context = TestContext { ifindex: self.device, ..TestContext::default() };
        context.cb[TUNNEL_SOURCE] = u32::from_ne_bytes(world::PEER.1.octets());
        context
    }

    fn scope(&self) -> u8 {
        if self.program == program::FROM_UPLINK { scope::UPLINK } else { scope::CLUSTER }
    }

    /// Its tuple, with addresses as the family has them.
    pub(super) fn key<A>(&self, address: impl Fn(std::net::IpAddr) -> A) -> FlowKey<A> {
        let (source, destination) = (self.packet.source(), self.packet.destination());
        FlowKey {
            src: address(source.ip()),
            dst: address(destination.ip()),
            sport: Be16::new(source.port()),
            dport: Be16::new(destination.port()),
            proto: TCP,
            scope: self.scope(),
            pad: [0; 2],
        }
    }
}

/// Helper calls by their kind in [`quilla_abi::counter::helper`].
pub(super) type Calls = [u64; helper::COUNT as usize];

pub(super) struct Rig {
    datapath: Datapath,
    runners: BTreeMap<&'static str, TestRunner>,
}

impl Rig {
    /// Loads the programs with the cluster in their maps; pins are named after the rig.
    pub(super) fn load(
        name: &str,
        object: &Object<'_>,
        flow_capacity: u32,
        trace: bool,
        count_helpers: bool,
    ) -> Result<Self> {
        let bpffs = Path::new(sandbox::FILES).join(format!("bpf-{name}"));
        bpffs::mount(&bpffs)?;
        let options = Options { bpffs, flow_capacity, trace, count_helpers, ..Options::default() };
        let datapath = Datapath::open_object(object, &options).context("load the programs")?;
        world::install(datapath.maps()).context("fill the maps")?;
        let runner = |name: &'static str| Ok((name, TestRunner::new(&datapath, name)?));
        let names = program::TC.into_iter().chain([program::CLOCK]);
        let runners = names.map(runner).collect::<Result<_>>()?;
        Ok(Self { datapath, runners })
    }

    /// A program behind instructions that prepare the packet.
    pub(super) fn behind(&self, program: &str, instructions: &[u64]) -> Result<TestRunner> {
        Ok(TestRunner::behind(program, self.datapath.program(program)?, instructions)?)
    }

    pub(super) fn runner(&mut self, program: &str) -> Result<&mut TestRunner> {
        self.runners.get_mut(program).with_context(|| format!("no program {program}"))
    }

    /// Sends one frame from where the step's packet comes from, so many times.
    pub(super) fn run(&mut self, step: &Step, frame: &[u8], times: u32) -> Result<Outcome<'_>> {
        Ok(self.runner(step.program)?.repeat(frame, &step.context(), times)?)
    }

    /// Takes over all flows of another rig with the same cluster.
    pub(super) fn adopt(&self, other: &Self) -> Result<()> {
        let (ours, theirs) = (self.datapath.maps(), other.datapath.maps());
        ensure!(ours.epochs.rows()? == theirs.epochs.rows()?, "flows would be stale here");
        ours.flows_v4.insert_batch(&theirs.flows_v4.entries()?)?;
        Ok(ours.flows_v6.insert_batch(&theirs.flows_v6.entries()?)?)
    }

    /// Packets that left by a path of [`quilla_abi::counter::path`].
    pub(super) fn forwarded(&self, path: u32) -> Result<u64> {
        Ok(self.datapath.maps().forwards.total(path)?.packets)
    }

    /// Helper calls so far; of a rig that counts them.
    pub(super) fn calls(&self) -> Result<Calls> {
        let totals = self.datapath.maps().helpers.totals()?;
        totals.try_into().ok().context("as many kinds of helpers as the ABI has")
    }

    pub(super) fn maps(&self) -> &quilla_datapath::Maps {
        self.datapath.maps()
    }
}

/// Makes two translations of one: the entry of `key` translates to `other`, and a new entry translates that back. A test
/// run that repeats a packet so finds an established, translated flow every time, and each time has the same work.
pub(super) fn alternate<F: Family>(
    table: &Table<FlowKey<F::Addr>, Flow<F::Addr>>,
    key: FlowKey<F::Addr>,
    other: Option<FlowKey<F::Addr>>,
) -> Result<()>
where
    FlowKey<F::Addr>: Pod + Default,
    Flow<F::Addr>: Pod + Default,
{
    let mut there = table.get(&key)?.context("the flow of a translated packet")?;
    ensure!(there.flags & flag::REWRITE != 0, "the flow translates nothing");
    ensure!(there.state == flow::state::ESTABLISHED, "the flow is in state {}", there.state);
    let flow::Rewrite { src, dst, sport, dport, .. } = there.rewrite;
    let other = other.unwrap_or(FlowKey { src, dst, sport, dport, ..key });
    let mut back = there;
    set_rewrite::<F>(&mut there.rewrite, &key, &other);
    set_rewrite::<F>(&mut back.rewrite, &other, &key);
    table.insert(&key, &there)?;
    Ok(table.insert(&other, &back)?)
}
