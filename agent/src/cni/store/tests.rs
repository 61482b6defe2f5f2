//! The store across restarts: what it promises is what it still knows after being dropped at any moment.

use std::collections::HashSet;
use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use quilla_cni_protocol::{Attachment, Bandwidth, PodRef, Wanted};

use super::{Entry, NewAttachment, Replay, Store, StoreError};
use crate::cni::ipam::{Ipam, IpamError, Seconds};
use crate::cni::journal::{Record, Recovered};
use crate::cni::{AttachError, Pools};

fn open(dir: &Path) -> Store {
    let mut store = Store::open(dir, Duration::ZERO).expect("opens");
    let nets = ["10.0.0.0/24", "fd00::/120"].map(|net| net.parse::<ipnet::IpNet>().expect("valid"));
    store.set_pools(&nets.into_iter().collect::<Pools>());
    store
}

pub(in crate::cni) fn attachment(id: impl Display) -> Attachment {
    Attachment { container_id: id.to_string(), ifname: "eth0".into() }
}

/// A Pod that takes whatever address there is.
pub(in crate::cni) fn new(id: impl Display) -> NewAttachment {
    NewAttachment {
        attachment: attachment(id),
        network: "n".into(),
        netns: "/ns".into(),
        pod: None,
        wanted: Wanted::default(),
        mtu: 1450,
        own_wish: Ok(Vec::new()),
    }
}

fn attach(store: &mut Store, id: usize) -> String {
    store.reserve(new(id)).expect("reserves");
    let endpoint = store.candidate(&attachment(id), 7, 9).expect("is reserved");
    let address = endpoint.ipv4.expect("has an address").to_string();
    store.commit(endpoint).expect("commits");
    address
}

fn release(store: &mut Store, id: usize) {
    let attachment = attachment(id);
    if let Some((_, at)) = store.release(&attachment) {
        sync(store).expect("syncs");
        store.released(&attachment, at);
    }
}

fn sync(store: &mut Store) -> Result<(), StoreError> {
    let unsynced = store.unsynced()?;
    Ok(unsynced.sync().map_err(|error| store.sync_failed(error))?)
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
    release(&mut store, 1);
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

/// CNI-30: a lock that outlives its agent for a moment, in a child between fork and exec, is waited for.
#[test]
fn a_lock_about_to_go_is_waited_for() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let child = fs::File::open(dir.path()).expect("opens");
    child.lock().expect("locks");
    let openings = || {
        let files = fs::read_dir("/proc/self/fd").expect("lists").flatten();
        files.filter(|file| fs::read_link(file.path()).is_ok_and(|target| target == dir.path())).count()
    };
    let second = thread::scope(|scope| {
        let second = scope.spawn(|| Store::open(dir.path(), Duration::ZERO));
        while openings() < 2 && !second.is_finished() {
            thread::yield_now();
        }
        drop(child);
        second.join().expect("does not panic")
    });
    second.expect("opens");
}

/// The file does not grow with the node's history.
#[test]
fn the_journal_is_rewritten() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    for round in 0..500 {
        attach(&mut store, round);
        release(&mut store, round);
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
        let committed = store.commit(endpoint).and_then(|_| sync(&mut store));
        assert!(matches!(committed, Err(StoreError::Journal(_))), "{target}");
        release(&mut store, 2);
        let third = attach(&mut store, 3);
        drop(store);

        let attached = open(dir.path()).attached();
        let addresses: Vec<_> =
            attached.iter().filter_map(|endpoint| endpoint.ipv4).map(|ip| ip.to_string()).collect();
        assert_eq!(addresses, [first, third], "{target}");
    }
}

/// CNI-18, CNI-30: a release that cannot be written succeeds; its addresses stay held until it is written, also when the
/// agent dies in between.
#[test]
fn a_release_without_a_disk_is_made_up_for() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let state = dir.path().join("state");
    let away = dir.path().join("away");
    let mut store = open(&state);
    let first = attach(&mut store, 1);
    store.journal.divert("/dev/full");
    fs::rename(&state, &away).expect("renames");
    release(&mut store, 1);
    assert!(matches!(store.entry(&attachment(1)), Some(Entry::Released(_))));
    assert!(store.ready().is_err() && store.reserve(new(2)).is_err(), "nothing is given that is not written");
    assert!(store.attached().is_empty() && store.stray_addresses().is_empty());

    fs::rename(&away, &state).expect("renames");
    store.settle().expect("writes");
    assert_eq!(store.entry(&attachment(1)), None);
    assert_ne!(attach(&mut store, 2), first);
    drop(store);
    assert_eq!(open(&state).attached().len(), 1);
}

/// CNI-30: an agent that cannot write its journal keeps what it says and gives nothing.
#[test]
fn a_journal_that_cannot_be_written_is_read() {
    let dir = tempfile::tempdir().expect("temporary directory");
    attach(&mut open(dir.path()), 1);
    // Where the new file is to be written there is a directory.
    fs::create_dir(dir.path().join("endpoints.journal.new")).expect("makes it");
    let mut store = open(dir.path());
    assert_eq!(store.attached().len(), 1);
    assert!(store.ready().is_err() && store.reserve(new(2)).is_err());
    assert!(store.stray_addresses().is_empty());
    fs::remove_dir(dir.path().join("endpoints.journal.new")).expect("removes it");
    store.ready().expect("writes");
    attach(&mut store, 2);
}

/// CNI-30: of a damaged journal what is intact counts; what is lost, the kernel's routes know, and no address of a Pod
/// that is there is given to another.
#[test]
fn a_damaged_journal_gives_nothing_twice() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    let given: Vec<_> = (1..5).map(|id| attach(&mut store, id)).collect();
    drop(store);
    let path = dir.path().join("endpoints.journal");
    let whole = fs::read_to_string(&path).expect("reads");
    let routes: Vec<_> = (1..5)
        .map(|id| (attachment(id).host_ifname(), given[id - 1].parse().expect("is an address")))
        .collect();
    for lost in 1..5 {
        let name = format!("\"{lost}\"");
        let kept = whole.lines().map(|line| if line.contains(&name) { "damaged" } else { line });
        fs::write(&path, kept.collect::<Vec<_>>().join("\n") + "\n").expect("writes");
        let mut store = open(dir.path());
        assert_eq!(store.attached().len(), 3, "{lost}");
        store.set_routes(&routes);
        let next = attach(&mut store, 10);
        assert!(!given.contains(&next), "{next} twice");
        // Its own DEL gives it back, and so does the end of its device.
        assert!(store.has_strangers());
        if lost % 2 == 0 {
            release(&mut store, lost);
        } else {
            store.set_routes(&[]);
        }
        assert!(!store.has_strangers() && store.stray_addresses().is_empty());
    }
    assert!(dir.path().join("endpoints.journal.damaged").exists());
}

/// CNI-30: when the line of a release is lost, the later holder of the address is the true one.
#[test]
fn a_lost_release_leaves_one_holder() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = Store::open(dir.path(), Duration::ZERO).expect("opens");
    store.set_pools(&Pools { ipv4: vec!["10.0.0.0/30".parse().expect("valid")], ipv6: vec![] });
    attach(&mut store, 1);
    release(&mut store, 1);
    attach(&mut store, 2);
    drop(store);
    let path = dir.path().join("endpoints.journal");
    let whole = fs::read_to_string(&path).expect("reads");
    let kept: Vec<_> = whole.lines().filter(|line| !line.contains("released")).collect();
    fs::write(&path, kept.join("\n") + "\n").expect("writes");
    let attached = open(dir.path()).attached();
    assert_eq!(attached.iter().map(|endpoint| endpoint.container_id.as_str()).collect::<Vec<_>>(), ["2"]);
}

/// What the version before wrote: times of the wall clock, which say nothing here.
#[test]
fn the_journal_of_the_version_before() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    attach(&mut store, 1);
    let cooling = attach(&mut store, 2);
    release(&mut store, 2);
    drop(store);
    let path = dir.path().join("endpoints.journal");
    let whole = fs::read_to_string(&path).expect("reads");
    let line = |json: &str| format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
    let old = whole.lines().skip(1).map(|text| line(&text[9..].replace("\"at\":", "\"at\":1700000000")));
    let old: String =
        std::iter::once(line(r#"{"record":"journal","format":1}"#)).chain(old).collect::<Vec<_>>().concat();
    fs::write(&path, old).expect("writes");
    let mut store = Store::open(dir.path(), Duration::from_hours(1)).expect("opens");
    assert_eq!(store.attached().len(), 1);
    store.set_pools(&Pools { ipv4: vec!["10.0.0.0/30".parse().expect("valid")], ipv6: vec![] });
    assert!(store.ready().is_err(), "{cooling} cools down from now on, whenever it was released");
}

/// A wished address that somebody has: the holder is named, and nothing is taken.
#[test]
fn a_wished_address_is_refused_with_its_holder() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    let taken = attach(&mut store, 1);
    let wish = |id, address: &str| {
        let ips = vec![address.parse().expect("valid")];
        NewAttachment { wanted: Wanted { ips, ..Wanted::default() }, ..new(id) }
    };
    let error = store.reserve(wish(2, &taken)).expect_err("is taken");
    assert!(matches!(&error, StoreError::AddressTaken { holder, .. } if *holder == attachment(1)), "{error}");
    let error = store.reserve(wish(2, "192.0.2.1")).expect_err("is not ours");
    assert!(matches!(error, StoreError::AddressUnusable { .. }), "{error}");
    assert!(store.stray_addresses().is_empty());
    store.reserve(wish(2, "10.0.0.200")).expect("is free");
}

/// An ADD for which the Pod asks for these addresses itself.
fn asking(id: usize, own_wish: &[&str]) -> NewAttachment {
    NewAttachment { own_wish: Ok(own_wish.iter().map(|ip| ip.parse().expect("valid")).collect()), ..new(id) }
}

fn addresses(entry: &Entry) -> Vec<String> {
    entry.endpoint().addresses().map(|address| address.to_string()).collect()
}

/// CNI-33: a Pod gets the addresses it asks for, or an error, never others; what the runtime wishes weighs more.
#[test]
fn cni_33_what_a_pod_asks_for() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    let given = |entry: Result<Entry, StoreError>| addresses(&entry.expect("is given"));
    assert_eq!(given(store.reserve(asking(1, &["fd00::7", "10.0.0.7"]))), ["10.0.0.7", "fd00::7"]);
    assert_eq!(given(store.reserve(asking(2, &["fd00::8"]))), ["10.0.0.2", "fd00::8"], "the other is any");
    let error = store.reserve(asking(3, &["10.0.0.7"])).expect_err("is held");
    assert!(matches!(&error, StoreError::AddressTaken { holder, .. } if *holder == attachment(1)), "{error}");
    for unusable in ["10.0.1.7", "10.0.0.1", "10.0.0.255", "fd01::7", "127.0.0.1"] {
        let error = store.reserve(asking(3, &[unusable])).expect_err("is not ours");
        assert!(
            matches!(error, StoreError::AddressUnusable { .. }) && error.is_about_an_address(),
            "{error}"
        );
    }
    assert_eq!(store.entry(&attachment(3)), None, "a refusal takes nothing");
    let wanted = Wanted { ips: vec!["10.0.0.9".parse().expect("valid")], ..Wanted::default() };
    let both = NewAttachment { wanted, ..asking(3, &["10.0.0.7", "fd00::9"]) };
    assert_eq!(given(store.reserve(both)), ["10.0.0.9", "fd00::9"], "the runtime's, and the Pod's other");

    let unknown = || Err(AttachError::NotReady { reason: "no apiserver".into() });
    let error = store.reserve(NewAttachment { own_wish: unknown(), ..new(4) }).expect_err("nobody knows");
    assert!(matches!(error, StoreError::Wish(_)) && !error.is_about_an_address(), "{error}");
    // CNI-12: what is given stays, whatever is asked by now.
    let again = NewAttachment { own_wish: unknown(), ..new(1) };
    assert_eq!(given(store.reserve(again)), ["10.0.0.7", "fd00::7"]);
}

/// CNI-33: an address that a Pod asks for rests like any other; one that the runtime names does not.
#[test]
fn cni_33_what_a_pod_asks_for_cools_down() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = Store::open(dir.path(), Duration::from_hours(1)).expect("opens");
    store.set_pools(&Pools { ipv4: vec!["10.0.0.0/24".parse().expect("valid")], ipv6: vec![] });
    let address = attach(&mut store, 1);
    release(&mut store, 1);
    let error = store.reserve(asking(2, &[&address])).expect_err("rests");
    assert!(matches!(error, StoreError::AddressResting { .. }) && error.is_about_an_address(), "{error}");
    let wanted = Wanted { ips: vec![address.parse().expect("valid")], ..Wanted::default() };
    let entry = store.reserve(NewAttachment { wanted, ..new(2) }).expect("is given");
    assert_eq!(addresses(&entry), [address]);
}

fn asking_as(id: usize, uid: &str, own_wish: &[&str]) -> NewAttachment {
    let pod = PodRef { namespace: "shop".into(), name: "db-0".into(), uid: Some(uid.into()) };
    NewAttachment { pod: Some(pod), ..asking(id, own_wish) }
}

/// CNI-33: a Pod whose sandbox is made anew has its address again at once, also from a new agent; another Pod waits.
#[test]
fn cni_33_a_pod_does_not_wait_for_itself() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let open = || {
        let mut store = Store::open(dir.path(), Duration::from_hours(1)).expect("opens");
        store.set_pools(&Pools { ipv4: vec!["10.0.0.0/24".parse().expect("valid")], ipv6: vec![] });
        store
    };
    let mut store = open();
    for id in 1..4 {
        store.reserve(asking_as(id, "u", &["10.0.0.7"])).expect("is its own");
        let endpoint = store.candidate(&attachment(id), 7, 9).expect("is reserved");
        store.commit(endpoint).expect("commits");
        release(&mut store, id);
        for stranger in [asking(9, &["10.0.0.7"]), asking_as(9, "v", &["10.0.0.7"])] {
            let error = store.reserve(stranger).expect_err("rests");
            assert!(matches!(error, StoreError::AddressResting { .. }), "{error}");
        }
        if id == 2 {
            // Twice: the second one reads what the first one wrote.
            drop(store);
            drop(open());
            store = open();
        }
    }
}

/// CNI-33: what was never attached has nothing to rest from, but what it rested from before.
#[test]
fn cni_33_an_address_that_nobody_used_does_not_rest() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = Store::open(dir.path(), Duration::from_hours(1)).expect("opens");
    store.set_pools(&Pools { ipv4: vec!["10.0.0.0/24".parse().expect("valid")], ipv6: vec![] });
    store.reserve(asking(1, &["10.0.0.7"])).expect("is free");
    release(&mut store, 1);
    assert_eq!(addresses(&store.reserve(asking(2, &["10.0.0.7"])).expect("is free")), ["10.0.0.7"]);

    let used = attach(&mut store, 3);
    release(&mut store, 3);
    let wanted = Wanted { ips: vec![used.parse().expect("valid")], ..Wanted::default() };
    store.reserve(NewAttachment { wanted, ..new(4) }).expect("is given to whoever names it");
    store.rewrite().expect("writes");
    drop(store);
    let mut store = Store::open(dir.path(), Duration::from_hours(1)).expect("opens");
    store.set_pools(&Pools { ipv4: vec!["10.0.0.0/24".parse().expect("valid")], ipv6: vec![] });
    let error = store.reserve(asking(5, &[&used])).expect_err("rests still");
    assert!(matches!(error, StoreError::AddressResting { .. }), "{error}");
}

/// CNI-26: GC is told of what is attached, and of nothing that an ADD or a DEL is at work on.
#[test]
fn cni_26_what_is_under_way_is_not_listed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    for id in 1..4 {
        attach(&mut store, id);
    }
    store.reserve(new(4)).expect("reserves");
    store.release(&attachment(2)).expect("is written");
    let listed: Vec<_> = store.list("n").into_iter().map(|endpoint| endpoint.attachment).collect();
    assert_eq!(listed, [attachment(1), attachment(3)]);
}

/// The one address of a pool, released at `released` by the clock of then, in an agent that starts at `start`.
fn replayed(released: Seconds, start: Seconds, has_times: bool) -> Ipam {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    attach(&mut store, 1);
    let Some(Entry::Attached(endpoint)) = store.entry(&attachment(1)) else { panic!("not attached") };
    let released = Record::Released { attachment: attachment(1), at: released };
    let records = vec![Record::Attached { endpoint }, released];
    let recovered = Recovered { records, has_times, ..Recovered::default() };
    let mut ipam = Replay::of(recovered, Duration::from_secs(30), start).ipam;
    ipam.set_pools(&Pools { ipv4: vec!["10.0.0.0/30".parse().expect("valid")], ipv6: vec![] });
    ipam
}

/// CNI-30: the clock of the cool-down only stops for a reboot. An agent that starts finds times of its own boot, of an
/// earlier one that are later or earlier than now, and of a wall clock: an address never rests too short, nor longer
/// than a whole cool-down from the start on.
#[test]
fn cni_30_clock_jumps() {
    let free_from = |released, start, has_times| {
        let mut ipam = replayed(released, start, has_times);
        (start..=start + 31).find(|now| ipam.ready(*now).is_ok()).map(|now| now - start)
    };
    let hour = 3600;
    assert_eq!(free_from(hour, hour + 10, true), Some(20), "the same boot");
    assert_eq!(free_from(hour, hour + 100, true), Some(0), "long ago");
    assert_eq!(free_from(hour, 5, true), Some(25), "before a reboot: 5 s ago at least");
    assert_eq!(free_from(hour, 40, true), Some(0), "before a reboot that was 40 s ago");
    assert_eq!(free_from(35, 40, true), Some(25), "before a reboot, or 5 s ago: the longer rest");
    assert_eq!(free_from(Seconds::MAX, 0, true), Some(30), "no sense at all");
    assert_eq!(free_from(1_700_000_000, hour, false), Some(30), "of a wall clock");
    assert_eq!(free_from(0, hour, false), Some(30), "of a wall clock that was set back");
}

/// CNI-30: within a run, too: a time before the release (a clock that stood still or went back) is no time that passed.
#[test]
fn cni_30_a_clock_that_goes_back_gives_nothing_early() {
    let mut ipam = replayed(100, 101, true);
    for early in [0, 50, 99, 100, 129] {
        assert!(ipam.ready(early).is_err(), "at {early}");
        let address = "10.0.0.2".parse().expect("valid");
        assert_eq!(ipam.require_rested(address, None, early), Err(IpamError::Resting(address)), "at {early}");
    }
    assert!(ipam.ready(130).is_ok() && ipam.ready(Seconds::MAX).is_ok());
}

/// CNI-30: nothing here asks the wall clock.
#[test]
fn cni_30_the_clock_is_that_of_the_boot() {
    let uptime = fs::read_to_string("/proc/uptime").expect("reads");
    let uptime: u64 = uptime.split('.').next().and_then(|text| text.parse().ok()).expect("seconds");
    assert!((uptime..uptime + 60).contains(&super::now()), "{} is not {uptime}", super::now());
}

/// E5: for which packets a Pod's limits were made is known as long as the Pod is.
#[test]
fn limits_of_bandwidth_are_journaled_with_their_mtu() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut store = open(dir.path());
    let bandwidth = Bandwidth { ingress_rate: 1_000_000, ..Bandwidth::default() };
    let wanted = Wanted { bandwidth, ..Wanted::default() };
    store.reserve(NewAttachment { wanted, ..new(1) }).expect("reserves");
    store.commit(store.candidate(&attachment(1), 7, 9).expect("is reserved")).expect("commits");
    attach(&mut store, 2);
    drop(store);
    let store = open(dir.path());
    let limited = |id| store.entry(&attachment(id)).expect("is journaled").endpoint().limited_at;
    assert_eq!((limited(1), limited(2)), (Some(1450), None));
}
