//! What a second agent finds of the first one's maps.

use std::fs;

use quilla_abi::config::Config;
use quilla_abi::service::{Service, ServiceKey};
use quilla_abi::version::SCHEMA;
use quilla_abi::{Be16, map};
use quilla_datapath::{Datapath, DatapathError, Object, Options};

use crate::support::{Bpffs, open};

const FRONTEND: ServiceKey<[u8; 4]> =
    ServiceKey { addr: [10, 96, 0, 1], port: Be16::new(443), proto: 6, scope: 0 };
const SERVICE: Service =
    Service { id: 1, slot_base: 8, slot_count: 2, affinity_seconds: 0, slow_start_seconds: 0, flags: 0 };

#[test]
fn content_survives() {
    let bpffs = Bpffs::new();
    let first = bpffs.open();
    assert!(first.opened().recovered.is_empty() && first.opened().replaced.is_empty());
    assert_eq!(first.maps().config.get(0).expect("config").expect("a row").schema, SCHEMA);
    first.maps().services_v4.insert(&FRONTEND, &SERVICE).expect("insert");
    drop(first);

    let second = bpffs.open();
    assert!(second.opened().replaced.is_empty(), "{:?}", second.opened());
    assert!(second.opened().recovered.contains(&map::FLOWS_V4));
    assert_eq!(second.maps().services_v4.get(&FRONTEND).expect("get"), Some(SERVICE));
}

#[test]
fn a_map_of_another_size_is_moved_aside() {
    let bpffs = Bpffs::new();
    let first = bpffs.open();
    first.maps().services_v4.insert(&FRONTEND, &SERVICE).expect("insert");
    drop(first);

    let options = Options { flow_capacity: 2048, ..bpffs.options() };
    let second = open(&options);
    assert_eq!(second.opened().replaced, [map::FLOWS_V4, map::FLOWS_V6]);
    assert_eq!(second.maps().flows_v4.capacity(), 2048);
    let aside = bpffs.maps().join("flows_v4-replaced");
    assert!(aside.exists());
    second.forget_replaced().expect("forget");
    second.forget_replaced().expect("forget again");
    assert!(!aside.exists());
    assert_eq!(second.maps().services_v4.get(&FRONTEND).expect("get"), Some(SERVICE));
}

#[test]
fn a_pin_that_is_another_kind_of_map_is_moved_aside() {
    let bpffs = Bpffs::new();
    drop(bpffs.open());
    // Same names, other types: a hash where an array should be and the other way round.
    let (slots, services) = (bpffs.maps().join("slots"), bpffs.maps().join("services_v4"));
    fs::rename(&slots, bpffs.maps().join("spare")).expect("rename");
    fs::rename(&services, &slots).expect("rename");
    fs::rename(bpffs.maps().join("spare"), &services).expect("rename");

    let second = bpffs.open();
    assert_eq!(second.opened().replaced, [map::SERVICES_V4, map::SLOTS]);
    second.maps().slots.set(0, &7).expect("an array again");
}

#[test]
fn another_schema_replaces_everything() {
    let bpffs = Bpffs::new();
    let first = bpffs.open();
    first.maps().services_v4.insert(&FRONTEND, &SERVICE).expect("insert");
    first.maps().config.set(0, &Config { schema: SCHEMA + 1, ..Config::default() }).expect("set");
    drop(first);

    let second = bpffs.open();
    assert!(second.opened().recovered.is_empty());
    assert_eq!(second.maps().services_v4.get(&FRONTEND).expect("get"), None);
    assert_eq!(second.maps().config.get(0).expect("config").expect("a row").schema, SCHEMA);
}

#[test]
fn flows_are_not_believed_without_the_epochs_they_were_made_under() {
    let bpffs = Bpffs::new();
    drop(bpffs.open());
    fs::remove_file(bpffs.maps().join("epochs")).expect("remove");

    let second = bpffs.open();
    assert_eq!(second.opened().replaced, [map::FLOWS_V4, map::FLOWS_V6]);
}

/// An upgrade that cannot load leaves the maps to the agent that is rolled back to.
#[test]
fn a_failed_load_puts_the_maps_back() {
    let bpffs = Bpffs::new();
    let first = bpffs.open();
    first.maps().services_v4.insert(&FRONTEND, &SERVICE).expect("insert");
    first.maps().config.set(0, &Config { schema: SCHEMA + 1, ..Config::default() }).expect("set");

    let lacking = without_symbol(Object::embedded().bytes(), b"COUNT_HELPERS");
    let error = Datapath::open_object(&Object::from_bytes(&lacking), &bpffs.options());
    assert!(matches!(error, Err(DatapathError::Object { .. })), "{error:?}");

    first.maps().config.set(0, &Config { schema: SCHEMA, ..Config::default() }).expect("set");
    let second = bpffs.open();
    assert!(second.opened().replaced.is_empty(), "{:?}", second.opened());
    assert_eq!(second.maps().services_v4.get(&FRONTEND).expect("get"), Some(SERVICE));
}

/// The object with a symbol under another name.
fn without_symbol(object: &[u8], name: &[u8]) -> Vec<u8> {
    let mut changed = object.to_vec();
    let places = (0..object.len() - name.len()).filter(|&at| object[at..].starts_with(name));
    for at in places {
        changed[at] = b'X';
    }
    assert_ne!(changed, object, "the symbol is there");
    changed
}

#[test]
fn an_object_that_is_cut_short_is_refused() {
    let bpffs = Bpffs::new();
    let whole = Object::embedded().bytes();
    for length in [0, 8, 64, whole.len() / 2] {
        let error = Datapath::open_object(&Object::from_bytes(&whole[..length]), &bpffs.options());
        assert!(matches!(error, Err(DatapathError::Object { .. })), "{length} bytes: {error:?}");
    }
    assert!(bpffs.open().opened().recovered.is_empty(), "and nothing was pinned");
}

#[test]
fn a_directory_elsewhere_is_refused() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let options = Options { bpffs: directory.path().to_owned(), ..Options::default() };
    let error = Datapath::open(&options).expect_err("not a bpf file system");
    assert!(error.to_string().ends_with("is not on a bpf file system"), "{error}");
}
