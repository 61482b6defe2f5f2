//! The loaded programs with a world in their maps, in a namespace with the devices it speaks of.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use quilla_abi::config::Config;
use quilla_abi::node::UnderlayAddress;
use quilla_abi::program;
use quilla_datapath::{Datapath, Object, Options, Outcome, TestContext, TestRunner, bpffs};
use quilla_plan::{Layout, Tables};

use crate::generate::{Carriage, Stimulus};
use crate::model::Hook;
use crate::peer::Peer;
use crate::table::apply;
use crate::world::{SNAT_PORTS, World};

pub(crate) const POD_DEVICES: [u32; 4] = [11, 12, 13, 14];
pub(crate) const UPLINK: u32 = 21;
pub(crate) const OVERLAY: u32 = 22;
/// Another one, by which only nodes send.
pub(crate) const OTHER_UPLINK: u32 = 23;

pub(crate) struct Rig {
    pub datapath: Datapath,
    runners: [TestRunner; 6],
    /// `from_uplink` for frames that the kernel takes for ones in a tunnel.
    marked: TestRunner,
    layout: Layout,
}

impl Rig {
    /// Loads `object`, with its pins in a place of its own.
    pub(crate) fn load(place: &Path, object: &Object<'_>) -> Result<Self> {
        bpffs::mount(place)?;
        let options =
            Options { bpffs: place.to_owned(), flow_capacity: 65_536, trace: true, ..Options::default() };
        let datapath = Datapath::open_object(object, &options).context("load the object")?;
        let runner = |name| TestRunner::new(&datapath, name);
        let runners = [
            runner(program::FROM_POD)?,
            runner(program::TO_POD)?,
            runner(program::FROM_OVERLAY)?,
            runner(program::TO_OVERLAY)?,
            runner(program::FROM_UPLINK)?,
            runner(program::TO_UPLINK)?,
        ];
        let marked = TestRunner::in_tunnel(&datapath, program::FROM_UPLINK)?;
        Ok(Self { datapath, runners, marked, layout: Layout::default() })
    }

    /// One packet through the program of its hook; one in a tunnel arrives on the uplink.
    pub(crate) fn run(&mut self, world: &World, stimulus: &Stimulus) -> Result<Outcome<'_>> {
        let &Stimulus { hook, ref frame, carriage } = stimulus;
        let on = |ifindex| TestContext { ifindex, ..TestContext::default() };
        match carriage {
            Carriage::Tunnel(outer) => {
                let runner = if outer.marked { &mut self.marked } else { &mut self.runners[4] };
                return Ok(runner.run(&outer.wrap(world, hook, frame), &on(world.uplink))?);
            }
            Carriage::Plain(plain) => {
                return Ok(self.runners[4].run(&plain.wrap(frame), &on(plain.ifindex))?);
            }
            Carriage::None => {}
        }
        let (program, ifindex, tunnel) = match hook {
            Hook::FromPod(pod) => (0, world.pods[pod].ifindex, 0),
            Hook::ToPod(pod) => (1, world.pods[pod].ifindex, 0),
            Hook::FromOverlay(peer) => {
                let source = match peer.map(|peer| world.peers[peer].addresses[0]) {
                    Some(IpAddr::V4(underlay)) => underlay.octets(),
                    _ => [192, 168, 77, 222],
                };
                (2, world.overlay, u32::from_ne_bytes(source))
            }
            Hook::ToOverlay => (3, world.overlay, 0),
            Hook::FromUplink => (4, world.uplink, 0),
            Hook::ToUplink(_) => (5, world.uplink, 0),
        };
        let ingress_ifindex = match hook {
            Hook::ToUplink(Some(pod)) => world.pods[pod].ifindex,
            _ => 0,
        };
        let context =
            TestContext { ifindex, ingress_ifindex, cb: [0, 0, 0, 0, tunnel], ..TestContext::default() };
        Ok(self.runners[program].run(frame, &context)?)
    }

    /// A new world: forgets all flows, and what the uplinks had to look at for their sake.
    pub(crate) fn install(&mut self, world: &World) -> Result<()> {
        let maps = self.datapath.maps();
        macro_rules! empty {
            ($($table:ident),+) => {$({
                let keys: Vec<_> = maps.$table.entries()?.into_iter().map(|(key, _)| key).collect();
                maps.$table.remove_batch(&keys)?;
            })+};
        }
        empty!(flows_v4, flows_v6, fragments_v4, fragments_v6, affinity_v4, affinity_v6);
        let config = Config::default();
        self.layout = Layout::recover(&Tables { config, ..Tables::clone(self.layout.tables()) });
        self.update(world)
    }

    /// Lets time pass: every stamp becomes older.
    pub(crate) fn age(&self, seconds: u32) -> Result<()> {
        let ticks = self.datapath.status().hz * seconds;
        let maps = self.datapath.maps();
        macro_rules! age {
            ($($table:ident.$stamp:ident),+) => {$({
                let mut rows = maps.$table.entries()?;
                for (_, row) in &mut rows {
                    row.$stamp = row.$stamp.wrapping_sub(ticks);
                }
                maps.$table.insert_batch(&rows)?;
            })+};
        }
        age!(flows_v4.last_seen, flows_v6.last_seen, fragments_v4.seen, fragments_v6.seen);
        age!(affinity_v4.last_used, affinity_v6.last_used);
        Ok(())
    }

    /// Brings the maps to what the world is now, as the agent does.
    pub(crate) fn update(&mut self, world: &World) -> Result<()> {
        let (mut desired, _problems) = quilla_plan::plan(&world.snapshot, &world.facts());
        // Few ports, so that connections collide.
        desired.config.snat_port_min = *SNAT_PORTS.start();
        desired.config.snat_port_max = *SNAT_PORTS.end();
        let before = Arc::clone(self.layout.tables());
        let (tables, problems) = self.layout.lay_out(&desired);
        ensure!(problems.is_empty(), "no room: {problems:?}");
        apply(self.datapath.maps(), &quilla_plan::diff(&before, &tables))?;
        Ok(())
    }

    /// The slot that the layout gave a node, by which the programs speak of it.
    pub(crate) fn slot(&self, peer: &Peer) -> u32 {
        let end: UnderlayAddress = match peer.named().next() {
            Some(IpAddr::V4(v4)) => v4.to_ipv6_mapped().octets(),
            Some(IpAddr::V6(v6)) => v6.octets(),
            None => unreachable!("each names one or two"),
        };
        self.layout.tables().node_slots.get(&end).copied().unwrap_or_default()
    }
}
