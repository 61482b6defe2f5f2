//! Who writes the outer headers of packets for other nodes, and how that is found out. Read by the reconciler, which puts
//! it into the configuration, and by the admin socket.
//!
//! Both ways make the same bytes on the wire, so a change breaks no connection, and nodes need not agree.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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
/// Why the device does it while that is so.
const UNKNOWN: &str = "no other node has shown yet that it gets what the programs encapsulate";

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
            Mode::Auto => (false, UNKNOWN),
        };
        let facts = facts::Encapsulation { direct, open: mode != Mode::Device, checksum };
        Self { facts, reason: reason.into() }
    }

    /// `direct` or `device`.
    pub fn label(&self) -> &'static str {
        if self.facts.direct { "direct" } else { "device" }
    }
}

/// A node that can be asked, and by what: what it shows holds for no other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Peer {
    /// Where its stack can be reached through the overlay.
    gateway: IpAddr,
    /// The other end of the tunnel.
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
    /// The overlay device and the uplinks of this node.
    devices: Vec<u32>,
}

/// What a node has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    /// It got what the programs encapsulated.
    Works,
    /// It got only what the device encapsulated.
    Broken(String),
    /// It got nothing, or did not say, and why.
    Nothing(String),
}

/// What all nodes have shown.
#[derive(Debug, Default)]
struct Known(BTreeMap<String, (Peer, Shown)>);

impl Known {
    /// Forgets who is gone or changed, and says whether any of them had shown anything.
    fn keep(&mut self, peers: &BTreeMap<String, Peer>) -> bool {
        let mut forgotten = false;
        self.0.retain(|node, (peer, shown)| {
            let same = peers.get(node) == Some(peer);
            forgotten |= !same && !matches!(shown, Shown::Nothing(_));
            same
        });
        forgotten
    }

    /// Whether a node is still to be asked.
    fn lacks(&self, node: &str) -> bool {
        self.0.get(node).is_none_or(|(_, shown)| matches!(shown, Shown::Nothing(_)))
    }

    fn lacks_any(&self) -> bool {
        self.0.values().any(|(_, shown)| matches!(shown, Shown::Nothing(_)))
    }

    /// A node that was asked in vain, and what came of it.
    fn in_vain(&self, port: u16) -> Option<String> {
        self.0.iter().find_map(|(node, (peer, shown))| match shown {
            Shown::Nothing(why) => Some(format!("{node} at {}: {why}", SocketAddr::new(peer.gateway, port))),
            Shown::Works | Shown::Broken(_) => None,
        })
    }

    /// What follows; nothing, while nobody has shown anything.
    fn judge(&self) -> Option<(bool, String)> {
        let broken = self.0.iter().find_map(|(node, (_, shown))| match shown {
            Shown::Broken(why) => Some((node, why)),
            _ => None,
        });
        if let Some((node, why)) = broken {
            return Some((false, format!("{node} gets only what the device encapsulates: {why}")));
        }
        let works = self.0.iter().find(|(_, (_, shown))| *shown == Shown::Works);
        works.map(|(node, _)| (true, format!("{node} gets what the programs encapsulate")))
    }
}

/// Probes each node once, and again while it shows nothing, is somewhere else or behind another uplink. One node that gets
/// only what the device encapsulates is enough to leave everything to the device.
pub async fn find_out(
    port: u16,
    mut view: watch::Receiver<Arc<View>>,
    state: watch::Sender<Encapsulation>,
    reconciler: Handle,
    drain: CancellationToken,
) {
    let mut known = Known::default();
    loop {
        let peers = peers(&view.borrow_and_update());
        if known.keep(&peers) {
            publish(known.judge().unwrap_or_else(|| as_before(&state, None)), &state, &reconciler);
        }
        for (node, peer) in &peers {
            if !known.lacks(node) {
                continue;
            }
            let to = SocketAddr::new(peer.gateway, port);
            let asked = try_both(|way| ask(to, way));
            let Some(shown) = drain.run_until_cancelled(asked).await else { return };
            tracing::debug!(node, %to, ?shown, "overlay probed");
            known.0.insert(node.clone(), (peer.clone(), shown));
            let verdict = known.judge().unwrap_or_else(|| as_before(&state, known.in_vain(port).as_deref()));
            publish(verdict, &state, &reconciler);
        }
        if wait(&peers, &known, &mut view, &drain).await.is_none() {
            return;
        }
    }
}

/// Until there is somebody new, or time to ask the silent ones again.
async fn wait(
    seen: &BTreeMap<String, Peer>,
    known: &Known,
    view: &mut watch::Receiver<Arc<View>>,
    drain: &CancellationToken,
) -> Option<()> {
    let changed = view.wait_for(|view| peers(view) != *seen);
    if known.lacks_any() {
        return match drain.run_until_cancelled(tokio::time::timeout(INTERVAL, changed)).await? {
            Ok(Err(_)) => None,
            Ok(Ok(_)) | Err(_) => Some(()),
        };
    }
    drain.run_until_cancelled(changed).await?.ok().map(drop)
}

/// The other nodes whose stack can be reached through the overlay; what goes there plainly would show nothing.
fn peers(view: &View) -> BTreeMap<String, Peer> {
    let peer = |(node, tunnel): (&String, &Tunnel)| {
        let (ipv4, ipv6) = route::gateways(&view.snapshot, node);
        let ipv4 = ipv4.filter(|_| !tunnel.path_ipv4.is_native()).map(IpAddr::V4);
        let ipv6 = ipv6.filter(|_| !tunnel.path_ipv6.is_native()).map(IpAddr::V6);
        let gateway = ipv4.or(ipv6)?;
        let devices = view.devices.clone();
        Some((node.clone(), Peer { gateway, ipv4: tunnel.ipv4, ipv6: tunnel.ipv6, devices }))
    };
    if view.programmed { view.desired.tunnels.iter().filter_map(peer).collect() } else { BTreeMap::new() }
}

async fn try_both<A: Future<Output = io::Result<()>>>(ask: impl Fn(Way) -> A) -> Shown {
    if ask(Way::Direct).await.is_ok() {
        return Shown::Works;
    }
    if let Err(error) = ask(Way::Usual).await {
        return Shown::Nothing(error.to_string());
    }
    // It may only have been a bad moment.
    match ask(Way::Direct).await {
        Ok(()) => Shown::Works,
        Err(error) if is_said_by_the_node(error.kind()) => Shown::Nothing(error.to_string()),
        Err(error) => Shown::Broken(error.to_string()),
    }
}

/// An agent that does not listen yet or any more: small packets got there, and nothing else was tried.
fn is_said_by_the_node(error: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, UnexpectedEof};
    matches!(error, BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | UnexpectedEof)
}

async fn ask(to: SocketAddr, way: Way) -> io::Result<()> {
    let asked = tokio::task::spawn_blocking(move || probe::carries(to, way, TIMEOUT)).await;
    asked.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// What holds while nobody who is there has shown anything; with who was asked in vain.
fn as_before(state: &watch::Sender<Encapsulation>, in_vain: Option<&str>) -> (bool, String) {
    let direct = state.borrow().facts.direct;
    let reason = if direct { "as before: no node that is there has shown yet what it gets" } else { UNKNOWN };
    (direct, in_vain.map_or_else(|| reason.to_owned(), |who| format!("{reason}; {who}")))
}

fn publish((direct, reason): (bool, String), state: &watch::Sender<Encapsulation>, reconciler: &Handle) {
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;
    use std::net::IpAddr;
    use std::sync::Arc;

    use quilla_datapath::probe::Way;
    use quilla_model::{Node, Snapshot};
    use quilla_plan::{NodeFacts, Routing, plan};

    use super::{Encapsulation, Known, Mode, Peer, Shown, as_before, peers, try_both};
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
            let found = peers(&View { programmed: true, snapshot, desired, ..View::default() });
            found.into_iter().map(|(node, peer)| (node, peer.gateway)).collect::<Vec<_>>()
        };
        let expected = |list: &[(&str, &str)]| {
            let pair =
                |(node, address): &(&str, &str)| ((*node).to_owned(), address.parse::<IpAddr>().unwrap());
            list.iter().map(pair).collect::<Vec<_>>()
        };
        let v4 = ("v4", "fd00:244:0:2::1");
        assert_eq!(probed(Routing::Auto), expected(&[("far", "10.244.3.1"), v4]));
        assert_eq!(probed(Routing::Native), expected(&[v4]));
        assert_eq!(probed(Routing::Overlay).len(), 3);
    }

    fn peer(end: u8, devices: &[u32]) -> Peer {
        let gateway = IpAddr::from([10, 244, end, 1]);
        Peer { gateway, ipv4: Some([192, 0, 2, end].into()), ipv6: None, devices: devices.into() }
    }

    fn known(list: &[(&str, Shown)]) -> Known {
        let entry = |(node, shown): &(&str, Shown)| ((*node).to_owned(), (peer(1, &[2, 3]), shown.clone()));
        Known(list.iter().map(entry).collect())
    }

    fn silent() -> Shown {
        Shown::Nothing("refused".into())
    }

    #[test]
    fn one_broken_way_leaves_everything_to_the_device() {
        assert_eq!(known(&[]).judge(), None);
        assert_eq!(known(&[("a", silent())]).judge(), None, "nothing is known");
        let (direct, reason) = known(&[("a", silent()), ("b", Shown::Works)]).judge().unwrap();
        assert!(direct && reason.starts_with("b gets"), "{reason}");
        let broken = Shown::Broken("timed out".into());
        let (direct, reason) = known(&[("a", Shown::Works), ("b", broken)]).judge().unwrap();
        assert!(!direct && reason.starts_with("b gets only") && reason.ends_with("timed out"), "{reason}");
    }

    /// A node that is gone says nothing any more; one at another address, or behind another uplink of ours, is to be asked.
    #[test]
    fn what_was_shown_holds_for_where_it_was_shown() {
        let broken = Shown::Broken("timed out".into());
        let shown = [("a", broken), ("b", Shown::Works), ("c", silent())];
        let here = |list: &[(&str, Peer)]| {
            list.iter().map(|(node, peer)| ((*node).to_owned(), peer.clone())).collect()
        };
        let same = || peer(1, &[2, 3]);
        let all = here(&[("a", same()), ("b", same()), ("c", same())]);
        let mut nodes = known(&shown);
        assert!(!nodes.keep(&all) && !nodes.lacks("a") && !nodes.lacks("b") && nodes.lacks("c"));
        assert!(nodes.keep(&here(&[("b", same()), ("c", same())])));
        assert!(nodes.judge().unwrap().0, "the broken one is gone");
        assert!(!nodes.keep(&here(&[("b", same())])), "it had shown nothing");
        for other in [peer(2, &[2, 3]), peer(1, &[2, 4]), peer(1, &[2])] {
            let mut nodes = known(&shown[..2]);
            assert!(nodes.keep(&here(&[("a", same()), ("b", other)])) && nodes.lacks("b"));
        }
        assert!(nodes.keep(&here(&[])) && nodes.judge().is_none());
    }

    /// An operator sees who does not answer, and with what, whatever goes on meanwhile.
    #[test]
    fn the_reason_says_who_was_asked_in_vain() {
        let nodes = known(&[("a", Shown::Nothing("connection refused".into())), ("b", silent())]);
        let who = nodes.in_vain(10256).unwrap();
        assert_eq!(who, "a at 10.244.1.1:10256: connection refused");
        assert_eq!(known(&[("a", Shown::Works)]).in_vain(10256), None);
        for before in [false, true] {
            let state = tokio::sync::watch::channel(Encapsulation::new(Mode::Auto, false, before)).0;
            let (direct, reason) = as_before(&state, Some(&who));
            assert!(direct == before && reason.ends_with(&who), "{reason}");
            assert!(!as_before(&state, None).1.contains("refused"));
        }
    }

    /// A refusal is an answer of small packets alone, whenever it comes.
    #[test]
    fn a_node_that_refuses_shows_nothing() {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
        let shows = |answers: &[Option<io::ErrorKind>]| {
            let answers = RefCell::new(answers.iter());
            let ask = |way| {
                let turn = answers.borrow().len();
                let answer = answers.borrow_mut().next().expect("asked too often");
                assert_eq!(way == Way::Usual, turn == 2, "direct, usual, direct");
                std::future::ready(answer.map_or(Ok(()), |kind| Err(kind.into())))
            };
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let shown = runtime.block_on(try_both(ask));
            assert_eq!(answers.borrow().len(), 0, "all were asked for");
            shown
        };
        assert_eq!(shows(&[None]), Shown::Works);
        assert_eq!(shows(&[Some(TimedOut), None, None]), Shown::Works);
        for silent in [ConnectionRefused, ConnectionReset, UnexpectedEof] {
            let nothing = Shown::Nothing(io::Error::from(silent).to_string());
            assert_eq!(shows(&[Some(silent), None, Some(silent)]), nothing);
            assert_eq!(shows(&[Some(TimedOut), None, Some(silent)]), nothing);
        }
        for lost in [TimedOut, WouldBlock] {
            assert!(matches!(shows(&[Some(lost), None, Some(lost)]), Shown::Broken(_)));
            assert!(matches!(shows(&[Some(ConnectionRefused), None, Some(lost)]), Shown::Broken(_)));
        }
    }

    #[test]
    fn a_node_that_answers_neither_way_shows_nothing() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        for kind in [io::ErrorKind::ConnectionRefused, io::ErrorKind::TimedOut] {
            let shown = runtime.block_on(try_both(|_| std::future::ready(Err(kind.into()))));
            assert_eq!(shown, Shown::Nothing(io::Error::from(kind).to_string()));
        }
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
