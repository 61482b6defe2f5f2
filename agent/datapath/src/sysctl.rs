//! Settings of the calling thread's network namespace, under `/proc/sys/net`.
//!
//! Only what forwarding needs, and never switched back: other software on the node may need it too.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::error::{DatapathError, Result};

const ROOT: &str = "/proc/sys/net";

/// Lets the node forward packets of both families. An uplink that learns its routes from router advertisements goes on
/// doing so, which forwarding alone would end.
pub fn enable_forwarding(uplink: &str) -> Result<()> {
    write(&path(&["ipv4", "ip_forward"]), "1")?;
    if !has_ipv6() {
        return Ok(());
    }
    if read(&path(&["ipv6", "conf", uplink, "accept_ra"]))? == "1" {
        set_device("ipv6", uplink, "accept_ra", "2")?;
    }
    write(&path(&["ipv6", "conf", "all", "forwarding"]), "1")
}

/// Lets packets come in by `device` whose answers would leave by another one: strict becomes loose, off stays off. The kernel
/// applies the larger of the device's setting and the namespace's, so that "loose" (2) wins over "strict" (1).
pub fn relax_reverse_path(device: &str) -> Result<()> {
    let setting = |place| read(&path(&["ipv4", "conf", place, "rp_filter"]));
    if setting("all")?.max(setting(device)?) == "1" {
        set_device("ipv4", device, "rp_filter", "2")
    } else {
        Ok(())
    }
}

/// The source ports that the node's own sockets may be given: the ephemeral range without what is reserved.
pub fn ephemeral_ports() -> Result<Vec<RangeInclusive<u16>>> {
    let range = read(&path(&["ipv4", "ip_local_port_range"]))?;
    let reserved = read(&path(&["ipv4", "ip_local_reserved_ports"]))?;
    let range = parse_range(&range).unwrap_or(1..=u16::MAX);
    Ok(without(range, reserved.split(',').filter_map(parse_range)))
}

/// Of a range, what no other range covers.
fn without(
    range: RangeInclusive<u16>,
    holes: impl Iterator<Item = RangeInclusive<u16>>,
) -> Vec<RangeInclusive<u16>> {
    let cut = |left: Vec<RangeInclusive<u16>>, hole: RangeInclusive<u16>| {
        let halves = left.into_iter().flat_map(|part| {
            let below = *part.start()..=(*part.end()).min(hole.start().saturating_sub(1));
            let above = (*part.start()).max(hole.end().saturating_add(1))..=*part.end();
            [(below, *hole.start() > 0), (above, *hole.end() < u16::MAX)]
        });
        halves.filter_map(|(half, exists)| (exists && !half.is_empty()).then_some(half)).collect()
    };
    holes.fold(vec![range], cut)
}

/// `FIRST LAST` or `FIRST-LAST`, or a single port.
fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.trim().split_once(['\t', ' ', '-']).unwrap_or((text, text));
    Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
}

/// Sets a device's setting; without IPv6 in the kernel there is none to set.
pub(crate) fn set_device(family: &str, device: &str, setting: &str, value: &str) -> Result<()> {
    if family == "ipv6" && !has_ipv6() {
        return Ok(());
    }
    write(&path(&[family, "conf", device, setting]), value)
}

pub(crate) fn has_ipv6() -> bool {
    Path::new(ROOT).join("ipv6").exists()
}

/// A device's name may contain dots, so paths and not dotted names.
fn path(parts: &[&str]) -> PathBuf {
    [ROOT].iter().chain(parts).collect()
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path)
        .map(|value| value.trim().to_owned())
        .map_err(|source| DatapathError::kernel("read", path.to_string_lossy(), source))
}

/// What is set already is not written: in a container `/proc/sys` may be read-only.
fn write(path: &Path, value: &str) -> Result<()> {
    if read(path)? == value {
        return Ok(());
    }
    fs::write(path, value).map_err(|source| DatapathError::kernel("write", path.to_string_lossy(), source))
}

#[cfg(test)]
mod tests {
    use super::{parse_range, without};

    #[test]
    fn reserved_ports_are_cut_out_of_the_ephemeral_ones() {
        let left = |range: &str, reserved: &str| {
            without(parse_range(range).unwrap(), reserved.split(',').filter_map(parse_range))
        };
        assert_eq!(left("32768\t60999", ""), [32768..=60999]);
        assert_eq!(left("1024\t65535", "61000-65535"), [1024..=60999]);
        assert_eq!(left("1024\t65535", "8080,61000-62000\n"), [1024..=8079, 8081..=60999, 62001..=65535]);
        assert_eq!(left("61000\t65535", "0-65535"), []);
        assert_eq!(left("1 1", "1"), []);
    }
}
