//! The store across restarts: what it promises is what it still knows after being dropped at any moment.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use quilla_cni_protocol::{Attachment, Wanted};

use super::{Entry, NewAttachment, Store, StoreError};
use crate::cni::Pools;

fn open(dir: &Path) -> Store {
    let mut store = Store::open(dir, Duration::ZERO).expect("opens");
    store.set_pools(Pools { ipv4: "10.0.0.0/24".parse().ok(), ipv6: "fd00::/120".parse().ok() });
    store
}

fn attachment(id: usize) -> Attachment {
    Attachment { container_id: format!("c{id}"), ifname: "eth0".into() }
}

fn new(id: usize) -> NewAttachment {
    NewAttachment {
        attachment: attachment(id),
        network: "n".into(),
        netns: "/ns".into(),
        pod: None,
        wanted: Wanted::default(),
    }
}

fn attach(store: &mut Store, id: usize) -> String {
    store.reserve(new(id)).expect("reserves");
    let endpoint = store.candidate(&attachment(id), 7, 9).expect("is reserved");
    let address = endpoint.ipv4.expect("has an address").to_string();
    store.commit(endpoint).expect("commits");
    address
}

/// CNI-12: the same attachment keeps its addresses, before and after a restart.
#[test]
fn one_attachment_one_address() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    let address = attach(&mut store, 1);
    for _ in 0..2 {
        let Entry::Attached(endpoint) = store.reserve(new(1)).expect("reserves") else {
            panic!("not attached");
        };
        assert_eq!(endpoint.ipv4.map(|address| address.to_string()).as_deref(), Some(address.as_str()));
        assert_eq!((endpoint.host_ifindex, endpoint.netns_cookie), (7, 9));
        drop(store);
        store = open(dir.path());
    }
}

/// A reservation whose plugin went away with the agent is given back.
#[test]
fn unattached_reservations_end_with_the_agent() {
    let dir = tempfile::tempdir().expect("temporary directory");
    open(dir.path()).reserve(new(1)).expect("reserves");
    let store = open(dir.path());
    assert_eq!(store.entry(&attachment(1)), None);
    assert!(store.list("n").is_empty());
}

/// The order of release survives a restart: reuse stays as late as possible.
#[test]
fn released_addresses_come_last_after_a_restart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    let first = attach(&mut store, 1);
    store.release(&attachment(1)).expect("releases");
    drop(store);
    let mut store = open(dir.path());
    let others: HashSet<_> = (2..254).map(|id| attach(&mut store, id)).collect();
    assert_eq!(others.len(), 252);
    assert!(!others.contains(&first));
    assert_eq!(attach(&mut store, 254), first);
    assert!(matches!(store.reserve(new(255)), Err(StoreError::Addresses { .. })));
}

/// CNI-30: after a crash in the middle of a write, no address that was acknowledged is given again.
#[test]
fn torn_write_never_gives_a_duplicate() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    let acknowledged: HashSet<_> = (0..5).map(|id| attach(&mut store, id)).collect();
    let path = dir.path().join("endpoints.journal");
    let intact = fs::read(&path).expect("reads").len();
    attach(&mut store, 5);
    drop(store);
    let whole = fs::read(&path).expect("reads");
    // `journal` is cut at every byte in its own tests; here each cut costs three syncs.
    for end in (intact..whole.len()).step_by(23) {
        fs::write(&path, &whole[..end]).expect("writes");
        let mut store = open(dir.path());
        assert_eq!(store.attached().len(), 5, "cut at {end}");
        assert!(!acknowledged.contains(&attach(&mut store, 6)), "cut at {end}");
    }
}

/// CNI-30: one journal, one agent.
#[test]
fn a_second_agent_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let _first = open(dir.path());
    assert!(matches!(Store::open(dir.path(), Duration::ZERO), Err(StoreError::InUse { .. })));
}

/// The file does not grow with the node's history.
#[test]
fn the_journal_is_rewritten() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    for round in 0..500 {
        attach(&mut store, round);
        store.release(&attachment(round)).expect("releases");
    }
    drop(store);
    let lines = fs::read_to_string(dir.path().join("endpoints.journal")).expect("reads").lines().count();
    assert!(lines < 1400, "{lines} lines");
    assert!(open(dir.path()).attached().is_empty());
}

/// CNI-30: one failed write refuses one request, not every later one, and leaves no trace.
#[test]
fn a_failed_write_is_got_over() {
    for target in ["/dev/null", "/dev/full"] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut store = open(dir.path());
        let first = attach(&mut store, 1);
        store.reserve(new(2)).expect("reserves");
        let endpoint = store.candidate(&attachment(2), 7, 9).expect("is reserved");
        store.journal.divert(target);
        assert!(matches!(store.commit(endpoint), Err(StoreError::Journal(_))), "{target}");
        store.release(&attachment(2)).expect("writes the file anew");
        let third = attach(&mut store, 3);
        drop(store);

        let attached = open(dir.path()).attached();
        let addresses: Vec<_> =
            attached.iter().filter_map(|endpoint| endpoint.ipv4).map(|ip| ip.to_string()).collect();
        assert_eq!(addresses, [first, third], "{target}");
    }
}
