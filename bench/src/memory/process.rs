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

/// Kernel memory of all maps that the process has open, in bytes.
pub(crate) fn map_memory(process: u32) -> Result<u64> {
    let folder = format!("/proc/{process}/fdinfo");
    let mut maps = BTreeMap::new();
    for file in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        // A descriptor that was closed meanwhile is no map.
        let text = fs::read_to_string(file.context("list descriptors")?.path()).unwrap_or_default();
        if let (Some(id), Some(bytes)) = (field_of(&text, "map_id"), field_of(&text, "memlock")) {
            let bytes: u64 = bytes.parse().with_context(|| format!("memory of map {id}"))?;
            maps.insert(id.to_owned(), bytes);
        }
    }
    Ok(maps.values().sum())
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
