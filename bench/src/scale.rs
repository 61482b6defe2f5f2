//! `scale`: a large cluster through the agent's reconciler into real maps: how long, how many calls, how much kernel memory;
//! then what a packet costs as Services grow; then the memory of a real agent of the same cluster.
//!
//! The reconciler runs in this process, in a namespace with an uplink to nowhere, and is given snapshots as the watches would
//! publish them. Nothing is received or sent. A measurement fails when the rows it waits for did not get there.

mod cluster;
mod objects;
mod quiet;
mod report;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quilla_agent::metrics::Metrics;
use quilla_agent::node::NodeSettings;
use quilla_agent::reconcile::{Command, Handle, Parts, Reconciler, View, channel};
use quilla_agent::snapshot::Published;
use quilla_agent::table;
use quilla_datapath::{Datapath, allocator, bpffs};
use quilla_model::Snapshot;
use quilla_plan::{Step, Tables, diff};
use quilla_tests::netns::Netns;
use quilla_tests::sandbox::{self, Sandbox};
use tokio::sync::{mpsc, watch};

use crate::memory;
use crate::memory::process::maps;
use crate::packets::growth;
use cluster::{Cluster, Shape};
use quiet::Processors;
use report::{Load, Series};

const UPLINK: &str = "uplink0";
/// Entries of each flow table; flows have nothing to do with the size of the cluster.
const FLOWS: u32 = 65_536;
/// A round that takes longer than this has failed.
const PATIENCE: Duration = Duration::from_mins(2);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Services, of two ports each; one in ten has both families.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Endpoints of all Services together.
    #[arg(long, default_value_t = 100_000)]
    endpoints: u32,
    /// Endpoints of the one largest Service.
    #[arg(long, default_value_t = 5_000)]
    largest: u32,
    /// Measure only this part.
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// How often one endpoint changes.
    #[arg(long, default_value_t = 400)]
    changes: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Times, rows and calls of the reconciler, and the memory of its maps.
    Reconciler,
    /// What the first packet of a connection costs.
    Packets,
    /// The memory of a real agent.
    Agent,
}

/// Each part, and whether others left it the machine.
pub(crate) fn measure(options: &Options) -> Result<()> {
    for part in [Part::Reconciler, Part::Packets, Part::Agent] {
        if options.only.is_some_and(|only| only != part) {
            continue;
        }
        let processors = Processors::now()?;
        match part {
            Part::Reconciler => reconciler(options)?,
            Part::Packets => println!("{}", growth::measure()?),
            Part::Agent => agent(options)?,
        }
        println!("{}\n", processors.others()?);
    }
    Ok(())
}

fn agent(options: &Options) -> Result<()> {
    let Options { services, endpoints, largest, .. } = *options;
    let intent = objects::intent(Cluster::new(Shape { services, endpoints, largest }).snapshot());
    memory::agent("scale", &intent, |_| Ok(()))
}

fn reconciler(options: &Options) -> Result<()> {
    let netns = Netns::create("scale")?;
    netns.ip("link add uplink0 type veth peer name beyond0\naddr add 192.0.2.1/24 dev uplink0")?;
    netns.ip("link set uplink0 up\nlink set beyond0 up")?;
    netns.run(|| inside(options))?
}

fn inside(options: &Options) -> Result<()> {
    // As the agent does: threads that want memory at the same time wait for one another.
    allocator::give_memory_back();
    let Options { services, endpoints, largest, changes, only: _ } = *options;
    let mut cluster = Cluster::new(Shape { services, endpoints, largest });
    let mut agent = Agent::start("scale")?;
    agent.publish(&Snapshot::default())?;
    let idle = maps(std::process::id())?;

    let snapshot = cluster.snapshot().clone();
    let took = agent.publish(&snapshot)?;
    drop(snapshot);
    let tables = agent.tables();
    let load = Load::new(took, bare(&tables)?, &diff(&Tables::default(), &tables));
    let full = maps(std::process::id())?;
    println!("{load}");

    let mut any = Series::new("an endpoint of any Service");
    for number in 0..changes {
        one(&mut agent, &mut any, &cluster.flip(number.wrapping_mul(2_654_435_761) % endpoints))?;
    }
    let mut large = Series::new("an endpoint of the largest Service");
    for number in 0..changes.min(100) {
        one(&mut agent, &mut large, &cluster.flip(number * 37 % largest.max(1)))?;
    }
    println!("{}", report::changes(&[any, large]));
    println!("{}", report::maps(&agent.tables()));
    println!("{}", report::kernel(&idle, &full, &agent.tables()));
    ensure!(agent.tables() == Arc::new(table::dump(agent.datapath.maps())?), "the maps hold something else");
    Ok(())
}

/// Publishes one change and counts what it wrote.
fn one(agent: &mut Agent, series: &mut Series, snapshot: &Snapshot) -> Result<()> {
    let before = agent.tables();
    let took = agent.publish(snapshot)?;
    series.add(took, &diff(&before, &agent.tables()));
    Ok(())
}

/// What the same rows take when they are written into empty maps and nothing else is done.
fn bare(tables: &Tables) -> Result<Duration> {
    let datapath = open("bare")?;
    let steps: Vec<Step> = diff(&Tables::default(), tables);
    let start = Instant::now();
    table::apply(datapath.maps(), &steps)?;
    Ok(start.elapsed())
}

fn open(name: &str) -> Result<Datapath> {
    let bpffs = Path::new(sandbox::FILES).join(format!("bpf-{name}"));
    bpffs::mount(&bpffs)?;
    let options =
        quilla_datapath::Options { bpffs, flow_capacity: FLOWS, ..quilla_datapath::Options::default() };
    Datapath::open(&options).context("load the programs")
}

/// A reconciler on a thread of its own, and what it is told and shows.
struct Agent {
    datapath: Arc<Datapath>,
    published: watch::Sender<Option<Published>>,
    view: watch::Receiver<Arc<View>>,
    handle: Handle,
    runtime: tokio::runtime::Runtime,
}

impl Agent {
    fn start(name: &str) -> Result<Self> {
        let datapath = Arc::new(open(name)?);
        let (published, snapshots) = watch::channel(None);
        let (view_sender, view) = watch::channel(Arc::new(View::default()));
        let (ended, _) = mpsc::unbounded_channel();
        let (handle, commands) = channel();
        let parts = Parts {
            datapath: Arc::clone(&datapath),
            node: NodeSettings::new("here", &[UPLINK]),
            cgroup: Sandbox::current()?.cgroup().to_owned(),
            metrics: Arc::new(Metrics::new()),
            published: snapshots,
            view: view_sender,
            ended,
            endpoints: Vec::new(),
            own_services: Vec::new(),
            audit_interval: 2 * PATIENCE,
        };
        let reconciler = Reconciler::new(parts)?;
        std::thread::spawn(move || reconciler.run(&commands));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        Ok(Self { datapath, published, view, handle, runtime })
    }

    /// From the moment a snapshot is published until its rows are written.
    fn publish(&mut self, snapshot: &Snapshot) -> Result<Duration> {
        let published = Published { snapshot: Arc::new(snapshot.clone()), ..Published::default() };
        self.view.mark_unchanged();
        let start = Instant::now();
        self.published.send_replace(Some(published));
        ensure!(self.handle.tell(Command::SnapshotChanged), "the reconciler has ended");
        let changed = async { tokio::time::timeout(PATIENCE, self.view.changed()).await };
        self.runtime.block_on(changed).context("a round that does not end")??;
        let took = start.elapsed();
        let view = self.view.borrow().clone();
        ensure!(
            view.failing.is_none() && view.problems.is_empty(),
            "{:?} {:?}",
            view.failing,
            view.problems.first()
        );
        Ok(took)
    }

    fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.view.borrow().tables)
    }
}
