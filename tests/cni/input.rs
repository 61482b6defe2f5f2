//! What a runtime may get wrong: each mistake has its code, and names what is wrong.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::node::Node;

/// CNI-3, CNI-4, CNI-5, CNI-7: code 4, and the variable is named.
pub(crate) fn environment() -> Result<()> {
    let node = Node::start("environment")?;
    let pod = node.pod("pod")?;
    let before = node.state(&pod)?;
    let cases = [
        ("CNI_COMMAND", vec![None, Some(""), Some("add"), Some("REMOVE")]),
        ("CNI_CONTAINERID", vec![None, Some(""), Some("-a"), Some("a/b"), Some("a b")]),
        ("CNI_NETNS", vec![None, Some("")]),
        (
            "CNI_IFNAME",
            vec![None, Some(""), Some("."), Some(".."), Some("a/b"), Some("sixteen--letters"), Some("a:b")],
        ),
        ("CNI_ARGS", vec![Some("X=y"), Some("nonsense"), Some("IgnoreUnknown=1;K8S_POD_NAMESPACE=a")]),
    ];
    for (name, values) in cases {
        for value in values {
            let error = node.call("ADD", &pod).with_env(name, value).run()?.error(4)?;
            ensure!(error["details"].to_string().contains(name), "{name} = {value:?}: {error}");
        }
    }
    // DEL and CHECK ask for what they need.
    node.call("DEL", &pod).with_env("CNI_IFNAME", None).run()?.error(4)?;
    node.call("CHECK", &pod).with_env("CNI_NETNS", None).run()?.error(4)?;
    ensure!(node.state(&pod)? == before, "a refused call changed something");
    ensure!(node.recorder.calls().is_empty(), "a refused call reached the data path");
    Ok(())
}

/// CNI-2, CNI-3, CNI-8: code 6 for what is not a configuration, code 7 for a wrong one.
pub(crate) fn standard_input() -> Result<()> {
    let node = Node::start("stdin")?;
    let pod = node.pod("pod")?;
    let call = node.call("ADD", &pod);
    let inputs: [&[u8]; 6] = [b"", b"not json", b"{", b"[]", b"\xff\xfe", b"{\"cniVersion\": 7}"];
    for input in inputs {
        call.run_with_input(input)?.error(6).with_context(|| format!("{input:?}"))?;
    }
    for (key, value) in [
        ("name", json!("")),
        ("name", json!("-x")),
        ("mtu", json!(1)),
        ("mtu", json!(70_000)),
        ("agentSocket", json!("relative")),
        ("agentTimeoutSeconds", json!(0)),
    ] {
        let error = call.clone().with(key, value.clone()).run()?.error(7)?;
        ensure!(error["details"].to_string().contains(key), "{key} = {value}: {error}");
    }
    call.clone().with("mtu", "large").run()?.error(6)?;
    call.clone().with("prevResult", json!({ "ips": 7 })).run()?.error(6)?;

    // CNI-6: what runtimes and users add is accepted.
    let extra = json!({ "unheardOf": [{ "hostPort": 1 }], "aliases": { "quilla": ["name"] } });
    call.with("runtimeConfig", extra).with("args", json!({ "cni": {} })).with("future", 1).run()?.result()?;
    Ok(())
}

/// CNI-9: code 1 for versions we do not speak, in an answer that repeats the version asked for.
pub(crate) fn versions() -> Result<()> {
    let node = Node::start("bad-versions")?;
    let pod = node.pod("pod")?;
    for version in ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "", "x"] {
        for command in ["ADD", "DEL", "CHECK"] {
            let error = node.call(command, &pod).with("cniVersion", version).run()?;
            let error: Value = serde_json::from_str(&error.stdout).context("error object")?;
            ensure!(error["code"] == 1 && error["cniVersion"] == version, "{version}: {error}");
        }
    }
    Ok(())
}

/// CNI-29: VERSION needs nothing but its name.
pub(crate) fn version_verb() -> Result<()> {
    let node = Node::without_agent("version")?;
    let pod = node.pod("pod")?;
    let mut call = node.call("VERSION", &pod);
    call.env = vec![("CNI_COMMAND", "VERSION".into())];
    for version in ["0.3.1", "1.1.0", "9.9.9"] {
        let answer =
            call.run_with_input(json!({ "cniVersion": version }).to_string().as_bytes())?.result()?;
        ensure!(answer["cniVersion"] == version, "{answer}");
        ensure!(answer["supportedVersions"] == json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]), "{answer}");
    }
    call.run_with_input(b"nonsense")?.error(6)?;
    Ok(())
}

/// CNI-3: code 8 for a namespace that cannot be the Pod's.
pub(crate) fn namespaces() -> Result<()> {
    let node = Node::start("bad-netns")?;
    let pod = node.pod("pod")?;
    let host = node.host.path().display().to_string();
    for path in ["/no/such/file", "/etc/hostname", "/proc/self/ns/mnt", "/", &host] {
        let error = node.call("ADD", &pod).with_env("CNI_NETNS", Some(path)).run()?.error(8)?;
        ensure!(error["details"].to_string().contains(path), "{path}: {error}");
    }
    ensure!(node.recorder.calls().is_empty(), "a refused call reached the data path");
    Ok(())
}

/// CNI-1: failures also go to the log file, if one is named; one that cannot be written changes nothing.
pub(crate) fn log_file() -> Result<()> {
    let node = Node::start("log")?;
    let pod = node.pod("pod")?;
    let path = node.files.path().join("cni.log");
    let call = node.call("ADD", &pod).with_env("CNI_NETNS", Some("/no/such/file"));
    call.clone().with("logFile", path.to_string_lossy().into_owned()).run()?.error(8)?;
    let log = fs::read_to_string(&path).context("read the log")?;
    ensure!(log.contains(&pod.id) && log.contains("/no/such/file"), "{log}");
    call.with("logFile", "/no/such/folder/log").run()?.error(8)?;
    Ok(())
}
