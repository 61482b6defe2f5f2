//! Installing and removing in folders of the test, with an agent made up.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};

use super::{Agent, Options, run};

#[derive(Clone, Copy)]
struct Known {
    ready: bool,
    pods: Option<usize>,
}

const IDLE: Known = Known { ready: true, pods: Some(0) };

impl Agent for Known {
    fn require_ready(&self) -> Result<()> {
        ensure!(self.ready, "it just started");
        Ok(())
    }

    fn pods(&self) -> Result<usize> {
        let Some(pods) = self.pods else { bail!("nobody listens") };
        Ok(pods)
    }
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

fn options(folder: &Path, more: &[&str]) -> Options {
    fs::write(folder.join("plugin"), "program").expect("write");
    let path = |name: &str| folder.join(name).display().to_string();
    let (plugin, bin, conf) = (path("plugin"), path("bin"), path("net.d"));
    let words = ["x", "--plugin", &plugin, "--bin-dir", &bin, "--conf-dir", &conf, "--wait", "0"];
    Arguments::try_parse_from(words.iter().chain(more)).expect("parses").options
}

fn files(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for sub in ["bin", "net.d"] {
        let entries = fs::read_dir(folder.join(sub)).into_iter().flatten().flatten();
        names.extend(entries.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    }
    names.sort();
    names
}

/// Plugin and network with their modes, once and again; nothing is left beside them.
#[test]
fn installs_and_removes() {
    let folder = tempfile::tempdir().expect("folder");
    for _ in 0..2 {
        run(&options(folder.path(), &["--agent-socket", "/a.sock", "--network", "podman"]), &IDLE)
            .expect("installs");
    }
    assert_eq!(files(folder.path()), ["05-quilla.conflist", "quilla-cni"]);
    let mode =
        |name: &str| fs::metadata(folder.path().join(name)).expect("exists").permissions().mode() & 0o7777;
    assert_eq!((mode("bin/quilla-cni"), mode("net.d/05-quilla.conflist")), (0o755, 0o600));
    let text = fs::read(folder.path().join("net.d/05-quilla.conflist")).expect("reads");
    let list: Value = serde_json::from_slice(&text).expect("parses");
    assert_eq!((&list["name"], &list["plugins"][0]["agentSocket"]), (&json!("podman"), &json!("/a.sock")));
    assert_eq!(list["plugins"][0]["capabilities"]["portMappings"], true);

    run(&options(folder.path(), &["--remove"]), &IDLE).expect("removes");
    run(&options(folder.path(), &["--remove"]), &IDLE).expect("nothing to remove");
    assert!(files(folder.path()).is_empty());
}

/// The old plugin stays whole for whoever runs it.
#[test]
fn a_running_plugin_keeps_its_file() {
    let folder = tempfile::tempdir().expect("folder");
    run(&options(folder.path(), &[]), &IDLE).expect("installs");
    let running = fs::File::open(folder.path().join("bin/quilla-cni")).expect("opens");
    let options = options(folder.path(), &[]);
    fs::write(folder.path().join("plugin"), "another program").expect("write");
    run(&options, &IDLE).expect("installs");
    assert_eq!(std::io::read_to_string(running).expect("reads"), "program");
}

#[test]
fn nothing_before_the_agent_is_ready() {
    let folder = tempfile::tempdir().expect("folder");
    let error = run(&options(folder.path(), &[]), &Known { ready: false, ..IDLE }).expect_err("refused");
    assert!(format!("{error:#}").contains("it just started"), "{error:#}");
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_foreign_network_is_left_alone_unless_told_otherwise() {
    let folder = tempfile::tempdir().expect("folder");
    let network = folder.path().join("net.d/05-quilla.conflist");
    fs::create_dir(folder.path().join("net.d")).expect("folder");
    for theirs in [r#"{"plugins":[{"type":"bridge"}]}"#, "no json"] {
        fs::write(&network, theirs).expect("write");
        let error = run(&options(folder.path(), &[]), &IDLE).expect_err("refused");
        assert!(error.to_string().contains("--force"), "{error}");
        assert_eq!(files(folder.path()), ["05-quilla.conflist"]);
        run(&options(folder.path(), &["--remove"]), &IDLE).expect_err("refused");
        assert_eq!(fs::read_to_string(&network).expect("reads"), theirs);

        run(&options(folder.path(), &["--force"]), &IDLE).expect("installs");
        assert_eq!(files(folder.path()).len(), 3, "theirs is kept aside");
        run(&options(folder.path(), &["--remove"]), &IDLE).expect("removes");
        assert_eq!(fs::read_to_string(&network).expect("reads"), theirs);
    }
}

#[test]
fn a_network_that_comes_first_is_told() {
    let folder = tempfile::tempdir().expect("folder");
    fs::create_dir(folder.path().join("net.d")).expect("folder");
    fs::write(folder.path().join("net.d/00-other.conf"), "{}").expect("write");
    fs::write(folder.path().join("net.d/00-notes.txt"), "").expect("write");
    let said = run(&options(folder.path(), &[]), &IDLE).expect("installs");
    assert!(said.contains("00-other.conf before it"), "{said}");
}

/// Pods that are attached need the plugin for their DEL.
#[test]
fn the_plugin_outlives_its_pods() {
    let folder = tempfile::tempdir().expect("folder");
    run(&options(folder.path(), &[]), &IDLE).expect("installs");
    for (pods, reason) in [(Some(2), "2 Pods"), (None, "nobody knows")] {
        let error = run(&options(folder.path(), &["--remove"]), &Known { pods, ..IDLE }).expect_err("needed");
        assert!(format!("{error:#}").contains(reason), "{error:#}");
        assert_eq!(files(folder.path()), ["quilla-cni"]);
    }
    run(&options(folder.path(), &["--remove", "--force"]), &Known { pods: None, ..IDLE }).expect("removes");
    assert!(files(folder.path()).is_empty());
}
