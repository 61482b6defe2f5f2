//! Who writes the outer headers of packets for other nodes, and how that is found out. Read by the reconciler, which puts
//! it into the configuration, and by the admin socket.
//!
//! Both ways make the same bytes on the wire, so a change breaks no connection, and nodes need not agree.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quilla_datapath::probe::{self, Way};
use quilla_plan::{Tunnel, facts, route};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::reconcile::{Command, Handle, View};

/// How long a probe may take: longer than a first packet that is lost.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Between two rounds of probes while nothing is known.
const INTERVAL: Duration = Duration::from_secs(10);

/// What the operator chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// The programs write and remove outer headers.
    Direct,
    /// The kernel's VXLAN device does.
    Device,
    /// The programs do as soon as a connection to another node has shown that it works.
    Auto,
}

/// Who makes and opens tunnels, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encapsulation {
    /// For the planner.
    pub facts: facts::Encapsulation,
    /// Why, for an operator.
    pub reason: String,
}

impl Encapsulation {
    /// What holds before anything is known; `before` is what the kernel was told last.
    pub fn new(mode: Mode, checksum: bool, before: bool) -> Self {
        let (direct, reason) = match mode {
            _ if checksum => (false, "only the device computes outer checksums"),
            Mode::Direct => (true, "chosen"),
            Mode::Device => (false, "chosen"),
            Mode::Auto if before => (true, "as before the agent started"),
            Mode::Auto => (false, "no other node has shown yet that it gets what the programs encapsulate"),
        };
        let facts = facts::Encapsulation { direct, open: mode != Mode::Device, checksum };
        Self { facts, reason: reason.into() }
    }

    /// `direct` or `device`.
    pub fn label(&self) -> &'static str {
        if self.facts.direct { "direct" } else { "device" }
    }
}

/// What a node has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    /// It got what the programs encapsulated.
    Works,
    /// It got only what the device encapsulated.
    Broken(String),
    /// It got nothing.
    Nothing,
}

/// Probes each node once, and again while it shows nothing. One node that gets only what the device encapsulates is enough
/// to leave everything to the device.
pub async fn find_out(
    port: u16,
    mut view: watch::Receiver<Arc<View>>,
    state: watch::Sender<Encapsulation>,
    reconciler: Handle,
    drain: CancellationToken,
) {
    let mut known: BTreeMap<String, Shown> = BTreeMap::new();
    loop {
        let peers = peers(&view.borrow_and_update());
        known.retain(|node, _| peers.contains_key(node));
        for (node, address) in &peers {
            if matches!(known.get(node), Some(Shown::Works | Shown::Broken(_))) {
                continue;
            }
            let to = SocketAddr::new(*address, port);
            let Some(shown) = drain.run_until_cancelled(try_both(to)).await else { return };
            tracing::debug!(node, %to, ?shown, "overlay probed");
            known.insert(node.clone(), shown);
            publish(&known, &state, &reconciler);
        }
        let seen: BTreeSet<_> = peers.into_keys().collect();
        if wait(&seen, &known, &mut view, &drain).await.is_none() {
            return;
        }
    }
}

/// Until there is somebody new, or time to ask the silent ones again.
async fn wait(
    seen: &BTreeSet<String>,
    known: &BTreeMap<String, Shown>,
    view: &mut watch::Receiver<Arc<View>>,
    drain: &CancellationToken,
) -> Option<()> {
    let others = |view: &Arc<View>| peers(view).into_keys().collect::<BTreeSet<_>>() != *seen;
    let changed = view.wait_for(others);
    if known.values().any(|shown| *shown == Shown::Nothing) {
        return match drain.run_until_cancelled(tokio::time::timeout(INTERVAL, changed)).await? {
            Ok(Err(_)) => None,
            Ok(Ok(_)) | Err(_) => Some(()),
        };
    }
    drain.run_until_cancelled(changed).await?.ok().map(drop)
}

/// Where each other node's stack can be reached through the overlay; what goes there plainly would show nothing.
fn peers(view: &View) -> BTreeMap<String, IpAddr> {
    let gateway = |(node, tunnel): (&String, &Tunnel)| {
        let (ipv4, ipv6) = route::gateways(&view.snapshot, node);
        let ipv4 = ipv4.filter(|_| !tunnel.path_ipv4.is_native()).map(IpAddr::V4);
        let ipv6 = ipv6.filter(|_| !tunnel.path_ipv6.is_native()).map(IpAddr::V6);
        Some((node.clone(), ipv4.or(ipv6)?))
    };
    if view.programmed { view.desired.tunnels.iter().filter_map(gateway).collect() } else { BTreeMap::new() }
}

async fn try_both(to: SocketAddr) -> Shown {
    if ask(to, Way::Direct).await.is_ok() {
        return Shown::Works;
    }
    if ask(to, Way::Usual).await.is_err() {
        return Shown::Nothing;
    }
    // It may only have been a bad moment.
    match ask(to, Way::Direct).await {
        Ok(()) => Shown::Works,
        Err(error) => Shown::Broken(error.to_string()),
    }
}

async fn ask(to: SocketAddr, way: Way) -> io::Result<()> {
    let asked = tokio::task::spawn_blocking(move || probe::carries(to, way, TIMEOUT)).await;
    asked.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn publish(known: &BTreeMap<String, Shown>, state: &watch::Sender<Encapsulation>, reconciler: &Handle) {
    let Some((direct, reason)) = judge(known) else { return };
    let changed = state.send_if_modified(|state| {
        let changed = state.facts.direct != direct;
        (state.facts.direct, state.reason) = (direct, reason);
        changed
    });
    if changed {
        tracing::info!(direct, reason = state.borrow().reason, "encapsulation");
        reconciler.tell(Command::SnapshotChanged);
    }
}

/// What follows from what the nodes have shown; nothing, while they have shown nothing.
fn judge(known: &BTreeMap<String, Shown>) -> Option<(bool, String)> {
    let broken = known.iter().find_map(|(node, shown)| match shown {
        Shown::Broken(why) => Some((node, why)),
        _ => None,
    });
    if let Some((node, why)) = broken {
        return Some((false, format!("{node} gets only what the device encapsulates: {why}")));
    }
    let works = known.iter().find(|(_, shown)| **shown == Shown::Works);
    works.map(|(node, _)| (true, format!("{node} gets what the programs encapsulate")))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use quilla_model::{Node, Snapshot};
    use quilla_plan::{NodeFacts, Routing, plan};

    use super::{Encapsulation, Mode, Shown, judge, peers};
    use crate::reconcile::View;

    /// A node to which packets go plainly says nothing of tunnels, and one family in tunnels is enough to ask.
    #[test]
    fn only_tunnels_are_probed() {
        let node = |name: &str, addresses: &[&str], cidrs: [&str; 2]| Node {
            name: name.into(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            pod_cidrs: cidrs.map(|cidr| cidr.parse().unwrap()).into(),
            zone: None,
            leaving: false,
        };
        let own = ["192.0.2.1", "2001:db8::1"];
        let nodes = [
            node("here", &own, ["10.244.0.0/24", "fd00:244::/64"]),
            node("near", &["192.0.2.2", "2001:db8::2"], ["10.244.1.0/24", "fd00:244:0:1::/64"]),
            node("v4", &["192.0.2.3"], ["10.244.2.0/24", "fd00:244:0:2::/64"]),
            node("far", &["198.51.100.4", "2001:db8::4"], ["10.244.3.0/24", "fd00:244:0:3::/64"]),
        ];
        let nodes = nodes.map(|node| (node.name.clone(), Arc::new(node))).into();
        let snapshot = Arc::new(Snapshot { nodes, ..Snapshot::default() });
        let facts = |routing| NodeFacts {
            routing,
            addresses: own.map(|address| address.parse().unwrap()).into(),
            networks: ["192.0.2.1/24", "2001:db8::1/64"].map(|network| network.parse().unwrap()).into(),
            ..NodeFacts::new("here")
        };
        let probed = |routing| {
            let (desired, _) = plan(&snapshot, &facts(routing));
            let snapshot = Arc::clone(&snapshot);
            peers(&View { programmed: true, snapshot, desired, ..View::default() })
        };
        let expected = |list: &[(&str, &str)]| {
            let pair =
                |(node, address): &(&str, &str)| ((*node).to_owned(), address.parse::<IpAddr>().unwrap());
            list.iter().map(pair).collect()
        };
        let v4 = ("v4", "fd00:244:0:2::1");
        assert_eq!(probed(Routing::Auto), expected(&[("far", "10.244.3.1"), v4]));
        assert_eq!(probed(Routing::Native), expected(&[v4]));
        assert_eq!(probed(Routing::Overlay).len(), 3);
    }

    #[test]
    fn one_broken_way_leaves_everything_to_the_device() {
        let known = |list: &[(&str, Shown)]| {
            judge(&list.iter().map(|(node, shown)| ((*node).to_owned(), shown.clone())).collect())
        };
        assert_eq!(known(&[]), None);
        assert_eq!(known(&[("a", Shown::Nothing)]), None, "nothing is known");
        let (direct, reason) = known(&[("a", Shown::Nothing), ("b", Shown::Works)]).unwrap();
        assert!(direct && reason.starts_with("b gets"), "{reason}");
        let broken = Shown::Broken("timed out".into());
        let (direct, reason) = known(&[("a", Shown::Works), ("b", broken)]).unwrap();
        assert!(!direct && reason.starts_with("b gets only") && reason.ends_with("timed out"), "{reason}");
    }

    #[test]
    fn before_anything_is_known_the_kernel_does_what_it_did() {
        let direct = |mode, checksum, before| Encapsulation::new(mode, checksum, before).facts.direct;
        assert!(direct(Mode::Direct, false, false) && direct(Mode::Auto, false, true));
        assert!(!direct(Mode::Auto, false, false) && !direct(Mode::Device, false, true));
        assert!(!direct(Mode::Direct, true, true), "only the device computes outer checksums");
        assert!(!Encapsulation::new(Mode::Device, false, false).facts.open);
        assert!(Encapsulation::new(Mode::Auto, true, false).facts.open, "others may well send without");
    }
}
