//! Per-interface kernel settings. Written through `/proc/sys/net`, which shows the namespace of the writing thread.

use std::fs;
use std::path::Path;

use quilla_cni_protocol::{CniError, ErrorCode};

/// Address family of a setting.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    /// `net.ipv4.conf`.
    Ipv4,
    /// `net.ipv6.conf`.
    Ipv6,
}

impl Family {
    const fn directory(self) -> &'static str {
        match self {
            Self::Ipv4 => "/proc/sys/net/ipv4",
            Self::Ipv6 => "/proc/sys/net/ipv6",
        }
    }

    /// Whether the kernel has it at all.
    pub(crate) fn is_in_the_kernel(self) -> bool {
        Path::new(self.directory()).exists()
    }
}

/// A setting with its value.
pub(crate) type Setting = (Family, &'static str, &'static str);

/// Applies settings to an interface. A kernel without IPv6 has nothing to set there; an address of that family fails
/// later with a better message.
pub(crate) fn apply(ifname: &str, settings: &[Setting]) -> Result<(), CniError> {
    for (family, key, value) in settings {
        if !family.is_in_the_kernel() {
            continue;
        }
        let path = Path::new(family.directory()).join("conf").join(ifname).join(key);
        // Some of them wait for the kernel's network lock, and most are right from the interface's birth.
        if fs::read(&path).is_ok_and(|present| present.trim_ascii() == value.as_bytes()) {
            continue;
        }
        fs::write(&path, value).map_err(|error| {
            let details = format!("{} = {value}: {error}", path.display());
            CniError::new(ErrorCode::WIRING_FAILED, "write sysctl", details)
        })?;
    }
    Ok(())
}
