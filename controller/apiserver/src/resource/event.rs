//! `events.k8s.io/v1` Events, which are stored as the core group's Events under other field names.
//!
//! Used by the table's row. Invariant: renaming there and back gives the same object.

use serde_json::Value;

use super::Alias;
use crate::object;

pub(super) const ALIAS: Alias = Alias { bucket: "/events", to_stored, from_stored };

/// (name in the core group, name in events.k8s.io)
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

fn to_stored(mut event: Value) -> Value {
    let map = object::map(&mut event);
    for (stored, shown) in NAMES {
        if let Some(value) = map.remove(shown) {
            map.insert(stored.to_owned(), value);
        }
    }
    // The core group's type demands it; events.k8s.io has it optional.
    map.entry("involvedObject").or_insert_with(|| Value::Object(serde_json::Map::new()));
    super::Resource::core("events").stamp(&mut event);
    event
}

fn from_stored(mut event: Value) -> Value {
    let map = object::map(&mut event);
    for (stored, shown) in NAMES {
        if let Some(value) = map.remove(stored) {
            map.insert(shown.to_owned(), value);
        }
    }
    event
}
