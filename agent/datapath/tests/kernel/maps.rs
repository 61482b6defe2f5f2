//! Tables against real maps: what is written is what is read, in batches and singly.

use quilla_abi::counter::Counter;
use quilla_abi::endpoint::Endpoint;
use quilla_abi::map::capacity;
use quilla_abi::route::{Route, RouteKey, kind};
use quilla_datapath::DatapathError;

use crate::support::Bpffs;

fn endpoint(id: u32) -> ([u8; 4], Endpoint) {
    (id.to_be_bytes(), Endpoint { ifindex: id + 1, id, pod_mac: [2; 6], host_mac: [4; 6] })
}

#[test]
fn a_hash_gives_back_its_rows() {
    let bpffs = Bpffs::new();
    let datapath = bpffs.open();
    let table = &datapath.maps().endpoints_v4;
    let rows: Vec<_> = (0..4000).map(endpoint).collect();
    table.insert_batch(&rows).expect("insert");
    let mut found = table.entries().expect("entries");
    found.sort_by_key(|(key, _)| *key);
    assert_eq!(found, rows);
    assert_eq!(table.get(&rows[7].0).expect("get"), Some(rows[7].1));
    assert_eq!(table.get(&[255; 4]).expect("get"), None);
}

#[test]
fn removing_what_is_not_there_is_no_error() {
    let bpffs = Bpffs::new();
    let datapath = bpffs.open();
    let table = &datapath.maps().endpoints_v4;
    table.insert_batch(&(0..100).map(endpoint).collect::<Vec<_>>()).expect("insert");
    let keys: Vec<_> = (50..150).map(|id| endpoint(id).0).rev().collect();
    assert_eq!(table.remove_batch(&keys).expect("remove"), 50);
    assert_eq!(table.remove_batch(&keys).expect("remove again"), 0);
    assert_eq!(table.len().expect("len"), 50);
    assert!(table.remove(&endpoint(1).0).expect("remove one"));
    assert!(!table.remove(&endpoint(1).0).expect("remove one again"));
}

#[test]
fn a_full_hash_says_so() {
    let bpffs = Bpffs::new();
    let datapath = bpffs.open();
    let table = &datapath.maps().endpoints_v4;
    let rows: Vec<_> = (0..=table.capacity()).map(endpoint).collect();
    let error = table.insert_batch(&rows).expect_err("one row too many");
    assert!(
        matches!(&error, DatapathError::MapFull { map, capacity: 4096 } if map == "endpoints_v4"),
        "{error}"
    );
    assert_eq!(table.len().expect("len"), 4096);
}

#[test]
fn an_array_is_all_zero_until_written() {
    let bpffs = Bpffs::new();
    let datapath = bpffs.open();
    let slots = &datapath.maps().slots;
    assert_eq!(slots.get(12).expect("get"), Some(0));
    let rows: Vec<_> = (0..10_000).map(|i| (i * 7, i + 1)).collect();
    slots.set_batch(&rows).expect("set");
    let all = slots.rows().expect("rows");
    assert_eq!(all.len(), capacity::SLOTS as usize);
    assert_eq!(all.iter().filter(|&&id| id != 0).count(), rows.len());
    assert!(rows.iter().all(|&(index, id)| all[index as usize] == id));
    assert_eq!(slots.get(capacity::SLOTS).expect("get"), None);
}

#[test]
fn a_trie_finds_the_longest_prefix() {
    let bpffs = Bpffs::new();
    let datapath = bpffs.open();
    let routes = &datapath.maps().routes_v4;
    let route = |slot| Route { kind: kind::REMOTE_PODS, pad: 0, node_slot: slot };
    let rows: Vec<_> = (0..=255)
        .map(|i| (RouteKey { prefix_len: 24, addr: [10, 1, i, 0] }, route(u16::from(i))))
        .chain([(RouteKey { prefix_len: 16, addr: [10, 1, 0, 0] }, route(999))])
        .collect();
    routes.insert_batch(&rows).expect("insert");
    assert_eq!(routes.len().expect("len"), rows.len());
    let host = |addr| RouteKey { prefix_len: 32, addr };
    assert_eq!(routes.get(&host([10, 1, 9, 1])).expect("get"), Some(route(9)));
    let keys: Vec<_> = rows[..256].iter().map(|(key, _)| *key).collect();
    assert_eq!(routes.remove_batch(&keys).expect("remove"), 256);
    assert_eq!(routes.get(&host([10, 1, 9, 1])).expect("get"), Some(route(999)));
    assert_eq!(routes.entries().expect("entries").len(), 1);
}

#[test]
fn counters_start_at_zero_and_can_be_reset() {
    let bpffs = Bpffs::new();
    let datapath = bpffs.open();
    let drops = &datapath.maps().drops;
    drops.reset(1).expect("reset");
    assert_eq!(drops.total(1).expect("total"), Counter::default());
    assert!(drops.totals().expect("totals").iter().all(|row| *row == Counter::default()));
}
