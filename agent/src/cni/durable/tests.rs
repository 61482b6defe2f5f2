//! Many who come and go at once, as when a node starts: what was answered is what the disk says.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use quilla_cni_protocol::{Attachment, Wanted};

use super::DurableStore;
use crate::cni::Pools;
use crate::cni::store::{Entry, NewAttachment, Store};

const THREADS: usize = 16;
const ROUNDS: usize = 60;

fn attachment(id: &str) -> Attachment {
    Attachment { container_id: id.into(), ifname: "eth0".into() }
}

/// Attaches and returns the address.
fn attach(store: &DurableStore, id: &str) -> String {
    let new = NewAttachment {
        attachment: attachment(id),
        network: "n".into(),
        netns: "/ns".into(),
        pod: None,
        wanted: Wanted::default(),
        own_wish: Ok(Vec::new()),
    };
    store.locked().reserve(new).expect("reserves");
    let endpoint = store.locked().candidate(&attachment(id), 7, 9).expect("is reserved");
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
