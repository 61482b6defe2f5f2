//! What two frames differ in, field by field.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::decode::{Decoded, decode};

/// `None` when the frames are the same bytes; else one line for each field that differs.
pub fn difference(expected: &[u8], actual: &[u8]) -> Option<String> {
    if expected == actual {
        return None;
    }
    let (left, right) = (decode(expected), decode(actual));
    let lines = differing_fields(&left, &right);
    if lines.is_empty() {
        let at =
            expected.iter().zip(actual).position(|(a, b)| a != b).unwrap_or(expected.len().min(actual.len()));
        return Some(format!("all fields agree, but byte {at} differs\n{expected:02x?}\n{actual:02x?}"));
    }
    Some(lines)
}

/// Repeated names are compared by position among their equals.
fn differing_fields(left: &Decoded, right: &Decoded) -> String {
    let mut lines = String::new();
    let mut seen = BTreeSet::new();
    for (name, _) in left.fields().chain(right.fields()) {
        if !seen.insert(name) {
            continue;
        }
        let values = |side: &Decoded| -> Vec<String> {
            side.fields().filter(|(field, _)| *field == name).map(|(_, value)| value.to_owned()).collect()
        };
        let (expected, actual) = (values(left), values(right));
        if expected != actual {
            let text =
                |values: Vec<String>| if values.is_empty() { "absent".to_owned() } else { values.join(", ") };
            writeln!(lines, "  {name}: expected {}, got {}", text(expected), text(actual))
                .expect("write to a string");
        }
    }
    lines
}
