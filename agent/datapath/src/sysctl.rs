//! Settings of the calling thread's network namespace, under `/proc/sys/net`.
//!
//! Only what forwarding needs, and never switched back: other software on the node may need it too.

use std::fs;
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

/// Lets packets come in by `device` whose answers would leave by another one. The kernel applies the stricter of the
/// device's setting and the namespace's, but takes "loose" (2) for stricter than "strict" (1).
pub fn relax_reverse_path(device: &str) -> Result<()> {
    let everywhere = read(&path(&["ipv4", "conf", "all", "rp_filter"]))?;
    set_device("ipv4", device, "rp_filter", if everywhere == "0" { "0" } else { "2" })
}

/// Sets a device's setting; without IPv6 in the kernel there is none to set.
pub(crate) fn set_device(family: &str, device: &str, setting: &str, value: &str) -> Result<()> {
    if family == "ipv6" && !has_ipv6() {
        return Ok(());
    }
    write(&path(&[family, "conf", device, setting]), value)
}

fn has_ipv6() -> bool {
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
