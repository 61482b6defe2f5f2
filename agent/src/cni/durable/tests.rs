//! What was answered is what the disk says: many who come and go at once, as when a node starts, and a disk that takes
//! its time or fails.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use super::DurableStore;
use crate::cni::disk::Disk;
use crate::cni::store::tests::{attachment, new};
use crate::cni::store::{Entry, Store, StoreError};
use crate::cni::{AttachedEndpoint, Pools};

const THREADS: usize = 16;
const ROUNDS: usize = 60;

/// An endpoint that is effective and not committed yet.
fn reserved(store: &DurableStore, id: &str) -> AttachedEndpoint {
    store.locked().reserve(new(id)).expect("reserves");
    store.locked().candidate(&attachment(id), 7, 9).expect("is reserved")
}

/// Attaches and returns the address.
fn attach(store: &DurableStore, id: &str) -> String {
    let endpoint = reserved(store, id);
    let address = endpoint.ipv4.expect("has an address").to_string();
    store.commit(endpoint).expect("commits");
    address
}

/// CNI-30: while the file is rewritten again and again, nobody shares an address, and the next agent finds those who
/// stayed and no others.
#[test]
fn a_crowd_shares_syncs_and_no_addresses() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = Store::open(dir.path(), Duration::ZERO).expect("opens");
    store.set_pools(&Pools { ipv4: vec!["10.0.0.0/27".parse().expect("valid")], ipv6: vec![] });
    let (store, held) = (DurableStore::new(store), Mutex::new(HashSet::new()));
    let live = |thread: usize| {
        for round in 0..ROUNDS {
            let id = format!("c{thread}-{round}");
            let address = attach(&store, &id);
            assert!(held.lock().unwrap_or_else(PoisonError::into_inner).insert(address.clone()), "{address}");
            if round + 1 < ROUNDS {
                held.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
                store.release(&attachment(&id));
            }
        }
    };
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let live = &live;
            scope.spawn(move || live(thread));
        }
    });
    assert!(store.locked().entries().iter().all(|entry| matches!(entry, Entry::Attached(_))));
    assert!(store.locked().stray_addresses().is_empty());
    drop(store);

    let kept = Store::open(dir.path(), Duration::ZERO).expect("opens").attached();
    let ids: HashSet<_> = kept.iter().map(|endpoint| endpoint.container_id.clone()).collect();
    assert_eq!(ids, (0..THREADS).map(|thread| format!("c{thread}-{}", ROUNDS - 1)).collect());
    let addresses = kept.iter().filter_map(|endpoint| endpoint.ipv4).map(|ip| ip.to_string()).collect();
    assert_eq!(held.into_inner().unwrap_or_else(PoisonError::into_inner), addresses);
}

/// How long something that must happen is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A disk that waits for a word of the test in each sync, once it is asked to.
#[derive(Debug, Default)]
struct Slow {
    gate: Mutex<Option<Gate>>,
    syncs: AtomicUsize,
}

/// Says that a sync has begun; hears whether it is to succeed.
type Gate = (Sender<()>, Receiver<bool>);

impl Slow {
    /// From now on.
    fn shut(&self) -> (Receiver<()>, Sender<bool>) {
        let ((begun, begins), (word, words)) = (channel(), channel());
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = Some((begun, words));
        (begins, word)
    }

    fn open(&self) {
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Disk for Slow {
    fn sync(&self, file: &File) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        // One sync goes through the gate; the next ones find none.
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((begun, words)) = gate {
            begun.send(()).expect("the test listens");
            if !words.recv_timeout(PATIENCE).expect("the test decides") {
                return Err(io::Error::other("on purpose"));
            }
        }
        file.sync_data()
    }
}

/// A pool with one address, or a few.
fn on_slow_disk(dir: &Path, pool: &str) -> (Arc<Slow>, DurableStore) {
    let disk = Arc::new(Slow::default());
    let mut store = Store::open_on(dir, Duration::ZERO, Arc::clone(&disk) as Arc<dyn Disk>).expect("opens");
    store.set_pools(&Pools { ipv4: vec![pool.parse().expect("valid")], ipv6: vec![] });
    (disk, DurableStore::new(store))
}

type Outcome = Receiver<Result<(), StoreError>>;

/// Commits on a thread of its own.
fn commit<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    store: &'env DurableStore,
    endpoint: AttachedEndpoint,
) -> Outcome {
    let (done, outcome) = channel();
    scope.spawn(move || done.send(store.commit(endpoint)));
    outcome
}

fn outcome(of: &Outcome) -> Result<(), StoreError> {
    of.recv_timeout(PATIENCE).expect("is answered")
}

/// Until the line of an attachment is written; its sync is not.
fn written(store: &DurableStore, id: &str) {
    while !matches!(store.locked().entry(&attachment(id)), Some(Entry::Attached(_))) {
        thread::yield_now();
    }
}

fn known(dir: &Path) -> Vec<String> {
    let attached = Store::open(dir, Duration::ZERO).expect("opens").attached();
    attached.into_iter().map(|endpoint| endpoint.container_id).collect()
}

/// CNI-30: an ADD is answered after its line is on disk, and not before.
#[test]
fn cni_30_no_commit_returns_before_its_sync() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (disk, store) = on_slow_disk(dir.path(), "10.0.0.0/24");
    let endpoint = reserved(&store, "a");
    let (begins, word) = disk.shut();
    thread::scope(|scope| {
        let done = commit(scope, &store, endpoint);
        begins.recv_timeout(PATIENCE).expect("the disk is asked");
        assert!(matches!(done.try_recv(), Err(TryRecvError::Empty)), "answered before its sync");
        word.send(true).expect("the disk waits");
        outcome(&done).expect("commits");
    });
    let before = disk.syncs.load(Ordering::SeqCst);
    let again = store.locked().candidate(&attachment("a"), 7, 9);
    assert!(again.is_err(), "it is attached");
    attach(&store, "b");
    assert_eq!(disk.syncs.load(Ordering::SeqCst), before + 1, "each change alone has its sync");
}

/// CNI-30: when a sync fails, everybody who counted on it is refused, and the file is used no more.
#[test]
fn cni_30_all_who_wait_for_a_failed_sync_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (disk, store) = on_slow_disk(dir.path(), "10.0.0.0/24");
    let endpoints = ["a", "b", "c"].map(|id| reserved(&store, id));
    let (begins, word) = disk.shut();
    thread::scope(|scope| {
        let [first, others @ ..] = endpoints;
        let first = commit(scope, &store, first);
        begins.recv_timeout(PATIENCE).expect("the disk is asked");
        let others = others.map(|endpoint| commit(scope, &store, endpoint));
        for id in ["b", "c"] {
            written(&store, id);
        }
        word.send(false).expect("the disk waits");
        for waiter in [&first].into_iter().chain(&others) {
            assert!(matches!(outcome(waiter), Err(StoreError::Journal(_))));
        }
    });
    // What a session does then.
    for id in ["a", "b", "c"] {
        store.release(&attachment(id));
    }
    attach(&store, "d");
    drop(store);
    assert_eq!(known(dir.path()), ["d"]);
}

/// CNI-18, CNI-30: an address is nobody else's before its release is on disk; while it waits for that, nothing is
/// written anew for it.
#[test]
fn cni_30_an_address_is_not_free_before_the_sync() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (disk, store) = on_slow_disk(dir.path(), "10.0.0.0/30");
    attach(&store, "a");
    let (begins, word) = disk.shut();
    thread::scope(|scope| {
        let release = scope.spawn(|| store.release(&attachment("a")));
        begins.recv_timeout(PATIENCE).expect("the disk is asked");
        let syncs = disk.syncs.load(Ordering::SeqCst);
        assert!(matches!(store.locked().entry(&attachment("a")), Some(Entry::Releasing(_))));
        assert!(matches!(store.locked().reserve(new("b")), Err(StoreError::Addresses { .. })));
        store.locked().settle().expect("has nothing to do");
        assert_eq!(disk.syncs.load(Ordering::SeqCst), syncs, "a release under way is nothing to make up for");
        assert!(store.locked().entry(&attachment("a")).is_some());
        word.send(true).expect("the disk waits");
        release.join().expect("does not panic");
    });
    assert_eq!(attach(&store, "b"), "10.0.0.2");
}

/// CNI-18, CNI-30: a release whose sync fails is made up for.
#[test]
fn cni_30_a_release_whose_sync_fails_is_made_up_for() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (disk, store) = on_slow_disk(dir.path(), "10.0.0.0/30");
    attach(&store, "a");
    let (begins, word) = disk.shut();
    word.send(false).expect("the disk will fail");
    store.release(&attachment("a"));
    begins.recv_timeout(PATIENCE).expect("the disk was asked");
    assert!(matches!(store.locked().entry(&attachment("a")), Some(Entry::Released(_))));
    store.locked().settle().expect("writes");
    assert_eq!(attach(&store, "b"), "10.0.0.2");
}

/// CNI-30: who waits while the file is written anew has his line in the new one.
#[test]
fn cni_30_a_file_that_changes_during_a_sync() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for succeeds in [true, false] {
        let (disk, store) = on_slow_disk(dir.path(), "10.0.0.0/24");
        let endpoints = ["a", "b"].map(|id| reserved(&store, id));
        let (begins, word) = disk.shut();
        thread::scope(|scope| {
            let [first, second] = endpoints.map(|endpoint| {
                let id = endpoint.container_id.clone();
                let done = commit(scope, &store, endpoint);
                written(&store, &id);
                done
            });
            begins.recv_timeout(PATIENCE).expect("the disk is asked");
            store.locked().rewrite().expect("writes");
            word.send(succeeds).expect("the disk waits");
            assert_eq!(outcome(&first).is_ok(), succeeds);
            assert_eq!(outcome(&second).is_ok(), succeeds, "the new file is doubted with the old one");
        });
        disk.open();
        drop(store);
        assert_eq!(known(dir.path()), ["a", "b"]);
        std::fs::remove_file(dir.path().join("endpoints.journal")).expect("removes");
    }
}

/// CNI-30: after a file could not take the place of another, nothing is added to the one without a name.
#[test]
fn cni_30_a_file_that_lost_its_name_takes_nothing() {
    #[derive(Debug, Default)]
    struct Forgetful(AtomicUsize);
    impl Disk for Forgetful {
        fn sync_names(&self, folder: &File) -> io::Result<()> {
            // At start, then in a running agent.
            if self.0.fetch_add(1, Ordering::SeqCst) == 1 {
                return Err(io::Error::other("on purpose"));
            }
            folder.sync_all()
        }
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let disk = Arc::new(Forgetful::default());
    let mut store = Store::open_on(dir.path(), Duration::ZERO, disk).expect("opens");
    store.set_pools(&Pools { ipv4: vec!["10.0.0.0/24".parse().expect("valid")], ipv6: vec![] });
    let store = DurableStore::new(store);
    attach(&store, "a");
    let waiting = reserved(&store, "b");
    store.locked().rewrite().expect_err("its name is not on disk");
    attach(&store, "c");
    store.commit(waiting).expect("commits");
    drop(store);
    assert_eq!(known(dir.path()), ["a", "b", "c"]);
}
