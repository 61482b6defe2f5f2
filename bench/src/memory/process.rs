//! What `/proc` says about a process.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Resident memory now, in bytes.
pub(crate) fn resident(process: u32) -> Result<u64> {
    status(process, "VmRSS")
}

/// The part of it that is the process's own and not pages of its binary.
pub(crate) fn anonymous(process: u32) -> Result<u64> {
    status(process, "RssAnon")
}

/// The most there ever was.
pub(crate) fn peak(process: u32) -> Result<u64> {
    status(process, "VmHWM")
}

fn status(process: u32, field: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = field_of(&text, field).and_then(|value| value.strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(1024 * value.with_context(|| format!("{field} in {path}"))?)
}

/// What the kernel says about a map; see `bpf_map_show_fdinfo` for the fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Map {
    /// `enum bpf_map_type`
    pub(crate) kind: u64,
    pub(crate) flags: u64,
    pub(crate) key: u64,
    pub(crate) value: u64,
    pub(crate) capacity: u64,
    /// Kernel memory.
    pub(crate) bytes: u64,
}

/// Kernel memory of all maps that the process has open, in bytes.
pub(crate) fn map_memory(process: u32) -> Result<u64> {
    Ok(maps(process)?.iter().map(|map| map.bytes).sum())
}

/// All maps that the process has open.
pub(crate) fn maps(process: u32) -> Result<Vec<Map>> {
    let folder = format!("/proc/{process}/fdinfo");
    let mut maps = BTreeMap::new();
    for file in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        // A descriptor that was closed meanwhile is no map.
        let text = fs::read_to_string(file.context("list descriptors")?.path()).unwrap_or_default();
        let Some(id) = field_of(&text, "map_id") else { continue };
        let number = |field| {
            let value = field_of(&text, field).with_context(|| format!("no {field} of map {id}"))?;
            let digits = value.trim_start_matches("0x");
            let radix = if digits.len() < value.len() { 16 } else { 10 };
            u64::from_str_radix(digits, radix).with_context(|| format!("{field} of map {id}"))
        };
        let map = Map {
            kind: number("map_type")?,
            flags: number("map_flags")?,
            key: number("key_size")?,
            value: number("value_size")?,
            capacity: number("max_entries")?,
            bytes: number("memlock")?,
        };
        maps.insert(id.to_owned(), map);
    }
    Ok(maps.into_values().collect())
}

fn field_of<'a>(text: &'a str, field: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::{field_of, peak, resident};

    #[test]
    fn this_process_has_memory() {
        let process = std::process::id();
        let (now, most) = (resident(process).expect("resident"), peak(process).expect("peak"));
        assert!(now > 0 && most > 0, "{now} of at most {most}");
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(field_of("map_idx:\t1\nmap_id:\t7\n", "map_id"), Some("7"));
    }
}
