//! Failures in words for the operator: standard error always, and a file when the configuration names one. Never
//! standard output, which is the runtime's.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use quilla_cni_protocol::CniError;

/// Reports a failed operation. A log that cannot be written must not change the outcome.
pub(crate) fn failure(error: &CniError, file: Option<&Path>) {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let line = format!(
        "quilla-cni: {} {} {}: {error}\n",
        variable("CNI_COMMAND"),
        variable("CNI_CONTAINERID"),
        variable("CNI_IFNAME"),
    );
    warn_on_error(io::stderr().write_all(line.as_bytes()));
    if let Some(path) = file {
        let opened = OpenOptions::new().create(true).append(true).open(path);
        warn_on_error(opened.and_then(|mut file| file.write_all(line.as_bytes())));
    }
}

/// A condition worth a line that does not fail the operation.
pub(crate) fn notice(message: &str) {
    warn_on_error(writeln!(io::stderr(), "quilla-cni: {message}"));
}

fn warn_on_error(written: io::Result<()>) {
    if let Err(error) = written {
        // Standard error may be the very thing that failed: there is nobody left to tell.
        drop(writeln!(io::stderr(), "quilla-cni: write log: {error}"));
    }
}
