//! Traffic between all Pods in which everything says for whom it is, and a recorder that compares (E20).
//!
//! Each Pod sends a datagram to each other Pod, in both families, several times a second, large ones among them. Whatever
//! arrives must have been meant for the Pod in which it arrives, and sent by a Pod that is still one. So must every other
//! packet that gets into a Pod's namespace, whether a socket sees it or not.

mod plant;
mod strays;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quilla_tests::eventually;
use quilla_tests::netns::run_inside;
use quilla_tests::pod::Pod;

use strays::Strays;

pub(crate) use plant::a_planted_misdelivery_is_seen;

const PORT: u16 = 7777;
/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(20);
/// How long programs remember the way to a node, on each CPU: asked once a second.
const REMEMBERED: Duration = Duration::from_millis(1200);
/// Payloads: most are small, every fifth fits the narrowest overlay of the tests.
const SMALL: usize = 96;
/// Datagrams that are read from a socket at once.
const READS: usize = 1000;
const LARGE: usize = 1100;

/// What was seen of one Pod's datagrams to another, both families together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// Received in each family.
    families: [u64; 2],
}

#[derive(Debug)]
struct Party {
    addresses: [IpAddr; 2],
    sockets: [UdpSocket; 2],
    strays: Strays,
    /// Nobody speaks to it any more.
    abandoned: bool,
}

#[derive(Debug, Default)]
struct State {
    parties: BTreeMap<String, Party>,
    number: u64,
    seen: BTreeMap<(String, String), Seen>,
    /// Who sent which datagrams to whom that nobody has got yet.
    missing: BTreeMap<u64, (String, String)>,
    wrong: Vec<String>,
    /// From when on nothing of a disowned Pod may arrive.
    disowned_at: BTreeMap<String, u64>,
}

/// Running traffic; ends when dropped.
#[derive(Debug)]
pub(crate) struct Traffic {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Traffic {
    /// Nobody takes part yet.
    pub(crate) fn start() -> Self {
        let (state, stop) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (shared, ended) = (Arc::clone(&state), Arc::clone(&stop));
        let worker = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                lock(&shared).round();
                // The rate of the traffic; nothing waits for it.
                thread::sleep(PAUSE);
            }
        });
        Self { state, stop, worker: Some(worker) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// From now on the Pod speaks to all others, and they to it.
    pub(crate) fn join(&self, pod: &Pod) -> Result<()> {
        let addresses = [pod.address(false), pod.address(true)];
        let (sockets, strays) = run_inside(pod.netns(), || (addresses.map(bind), Strays::watch(addresses)))?;
        let [v4, v6] = sockets;
        let party = Party { addresses, sockets: [v4?, v6?], strays: strays?, abandoned: false };
        self.state().parties.insert(pod.name().to_owned(), party);
        Ok(())
    }

    /// The Pod is about to go: nobody speaks to it any more, and it hears what was still on the way.
    pub(crate) fn leave(&self, pod: &str) {
        let mut state = self.state();
        state.receive();
        state.parties.remove(pod);
    }

    /// Nobody speaks to the Pod any more, which is still there, listens, and goes on to speak.
    pub(crate) fn abandon(&self, pod: &str) {
        if let Some(party) = self.state().parties.get_mut(pod) {
            party.abandoned = true;
        }
    }

    /// The cluster knows an abandoned Pod no longer: what it says from now on must reach nobody.
    pub(crate) fn disown(&self, pod: &str) {
        let mut state = self.state();
        let number = state.number;
        state.disowned_at.insert(pod.to_owned(), number);
    }

    /// Waits until every Pod has heard every other one anew, in both families.
    pub(crate) fn flows(&self) -> Result<()> {
        let before = self.seen();
        eventually::succeeds("everybody hears everybody", || {
            let state = self.state();
            let live: Vec<_> =
                state.parties.iter().filter(|(_, party)| !party.abandoned).map(|(name, _)| name).collect();
            let pairs = live.iter().flat_map(|from| live.iter().map(move |to| (*from, *to)));
            for (from, to) in pairs.filter(|(from, to)| from != to) {
                let pair = (from.clone(), to.clone());
                let of = |all: &BTreeMap<_, Seen>| all.get(&pair).copied().unwrap_or_default().families;
                let (then, now) = (of(&before), of(&state.seen));
                ensure!(
                    now[0] > then[0] && now[1] > then[1],
                    "{to} does not hear {from}: {then:?}, then {now:?}"
                );
            }
            Ok(())
        })
    }

    /// All so far.
    pub(crate) fn seen(&self) -> BTreeMap<(String, String), Seen> {
        self.state().seen.clone()
    }

    /// Datagrams sent and lost so far, without those of Pods that are disowned and those that may be on the way.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let mut state = self.state();
        state.receive();
        let state = &*state;
        let counted = state.seen.iter().filter(|((from, to), _)| {
            !state.disowned_at.contains_key(from) && !state.disowned_at.contains_key(to)
        });
        let (sent, received) =
            counted.fold((0, 0), |(sent, received), (_, seen)| (sent + seen.sent, received + seen.received));
        (sent, sent - received)
    }

    /// The number of the last datagram so far.
    pub(crate) fn mark(&self) -> u64 {
        self.state().number
    }

    /// An error unless everything that two Pods have sent each other since the mark gets there.
    pub(crate) fn no_loss_since(&self, mark: u64, pods: [&str; 2]) -> Result<()> {
        let until = self.mark();
        eventually::succeeds("nothing is lost", || self.all_there(mark, until, pods))
    }

    /// Waits until everything gets there for as long as programs may remember a way that is no more.
    pub(crate) fn settles(&self, pods: [&str; 2]) -> Result<()> {
        eventually::succeeds("all ways are right", || {
            let (begin, mark) = (Instant::now(), self.mark());
            while begin.elapsed() < REMEMBERED {
                self.flows()?;
            }
            let until = self.mark();
            self.flows()?;
            self.all_there(mark, until, pods)
        })
    }

    /// An error if a datagram after the first number and up to the second, between two Pods, has not got there yet.
    fn all_there(&self, mark: u64, until: u64, pods: [&str; 2]) -> Result<()> {
        let mut state = self.state();
        state.receive();
        let between =
            |(from, to): &(String, String)| [from, to].iter().all(|pod| pods.contains(&pod.as_str()));
        let missing = state.missing.range(mark + 1..=until).filter(|(_, pair)| between(pair));
        let numbers: Vec<_> = missing.map(|(number, (from, _))| format!("{number} from {from}")).collect();
        ensure!(numbers.is_empty(), "of the datagrams {} to {until} are missing: {numbers:?}", mark + 1);
        Ok(())
    }

    /// Ends it: an error if anything reached a Pod for which it was not.
    pub(crate) fn finish(mut self) -> Result<(u64, u64)> {
        self.end();
        let mut totals = self.totals();
        for _ in 0..READS / 10 {
            if totals.1 == 0 {
                break;
            }
            // The last ones may be on the way; what is lost is not waited for in vain.
            thread::sleep(Duration::from_millis(1));
            totals = self.totals();
        }
        let wrong = &self.state().wrong;
        ensure!(wrong.is_empty(), "{} reached the wrong Pod: {wrong:#?}", wrong.len());
        Ok(totals)
    }

    /// An error if anything reached a Pod for which it was not, so far.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = &self.state().wrong;
        ensure!(wrong.is_empty(), "{} reached the wrong Pod: {wrong:#?}", wrong.len());
        Ok(())
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            eprintln!("the traffic's thread panicked");
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn bind(address: IpAddr) -> Result<UdpSocket> {
    let socket =
        UdpSocket::bind(SocketAddr::new(address, PORT)).with_context(|| format!("bind {address}"))?;
    socket.set_nonblocking(true).context("do not wait")?;
    Ok(socket)
}

impl State {
    fn round(&mut self) {
        self.receive();
        let Self { parties, number, seen, missing, .. } = self;
        for (from, sender) in parties.iter() {
            // Whoever has the same addresses is not reached, but oneself.
            let others = parties.iter().filter(|(_, other)| other.addresses != sender.addresses);
            for (to, receiver) in others.filter(|(_, other)| !other.abandoned) {
                for (socket, address) in sender.sockets.iter().zip(receiver.addresses) {
                    *number += 1;
                    let mut payload = format!("{from} {to} {number} ").into_bytes();
                    payload.resize(if *number % 5 == 0 { LARGE } else { SMALL }, b'.');
                    let sent = socket.send_to(&payload, SocketAddr::new(address, PORT));
                    // One that is not even sent is not lost; an error may be about an earlier one.
                    if sent.is_ok() {
                        let pair = (from.clone(), to.clone());
                        missing.insert(*number, pair.clone());
                        seen.entry(pair).or_default().sent += 1;
                    }
                }
            }
        }
    }

    /// Reads what has arrived.
    fn receive(&mut self) {
        let Self { parties, seen, missing, wrong, disowned_at, .. } = self;
        let mut buffer = [0; 2048];
        for (name, party) in parties.iter() {
            wrong.extend(party.strays.take().into_iter().map(|stray| format!("{name} got {stray}")));
            for (family, socket) in party.sockets.iter().enumerate() {
                for _ in 0..READS {
                    let length = match socket.recv_from(&mut buffer) {
                        Ok((length, _)) => length,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        // About something that was sent.
                        Err(_) => continue,
                    };
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    let mut words = text.split(' ');
                    let (Some(from), Some(to), Some(Ok(number))) =
                        (words.next(), words.next(), words.next().map(str::parse::<u64>))
                    else {
                        wrong.push(format!("{name} got {text:?}"));
                        continue;
                    };
                    let stray = disowned_at.get(from).is_some_and(|since| number > *since);
                    if to != name || stray {
                        wrong.push(format!("{name} got number {number} from {from} to {to}"));
                        continue;
                    }
                    missing.remove(&number);
                    let seen = seen.entry((from.to_owned(), to.to_owned())).or_default();
                    seen.received += 1;
                    seen.families[family] += 1;
                }
            }
        }
    }
}
