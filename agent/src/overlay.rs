//! Who writes the outer headers of packets for other nodes, and how that is found out. Read by the reconciler, which puts
//! it into the configuration, and by the admin socket.
//!
//! Both ways make the same bytes on the wire, so a change breaks no connection, and nodes need not agree.

mod known;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use quilla_datapath::probe::{self, Way};
use quilla_plan::{Tunnel, facts, route};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::reconcile::{Command, Handle, View};

use known::{Answer, Known, Peer, Shown};

/// How long a probe may take: longer than a first packet that is lost.
const TIMEOUT: Duration = Duration::from_secs(4);
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

/// Probes each node once, and again while it shows nothing, is somewhere else or behind another uplink. One node that gets
/// only what the device encapsulates is enough to leave everything to the device.
pub async fn find_out(
    port: u16,
    view: watch::Receiver<Arc<View>>,
    state: watch::Sender<Encapsulation>,
    reconciler: Handle,
    drain: CancellationToken,
) {
    let probe = |to| try_both(move |way| ask(to, way));
    drain.run_until_cancelled(ask_all(port, view, &state, &reconciler, probe)).await;
}

/// Asks those who are due, many at once, and judges whenever one has answered: silent ones delay nobody's answer. Ends with
/// the reconciler.
async fn ask_all<A: Future<Output = Shown>>(
    port: u16,
    mut view: watch::Receiver<Arc<View>>,
    state: &watch::Sender<Encapsulation>,
    reconciler: &Handle,
    probe: impl Fn(SocketAddr) -> A,
) {
    let mut known = Known::default();
    let mut present = peers(&view.borrow_and_update());
    let mut asked = FuturesUnordered::new();
    loop {
        for (node, peer) in known.take_due(&present, Instant::now()) {
            let answer = probe(SocketAddr::new(peer.gateway, port));
            asked.push(async move { (node, peer, answer.await) });
        }
        tokio::select! {
            changed = view.changed() => {
                if changed.is_err() {
                    return;
                }
                present = peers(&view.borrow_and_update());
                if known.keep(&present) {
                    publish(known.judge().unwrap_or_else(|| as_before(state, None)), state, reconciler);
                }
            }
            Some((node, peer, shown)) = asked.next() => {
                tracing::debug!(node, gateway = %peer.gateway, ?shown, "overlay probed");
                known.answered(&present, node, Answer { peer, shown, at: Instant::now() });
                let judged = known.judge();
                let verdict = judged.unwrap_or_else(|| as_before(state, known.in_vain(port).as_deref()));
                publish(verdict, state, reconciler);
            }
            () = until(known.next_due()) => {}
        }
    }
}

/// Until then, or for ever.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
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
    use std::collections::BTreeMap;
    use std::future::{pending, ready};
    use std::io;
    use std::net::IpAddr;
    use std::sync::Arc;
    use std::time::Duration;

    use futures::future::{Either, FutureExt as _};
    use quilla_datapath::probe::Way;
    use quilla_model::{Node, Snapshot};
    use quilla_plan::{NodeFacts, Routing, plan};
    use tokio::sync::watch;

    use super::known::AT_ONCE;
    use super::{Encapsulation, Mode, Shown, as_before, ask_all, peers, try_both};
    use crate::reconcile::{self, View};

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

    /// As seen from a node beside so many others, `node-001` and so on; their gateways have the number, too.
    fn beside(others: u8) -> Arc<View> {
        let node = |number: u8| Node {
            name: format!("node-{number:03}"),
            addresses: vec![[192, 0, 2, number].into()],
            pod_cidrs: vec![format!("10.244.{number}.0/24").parse().unwrap()],
            zone: None,
            leaving: false,
        };
        let nodes = (0..=others).map(node).map(|node| (node.name.clone(), Arc::new(node))).collect();
        let snapshot = Arc::new(Snapshot { nodes, ..Snapshot::default() });
        let facts = NodeFacts { addresses: vec![[192, 0, 2, 0].into()], ..NodeFacts::new("node-000") };
        let (desired, _) = plan(&snapshot, &facts);
        Arc::new(View { programmed: true, snapshot, desired, ..View::default() })
    }

    fn number(to: IpAddr) -> u8 {
        let IpAddr::V4(to) = to else { panic!("{to}") };
        to.octets()[2]
    }

    /// Has nodes answer by their numbers until each condition has held, one after the other; after each there is the next view.
    /// Time is the runtime's own and passes when nothing else does.
    fn asks<A: Future<Output = Shown>>(
        views: &[Arc<View>],
        probe: impl Fn(u8) -> A,
        conditions: &[fn(&Encapsulation) -> bool],
    ) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (view, seen) = watch::channel(Arc::clone(&views[0]));
        let (state, mut found) = watch::channel(Encapsulation::new(Mode::Auto, false, false));
        let (reconciler, _queue) = reconcile::channel();
        let asking = ask_all(10256, seen, &state, &reconciler, |to| probe(number(to.ip())));
        let checking = async {
            for (index, condition) in conditions.iter().enumerate() {
                found.wait_for(condition).await.unwrap();
                view.send_replace(Arc::clone(views.get(index + 1).unwrap_or(&views[0])));
            }
        };
        runtime.block_on(async {
            tokio::select! {
                () = asking => panic!("ended"),
                done = tokio::time::timeout(Duration::from_hours(1), checking) => done.expect("in time"),
            }
        });
    }

    /// Of as many as are asked at once all but one say nothing at all: its answer counts, and so does that of a node that is
    /// new. No more are asked while none of them has answered.
    #[test]
    fn silent_nodes_delay_nobody() {
        let last = u8::try_from(AT_ONCE).unwrap();
        let probe = |node: u8| match node {
            node if node < last => Either::Left(pending()),
            node if node == last + 2 => Either::Right(ready(Shown::Broken("timed out".into()))),
            _ => Either::Right(ready(Shown::Works)),
        };
        asks(
            &[beside(last + 1), beside(last + 2)],
            probe,
            &[|found| found.facts.direct, |found| !found.facts.direct],
        );
        let asked = RefCell::new(0);
        let (state, _found) = watch::channel(Encapsulation::new(Mode::Auto, false, false));
        let (_view, seen) = watch::channel(beside(last + 9));
        let all_silent = |_| {
            *asked.borrow_mut() += 1;
            pending()
        };
        assert!(ask_all(10256, seen, &state, &reconcile::channel().0, all_silent).now_or_never().is_none());
        assert_eq!(*asked.borrow(), AT_ONCE);
    }

    /// More nodes than are asked at once refuse: each is asked once more, and no more often.
    #[test]
    fn silent_nodes_are_asked_again() {
        let last = u8::try_from(AT_ONCE).unwrap() + 9;
        let asked = RefCell::new(BTreeMap::<u8, u32>::new());
        let probe = |node| {
            let mut asked = asked.borrow_mut();
            let times = asked.entry(node).or_default();
            *times += 1;
            ready(if *times > 1 && node == last { Shown::Works } else { Shown::Nothing("refused".into()) })
        };
        let found: fn(&Encapsulation) -> bool = |found| found.facts.direct;
        asks(&[beside(last)], probe, &[found]);
        let asked = asked.borrow();
        assert!(asked.len() == usize::from(last) && asked.values().all(|times| *times == 2), "{asked:?}");
    }

    /// An operator sees who does not answer, and with what, whatever goes on meanwhile.
    #[test]
    fn the_reason_says_who_was_asked_in_vain() {
        let who = "a at 10.244.1.1:10256: connection refused";
        for before in [false, true] {
            let state = tokio::sync::watch::channel(Encapsulation::new(Mode::Auto, false, before)).0;
            let (direct, reason) = as_before(&state, Some(who));
            assert!(direct == before && reason.ends_with(who), "{reason}");
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
