//! What can go wrong, with the operation and the object it was tried on.
//!
//! Every fallible function of the crate returns it. The source is the kernel's own answer, never a rephrased one.

use std::io;
use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = DatapathError> = std::result::Result<T, E>;

/// Why an operation on the kernel failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatapathError {
    /// The kernel refused a call.
    #[error("{operation} {object}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// On which map, link, program, device or file.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A map has no room for the rows.
    #[error("map {map} is full at {capacity} entries")]
    MapFull {
        /// Its name.
        map: String,
        /// Its size.
        capacity: u32,
    },
    /// A map's rows have other sizes than the types used for them.
    #[error("map {map} has rows of {found:?} bytes (key, value), not {expected:?}")]
    MapShape {
        /// Its name.
        map: String,
        /// Sizes of the types.
        expected: (usize, usize),
        /// Sizes of the map.
        found: (usize, usize),
    },
    /// The object cannot be parsed, or a map of it cannot be made.
    #[error("load the kernel object")]
    Object {
        /// The loader's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The verifier rejected a program.
    #[error("load program {program}: {log}")]
    Program {
        /// Its name.
        program: String,
        /// The end of the verifier's log.
        log: String,
        /// The loader's reason.
        source: io::Error,
    },
    /// The object lacks something it must have.
    #[error("the kernel object has no {kind} {name}")]
    Missing {
        /// Map or program.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A directory is not on the file system it must be on.
    #[error("{path} is not on a {filesystem} file system")]
    FileSystem {
        /// The directory.
        path: PathBuf,
        /// What it should be on.
        filesystem: &'static str,
    },
    /// A clsact filter could not be changed.
    #[error("attach {program} to {device} by clsact")]
    Clsact {
        /// The program.
        program: &'static str,
        /// The device.
        device: String,
        /// The loader's reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another's queueing discipline or filter is where a clsact filter should be.
    #[error("attach to {device} by clsact: {by} is in its place")]
    PlaceTaken {
        /// The device.
        device: String,
        /// What is there.
        by: String,
    },
    /// A netlink request failed.
    #[error("{operation} {object}")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// On which device, address or route.
        object: String,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// There is no such device in this namespace.
    #[error("no device {name}")]
    NoDevice {
        /// Its name.
        name: String,
    },
    /// Addresses of two families in one request.
    #[error("the source {address} does not fit the route to {destination}")]
    RouteFamily {
        /// The destination.
        destination: ipnet::IpNet,
        /// The preferred source.
        address: std::net::IpAddr,
    },
    /// A thread that did the work in another namespace panicked.
    #[error("the thread in namespace {namespace} panicked")]
    Panicked {
        /// The namespace.
        namespace: String,
    },
}

impl DatapathError {
    pub(crate) fn kernel(operation: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self::Kernel { operation, object: object.into(), source }
    }

    pub(crate) fn netlink(
        operation: &'static str,
        object: impl Into<String>,
        source: rtnetlink::Error,
    ) -> Self {
        Self::Netlink { operation, object: object.into(), source: Box::new(source) }
    }
}
