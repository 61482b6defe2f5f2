//! What several of these tests begin with.

use quilla_datapath::{Datapath, Options, bpffs};
use tempfile::TempDir;

/// A data path in a BPF file system of the test's own, which whoever drops the directory unmounts first. Where it pins
/// and how large it is are not for the options to say.
pub(crate) fn datapath(options: &Options) -> (TempDir, Datapath) {
    let directory = tempfile::Builder::new().prefix("quilla-agent-").tempdir().expect("temporary directory");
    bpffs::mount(directory.path()).expect("this test needs root");
    let options = Options { bpffs: directory.path().to_owned(), flow_capacity: 1024, ..options.clone() };
    let datapath = Datapath::open(&options).expect("open the data path");
    (directory, datapath)
}
