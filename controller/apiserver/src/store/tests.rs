//! What the storage promises: replayable history, consistent old revisions, and no acknowledged write lost.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use futures::executor::block_on;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const BUCKETS: [&str; 2] = ["/a", "x.io/b"];

type State = BTreeMap<String, (u64, Value)>;

fn state(listing: &Listing) -> State {
    let name = |object: &Object| object.value["metadata"]["name"].as_str().unwrap().to_owned();
    listing.objects.iter().map(|o| (name(o), (o.revision, Value::clone(&o.value)))).collect()
}

fn listed(store: &Embedded, bucket: &str, at: Option<u64>) -> Result<State, StoreError> {
    store.list(bucket, None, at).map(|listing| state(&listing))
}

/// Puts or deletes, whatever is there now; false if there was nothing to delete.
fn step(store: &Embedded, bucket: &str, name: &str, put: Option<u32>) -> bool {
    let key = Key::new(bucket, "n", name);
    let head = store.head(&key).map(|object| object.revision);
    if put.is_none() && head.is_none() {
        return false;
    }
    let value = put.map(|number| json!({"metadata": {"name": name}, "number": number}));
    let (_, durable) = store.write(key, head, value).unwrap();
    block_on(durable).unwrap();
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// list + watch replay = final state, and every revision in the history can be listed again, before and after a
    /// restart, with a window small enough to be compacted all the time.
    #[test]
    fn replay_gives_the_final_state(
        steps in prop::collection::vec((0usize..2, 0u8..4, prop::option::weighted(0.7, any::<u32>())), 1..60),
        window in 1usize..20,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let mut store = Embedded::open(&path, window).unwrap();
        let mut known: Vec<(u64, [State; 2])> = Vec::new();
        for (bucket, name, put) in steps {
            step(&store, BUCKETS[bucket], &format!("o{name}"), put);
            let revision = *store.follow().borrow();
            known.push((revision, BUCKETS.map(|bucket| listed(&store, bucket, None).unwrap())));
        }
        for reopened in [false, true] {
            if reopened {
                drop(store);
                store = Embedded::open(&path, window).unwrap();
            }
            check_history(&store, &known);
        }
    }
}

fn check_history(store: &Embedded, known: &[(u64, [State; 2])]) {
    let last = &known.last().unwrap().1;
    for (revision, states) in known {
        for (at, bucket) in BUCKETS.iter().enumerate() {
            let replayed = match (listed(store, bucket, Some(*revision)), store.changes(bucket, *revision)) {
                (Err(StoreError::Compacted { .. }), Err(StoreError::Compacted { .. })) => continue,
                (listed, changes) => {
                    let mut replayed = listed.unwrap();
                    assert_eq!(replayed, states[at], "revision {revision} of {bucket}");
                    for event in changes.unwrap().events {
                        match &event.new {
                            Some(new) => {
                                replayed
                                    .insert(event.key.name.clone(), (new.revision, Value::clone(&new.value)));
                            }
                            None => drop(replayed.remove(&event.key.name)),
                        }
                    }
                    replayed
                }
            };
            assert_eq!(replayed, last[at], "replay of {bucket} from {revision}");
        }
    }
}

#[test]
fn a_stale_writer_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(&directory.path().join("db"), 10).unwrap();
    step(&store, "/a", "o", Some(1));
    let key = Key::new("/a", "n", "o");
    for expected in [None, Some(7)] {
        let result = store.write(key.clone(), expected, Some(json!({"metadata": {}})));
        assert!(matches!(result.err(), Some(StoreError::Conflict { found: Some(1), .. })));
    }
    assert!(matches!(store.changes("/a", 9), Err(StoreError::Future { .. })));
}

#[test]
fn the_database_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    drop(Embedded::open(&path, 10).unwrap());
    assert_eq!(mode(), 0o600, "made anew");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    drop(Embedded::open(&path, 10).unwrap());
    assert_eq!(mode(), 0o600, "made by an older version");
}

#[test]
fn compaction_keeps_the_disk_small() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let store = Embedded::open(&path, 5).unwrap();
    for number in 0..100 {
        step(&store, "/a", "o", Some(number));
        step(&store, "/a", "gone", (number % 2 == 0).then_some(number));
    }
    drop(store);
    let contents = disk::Disk::open(&path).unwrap().read().unwrap();
    assert!(contents.records.len() <= 16, "{} records are left of 200 writes", contents.records.len());
    assert!(contents.floor > 180, "the floor is {}", contents.floor);
}

/// Set in the process that writes until it is killed.
const CHILD: &str = "QUILLA_STORE_CRASH_CHILD";

/// What a name may hold: the number last acknowledged, or one of those tried since; None where it is deleted.
type Possible = BTreeMap<String, Vec<Option<u64>>>;

/// `kill -9` in the middle of creations, updates and deletions, again and again on the same database: nothing
/// acknowledged is lost, and nothing is there that nobody wrote.
#[test]
fn kill_nine_loses_nothing_acknowledged() {
    if let Ok(path) = std::env::var(CHILD) {
        write_until_killed(std::path::Path::new(&path));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let mut possible = Possible::new();
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::kill_nine_loses_nothing_acknowledged", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut puts, mut deletions) = (0, 0);
        for line in lines.map_while(Result::ok) {
            let Some((verb, name, number)) = parse(&line) else { continue };
            let states = possible.entry(name).or_insert_with(|| vec![None]);
            if verb == "tries" {
                states.push(number);
                continue;
            }
            *states = vec![number];
            *(if number.is_some() { &mut puts } else { &mut deletions }) += 1;
            if puts + deletions == 60 + round * 7 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(puts >= 10 && deletions >= 5, "only {puts} puts and {deletions} deletions in round {round}");
        let store = Embedded::open(&path, 50).unwrap();
        for (name, states) in &mut possible {
            let object = store.get(&Key::new("/a", "n", name));
            let found = object.map(|object| object.value["number"].as_u64().unwrap());
            assert!(states.contains(&found), "{name} is {found:?}, not one of {states:?}");
            *states = vec![found];
        }
        assert!(listed(&store, "/a", None).unwrap().keys().all(|name| possible.contains_key(name)));
    }
}

/// `tries NAME NUMBER` before a write and `acked NAME NUMBER` after it, with `gone` for a deletion's number.
fn parse(line: &str) -> Option<(&str, String, Option<u64>)> {
    // The test harness may have begun the line.
    let start = line.find("tries ").or_else(|| line.find("acked "))?;
    let mut words = line[start..].split(' ');
    let (verb, name, number) = (words.next()?, words.next()?, words.next()?);
    let number = if number == "gone" { None } else { Some(number.parse().ok()?) };
    Some((verb, name.to_owned(), number))
}

fn write_until_killed(path: &std::path::Path) -> ! {
    let store = Arc::new(Embedded::open(path, 50).unwrap());
    let base = *store.follow().borrow();
    let writers = (0..4u64).map(|writer| {
        let store = Arc::clone(&store);
        // Every name goes through creation, update and deletion, at its writer's pace.
        std::thread::spawn(move || {
            for count in 0.. {
                let (name, number) = (format!("w{writer}-{}", count % 5), base + count);
                let key = Key::new("/a", "n", &name);
                let head = store.head(&key).map(|object| object.revision);
                let is_deletion = (count / 5) % 3 == 2 && head.is_some();
                let value = json!({"metadata": {"name": name}, "number": number, "padding": "x".repeat(900)});
                let told = if is_deletion { "gone".to_owned() } else { number.to_string() };
                println!("tries {name} {told}");
                let (_, durable) = store.write(key, head, (!is_deletion).then_some(value)).unwrap();
                block_on(durable).unwrap();
                println!("acked {name} {told}");
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.join().unwrap();
    }
    unreachable!("the writers end only with the process")
}
