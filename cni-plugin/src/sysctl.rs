//! Per-interface kernel settings. Written through `/proc/sys/net`, which shows the namespace of the writing thread.

use std::fs;
use std::path::PathBuf;

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
}

/// A setting with its value.
pub(crate) type Setting = (Family, &'static str, &'static str);

/// Applies settings to an interface. A kernel without IPv6 has nothing to set there; an address of that family fails
/// later with a better message.
pub(crate) fn apply(ifname: &str, settings: &[Setting]) -> Result<(), CniError> {
    for (family, key, value) in settings {
        let directory = PathBuf::from(family.directory());
        if !directory.exists() {
            continue;
        }
        let path = directory.join("conf").join(ifname).join(key);
        fs::write(&path, value).map_err(|error| {
            let details = format!("{} = {value}: {error}", path.display());
            CniError::new(ErrorCode::WIRING_FAILED, "write sysctl", details)
        })?;
    }
    Ok(())
}
