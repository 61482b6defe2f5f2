//! The program as a shell runs it: what becomes of output that nobody takes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};

/// Asks an agent that answers after the program's standard output has been closed here.
fn quilla(stdout: Stdio) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("admin.sock");
    let listener = UnixListener::bind(&socket).expect("listen");
    let mut command = Command::new(env!("CARGO_BIN_EXE_quilla"));
    command.arg("--socket").arg(&socket).arg("nodes");
    let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("start");
    drop(child.stdout.take());
    let (mut stream, _) = listener.accept().expect("the question");
    let mut byte = [0];
    while byte != [b'\n'] {
        stream.read_exact(&mut byte).expect("a line");
    }
    stream.write_all(br#"{"columns": ["node"], "rows": [["a"]]}"#).expect("answer");
    drop(stream);
    child.wait_with_output().expect("wait")
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let output = quilla(Stdio::piped());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success(), "{}", output.status);
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = File::create("/dev/full").expect("open /dev/full");
    let output = quilla(full.into());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("quilla: write: No space left on device"), "{said}");
    assert_eq!(output.status.code(), Some(1));
}
