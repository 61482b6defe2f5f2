//! Everything that changes in an overlay, over and over, while all Pods speak to each other: the underlay's MTU, nodes, agents
//! and their ways to encapsulate. `QUILLA_SOAK_SECONDS` says for how long.

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use quilla_tests::cluster::Cluster;

use crate::bulk::Bulk;
use crate::mtu::set_underlay;
use crate::overlay::start;
use crate::traffic::Traffic;

/// How long, if nobody says otherwise.
const SECONDS: u64 = 20;
/// Pods of each node.
const PODS: usize = 2;
/// How agents encapsulate and route.
const MODES: [[&str; 2]; 5] = [
    ["direct", "overlay"],
    ["device", "overlay"],
    ["direct", "native"],
    ["auto", "overlay"],
    ["direct", "auto"],
];

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The underlay carries other packets.
    Mtu,
    /// The agent of a node is killed and started with other ways to encapsulate and to route.
    Mode,
    /// A node goes, with its Pods, and comes again.
    Churn,
}

/// E5, E20: nothing reaches a Pod for which it is not, whatever changes, and streams between nodes that stay are never
/// broken. What gets lost is told, event by event.
pub(crate) fn everything_changes_and_nothing_goes_astray() -> Result<()> {
    let length = match env::var("QUILLA_SOAK_SECONDS") {
        Ok(seconds) => seconds.parse().context("QUILLA_SOAK_SECONDS")?,
        Err(_) => SECONDS,
    };
    let mut cluster = start("soak", 3, &["--encapsulation", "direct"])?;
    let traffic = Traffic::start();
    let mut pods = Vec::new();
    for node in ["node-a", "node-b", "node-c"] {
        for number in 0..PODS {
            let pod = cluster.pod(node, &format!("{node}-{number}")).start()?;
            traffic.join(&pod)?;
            pods.push(pod);
        }
    }
    traffic.flows()?;
    let streams = [(0, PODS, false), (PODS, 0, true), (1, PODS + 1, true)];
    let streams = streams.map(|(from, to, v6)| Bulk::start(&pods[from], &pods[to], v6));
    let streams: Vec<Bulk> = streams.into_iter().collect::<Result<_>>()?;
    drop(pods);

    let end = Instant::now() + Duration::from_secs(length);
    let mut losses = [(0, 0); 3];
    let mut round = 0;
    while Instant::now() < end || round < 3 {
        let event = [Event::Mtu, Event::Mode, Event::Churn][round % 3];
        let before = traffic.totals();
        happen(&mut cluster, &traffic, event, round / 3)
            .with_context(|| format!("{event:?} of round {round}"))?;
        traffic.flows().with_context(|| format!("after {event:?} of round {round}"))?;
        streams.iter().try_for_each(Bulk::goes_on)?;
        traffic.check()?;
        let lost = traffic.totals().1.saturating_sub(before.1);
        losses[event as usize].0 += 1;
        losses[event as usize].1 += lost;
        round += 1;
    }
    let echoed = streams.into_iter().map(Bulk::finish).sum::<Result<u64>>()?;
    let (sent, lost) = traffic.finish()?;
    println!("{sent} datagrams sent, 0 astray, {lost} lost; {echoed} bytes echoed in streams");
    for (event, (times, lost)) in [Event::Mtu, Event::Mode, Event::Churn].iter().zip(losses) {
        println!("{event:?}: {times} times, {lost} datagrams lost");
    }
    cluster.stop()
}

fn happen(cluster: &mut Cluster, traffic: &Traffic, event: Event, round: usize) -> Result<()> {
    match event {
        Event::Mtu => set_underlay(cluster, if round.is_multiple_of(2) { 9000 } else { 1500 }),
        Event::Mode => {
            let node = ["node-a", "node-b", "node-c"][round % 3];
            cluster.node_mut(node).kill_agent()?;
            start_agent(cluster, node, round)
        }
        Event::Churn => churn(cluster, traffic, round),
    }
}

fn start_agent(cluster: &mut Cluster, node: &str, round: usize) -> Result<()> {
    let [encapsulation, routing] = MODES[round % MODES.len()];
    let node = cluster.node_mut(node);
    node.start_agent_with(&["--encapsulation", encapsulation, "--routing", routing])?;
    // For hours on a busy machine; the last one counts.
    node.wait_ready().or_else(|_| node.wait_ready()).or_else(|_| node.wait_ready())
}

/// node-c goes as an operator has it go, and comes again with Pods of other names.
fn churn(cluster: &mut Cluster, traffic: &Traffic, round: usize) -> Result<()> {
    let name = |round: usize, number| match round {
        0 => format!("node-c-{number}"),
        _ => format!("node-c-{number}-{round}"),
    };
    for number in 0..PODS {
        traffic.leave(&name(round, number));
        cluster.delete_pod(&name(round, number))?;
    }
    let node = cluster.node_mut("node-c");
    node.kill_podlet()?;
    node.kill_agent()?;
    cluster.kubectl(&["delete", "node", "node-c"])?;
    traffic.flows()?;
    cluster.node_mut("node-c").start_podlet()?;
    start_agent(cluster, "node-c", round)?;
    for number in 0..PODS {
        traffic.join(&cluster.pod("node-c", &name(round + 1, number)).start()?)?;
    }
    Ok(())
}
