//! `memory`: what many Services cost the agent, and how long the kernel waits for them.
//!
//! The real controller and one agent in a node's namespace; the objects are created with kubectl. Nothing is attached
//! but the node itself: endpoints need no Pods to be programmed.

mod intent;
pub(crate) mod process;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::eventually;
use quilla_tests::node::Node;
use quilla_tests::sandbox::FILES;
use serde_json::{Value, json};

use crate::statistics::Summary;
use crate::table::Table;
use process::{anonymous, map_memory, peak, resident};

const NODE: &str = "node-a";

/// Objects in one call of kubectl, which has only so long.
const AT_ONCE: usize = 1000;

/// How often one endpoint changes, to time a single change among all the others; even, so that all are there in the end.
const CHANGES: usize = 20;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Services, with one port and one `EndpointSlice` each.
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
}

/// The agent at one moment.
struct Sample {
    moment: &'static str,
    /// How long the agent took to get there, from what the moment's name says.
    took: Option<Duration>,
    resident: u64,
    anonymous: u64,
    peak: u64,
    maps: u64,
}

pub(crate) fn measure(options: &Options) -> Result<()> {
    let Options { services, endpoints } = *options;
    let intent = Intent {
        lists: [intent::services(services), intent::slices(services, endpoints)],
        // A row for the port, and one for the address.
        services: 2 * services,
        backends: services * endpoints,
    };
    println!("{services} Services × {endpoints} endpoints.\n");
    agent("memory", &intent, |cluster| {
        let changes = change(cluster, endpoints)?;
        let ms = |seconds: f64| seconds * 1e3;
        println!(
            "One endpoint changed, from the new snapshot to the rows in the kernel: median {:.2} ms, {:.2}-{:.2} ms in {CHANGES} changes.\n",
            ms(changes.median),
            ms(changes.least),
            ms(changes.most)
        );
        Ok(())
    })
}

/// Objects for kubectl, and the rows of IPv4 that become of them.
pub(crate) struct Intent {
    pub(crate) lists: [Value; 2],
    pub(crate) services: usize,
    pub(crate) backends: usize,
}

/// What the objects cost a real agent: created under its eyes, after a restart, and from nothing. `meanwhile` runs when
/// they are all in the kernel.
pub(crate) fn agent(
    name: &str,
    intent: &Intent,
    meanwhile: impl FnOnce(&Cluster) -> Result<()>,
) -> Result<()> {
    let mut cluster = Cluster::builder(name).nodes(1).start()?;
    let mut samples = vec![sample(&mut cluster, "no Services", None)?];
    let idle = rows(cluster.node(NODE))?;
    let wanted = (idle.0 + intent.services, idle.1 + intent.backends);

    let created = create(&cluster, &intent.lists)?;
    let took = until(wanted, &cluster)?;
    samples.push(sample(&mut cluster, "all created, after the last one", Some(took))?);
    meanwhile(&cluster)?;
    audited(cluster.node(NODE))?;
    samples.push(sample(&mut cluster, "after the next audit", None)?);

    cluster.node_mut(NODE).agent()?.kill()?;
    let took = start(&mut cluster, wanted)?;
    samples.push(sample(&mut cluster, "killed and started, maps kept", Some(took))?);
    audited(cluster.node(NODE))?;
    samples.push(sample(&mut cluster, "after its first audit", None)?);

    cluster.node_mut(NODE).agent()?.kill()?;
    forget_maps(cluster.node(NODE))?;
    let took = start(&mut cluster, wanted)?;
    samples.push(sample(&mut cluster, "started on empty maps", Some(took))?);

    println!("Created by kubectl in {:.1} s.\n", created.as_secs_f64());
    println!("{}", report(&samples));
    println!("Controller: {} resident.", mebibytes(resident(cluster.controller()?.id())?));
    cluster.stop()
}

fn sample(cluster: &mut Cluster, moment: &'static str, took: Option<Duration>) -> Result<Sample> {
    let id = cluster.node_mut(NODE).agent()?.id();
    Ok(Sample {
        moment,
        took,
        resident: resident(id)?,
        anonymous: anonymous(id)?,
        peak: peak(id)?,
        maps: map_memory(id)?,
    })
}

fn create(cluster: &Cluster, lists: &[Value]) -> Result<Duration> {
    let file = format!("{FILES}/intent.json");
    let start = Instant::now();
    for all in lists.iter().filter_map(|list| list["items"].as_array()) {
        for items in all.chunks(AT_ONCE) {
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
            fs::write(&file, list.to_string()).with_context(|| format!("write {file}"))?;
            cluster.kubectl(&["create", "--validate=false", "-f", &file])?;
        }
    }
    Ok(start.elapsed())
}

/// Starts the agent; how long until everything is in the kernel and it has found itself able to serve.
fn start(cluster: &mut Cluster, wanted: (usize, usize)) -> Result<Duration> {
    let start = Instant::now();
    cluster.node_mut(NODE).start_agent()?;
    cluster.node_mut(NODE).wait_ready()?;
    until(wanted, cluster)?;
    Ok(start.elapsed())
}

/// Without its pins the agent finds nothing: the maps of programs that still run are not its own any more.
fn forget_maps(node: &Node) -> Result<()> {
    let folder = node.bpffs().join("quilla/maps");
    fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
}

/// Waits until so many Services and backends are in the kernel.
fn until(wanted: (usize, usize), cluster: &Cluster) -> Result<Duration> {
    let start = Instant::now();
    eventually::becomes("all rows in the kernel", || rows(cluster.node(NODE)), |now| *now == wanted)?;
    Ok(start.elapsed())
}

/// Rows of Services and of backends, the agent's own among them.
fn rows(node: &Node) -> Result<(usize, usize)> {
    let metrics = node.metrics()?;
    let entries = |map: &str| -> Result<usize> {
        Ok(value(&metrics, &format!("quilla_agent_map_entries{{map=\"{map}\"}}"))?.parse()?)
    };
    Ok((entries("services_v4")?, entries("backend_ids_v4")?))
}

fn value<'a>(metrics: &'a str, name: &str) -> Result<&'a str> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value.map(str::trim).with_context(|| format!("no {name} in the metrics"))
}

/// Takes an endpoint from the first Service and gives it back, again and again; seconds of the agent's round.
fn change(cluster: &Cluster, endpoints: usize) -> Result<Summary> {
    let mut times = Vec::new();
    for number in 0..CHANGES {
        let before = reconciled(cluster.node(NODE))?;
        let patch = intent::endpoints(0, endpoints - (number + 1) % 2).to_string();
        cluster.kubectl(&["patch", "endpointslice", &intent::name(0), "--type=merge", "-p", &patch])?;
        let seen = || reconciled(cluster.node(NODE));
        let after = eventually::becomes("the agent saw the change", seen, |now| now.0 > before.0)?;
        ensure!(after.0 == before.0 + 1, "{} reconciliations for one change", after.0 - before.0);
        times.push(after.1 - before.1);
    }
    Ok(Summary::of(&times))
}

/// Waits for the round with which an audit ends: nothing else changes.
fn audited(node: &Node) -> Result<()> {
    let before = reconciled(node)?.0;
    let seen = || eventually::becomes("an audit", || Ok(reconciled(node)?.0), |now| *now > before);
    // One is due as often as a wait takes at most.
    seen().or_else(|_| seen()).map(drop)
}

/// Reconciliations so far, and the seconds of all of them.
fn reconciled(node: &Node) -> Result<(u64, f64)> {
    let metrics = node.metrics()?;
    let count = value(&metrics, "quilla_agent_reconcile_duration_seconds_count")?.parse()?;
    Ok((count, value(&metrics, "quilla_agent_reconcile_duration_seconds_sum")?.parse()?))
}

fn report(samples: &[Sample]) -> Table {
    let mut table = Table::new(&["agent", "resident", "anonymous", "peak", "maps", "ready and programmed"]);
    for sample in samples {
        let sizes = [sample.resident, sample.anonymous, sample.peak, sample.maps].map(mebibytes);
        let took = sample.took.map_or_else(String::new, |took| format!("{:.2} s", took.as_secs_f64()));
        table.row([&[sample.moment.to_owned()][..], &sizes, &[took]].concat());
    }
    table
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    let tenths = bytes * 10 / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}
