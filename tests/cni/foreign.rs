//! Chains with the reference plugins, ours first and ours after another main plugin, called by the driver of the harness
//! as a runtime would.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quilla_agent::cni::{AttachedEndpoint, Origin};
use quilla_tests::cni::{Attachment, Network};
use quilla_tests::command::Run;
use quilla_tests::require::{Need, REFERENCE_PLUGINS, skip};
use serde_json::{Value, json};

use crate::agent::{Behaviour, Call};
use crate::node::{Node, Pod, addresses, plugin};

/// Of the versions that the reference plugins of Debian 12 speak, the newest.
const VERSION: &str = "1.0.0";

/// A network of these plugins on the node, and the Pod's attachment to it.
fn network(node: &Node, plugins: &Value) -> Result<Network> {
    let ours = plugin()?.parent().context("folder of the plugin")?.to_owned();
    let list = json!({ "cniVersion": VERSION, "name": "quilla", "plugins": plugins });
    Ok(Network::new(list, vec![ours, REFERENCE_PLUGINS.into()]).on_host(node.host.path()))
}

fn attachment(pod: &Pod, runtime_config: Value) -> Attachment {
    let name = ["default".to_owned(), pod.id.clone(), "uid".to_owned()];
    Attachment { container_id: pod.id.clone(), netns: pod.netns.path().to_owned(), pod: name, runtime_config }
}

/// Our part of a list.
fn ours(node: &Node) -> Value {
    json!({
        "type": "quilla-cni",
        "agentSocket": node.files.path().join("cni.sock"),
        "dataDir": node.records(),
        "agentTimeoutSeconds": 3,
    })
}

/// The endpoint that the data path was told last.
fn last_attached(node: &Node) -> Result<AttachedEndpoint> {
    let last = node.recorder.calls().into_iter().rev().find_map(|call| match call {
        Call::Attach(endpoint) => Some(endpoint),
        _ => None,
    });
    last.context("nothing was attached")
}

/// CNI-13, CNI-24: `portmap`, `bandwidth` and `tuning` work on what we made, CHECK agrees, and after DEL
/// nothing of ours is left.
pub(crate) fn ours_first() -> Result<()> {
    if skip("foreign::ours_first", &[Need::ReferencePlugins]) {
        return Ok(());
    }
    let node = Node::start("ours-first")?;
    let pod = node.pod("pod")?;
    node.host.ip("link add world type veth peer name far\nlink set far up\nlink set world up\naddr add 192.0.2.1/24 dev world")?;
    let before = node.host.command("ip").args(["-o", "link"]).text()?;
    let tuning = json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } });
    let bandwidth = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    // CHECK of Debian 12's `portmap` (1.1.1) looks for the rules of one family in the other, and always fails.
    let checked = network(&node, &json!([ours(&node), bandwidth, tuning]))?;
    let network = network(&node, &json!([ours(&node), portmap, bandwidth, tuning]))?;
    let attachment = attachment(
        &pod,
        json!({
            "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
            "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000 },
        }),
    );
    let result = network.add(&attachment)?;
    checked.check(&attachment, &result)?;

    let host_ifname = result["interfaces"][0]["name"].as_str().context("host interface")?;
    let queues = node.host.command("tc").args(["qdisc", "show", "dev", host_ifname]).text()?;
    ensure!(queues.contains("tbf"), "bandwidth did not find the host side: {queues}");
    let somaxconn = pod.netns.command("cat").arg("/proc/sys/net/core/somaxconn").text()?;
    ensure!(somaxconn.trim() == "500", "tuning did not find the namespace: {somaxconn}");
    let listener = pod.netns.run(|| TcpListener::bind("0.0.0.0:80"))?.context("listen")?;
    let address = "192.0.2.1:8080".parse()?;
    let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(10));
    let mut stream = node.host.run(connect)?.context("connect to the host port of portmap")?;
    listener.accept().context("accept")?;
    stream.write_all(b"x").context("write")?;

    network.del(&attachment, Some(&result))?;
    network.del(&attachment, None)?;
    let after = node.host.command("ip").args(["-o", "link"]).text()?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

/// The state of both namespaces, less the clocks of a bridge and the neighbours that multicast makes by itself.
fn settled(node: &Node, pod: &Pod) -> Result<String> {
    let state = node.state(pod)?;
    let mut words = state.lines().filter(|line| !line.contains("NOARP")).flat_map(str::split_whitespace);
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if word.ends_with("timer") {
            words.next();
        }
    }
    Ok(kept.join(" "))
}

/// CNI-11, CNI-13: after `ptp` and after `bridge`, ours attaches to their interface and answers with their result.
pub(crate) fn ours_after_another() -> Result<()> {
    if skip("foreign::ours_after_another", &[Need::ReferencePlugins]) {
        return Ok(());
    }
    for kind in ["ptp", "bridge"] {
        let node = Node::start("ours-after")?;
        let pod = node.pod(kind)?;
        let ipam = json!({
            "type": "host-local", "dataDir": node.files.path().join("addresses"),
            "ranges": [[{ "subnet": "10.78.0.0/24" }], [{ "subnet": "fd00:78::/64" }]],
        });
        let main = network(&node, &json!([{ "type": kind, "isGateway": true, "ipam": ipam }]))?;
        let attachment = attachment(&pod, json!({}));
        let theirs = main.add(&attachment)?;

        let call = |verb: &str| {
            node.call(verb, &pod).with("cniVersion", VERSION).with("prevResult", theirs.clone()).run()
        };
        // CNI-15: limits on an interface that stays go with a failed ADD. What the kernel keeps of them is the length that a
        // queue would have.
        node.recorder.behave(Behaviour::Refuse);
        let limits = json!({ "bandwidth": { "egressRate": 8_000_000, "ingressRate": 8_000_000 } });
        let add = node.call("ADD", &pod).with("cniVersion", VERSION).with("prevResult", theirs.clone());
        add.with("runtimeConfig", limits).run()?.error(101)?;
        node.recorder.behave(Behaviour::Obey);
        let queues = pod.netns.command("tc").args(["qdisc"]).text()?;
        let rules = pod.netns.command("nft").args(["list", "ruleset"]).text()?;
        ensure!(!queues.contains("tbf") && rules.is_empty(), "{kind}: a failed ADD left {queues}{rules}");

        let state = settled(&node, &pod)?;
        ensure!(call("ADD")?.result()? == theirs, "{kind}: the result was changed");
        call("CHECK")?.silence()?;
        ensure!(call("ADD")?.result()? == theirs, "{kind}: the second answer differs");
        let now = settled(&node, &pod)?;
        ensure!(now == state, "{kind}: something of theirs was changed, before:\n{state}\nnow:\n{now}");

        let endpoint = last_attached(&node)?;
        ensure!(endpoint.origin == Origin::Chained, "{endpoint:?}");
        let told: Vec<String> = endpoint.addresses().map(|address| address.to_string()).collect();
        ensure!(told == addresses(&theirs), "{told:?} is not what {kind} gave: {theirs}");
        let link = node.host.command("ip").args(["-o", "link", "show", &endpoint.host_ifname]).text()?;
        ensure!(link.starts_with(&format!("{}: ", endpoint.host_ifindex)), "{kind}: {link}");

        // Ours goes first, and takes nothing of theirs with it.
        call("DEL")?.silence()?;
        call("DEL")?.silence()?;
        ensure!(settled(&node, &pod)? == state, "{kind}: DEL took something of theirs");
        call("CHECK")?.error(102)?;
        main.del(&attachment, Some(&theirs))?;
    }
    Ok(())
}

/// CNI-13, CNI-20, CNI-22: the whole list through the driver; GC takes what is stale off the agent's books only.
pub(crate) fn a_list_with_ours_last() -> Result<()> {
    if skip("foreign::a_list_with_ours_last", &[Need::ReferencePlugins]) {
        return Ok(());
    }
    let node = Node::start("ours-last")?;
    let pod = node.pod("pod")?;
    let before = node.state(&pod)?;
    let ipam = json!({
        "type": "host-local", "dataDir": node.files.path().join("addresses"),
        "ranges": [[{ "subnet": "10.79.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
    });
    let network = network(&node, &json!([{ "type": "ptp", "ipam": ipam }, ours(&node)]))?;
    let attachment = attachment(&pod, json!({}));
    let result = network.add(&attachment)?;
    network.check(&attachment, &result)?;
    network.del(&attachment, Some(&result))?;
    let after = node.state(&pod)?;
    // ptp leaves forwarding on.
    let lines = |state: &str| state.lines().filter(|line| !line.contains("forwarding")).count();
    ensure!(lines(&after) == lines(&before), "before:\n{before}\nafter:\n{after}");

    let result = network.add(&attachment)?;
    let gc = node.call("GC", &pod).with("cni.dev/valid-attachments", json!([]));
    gc.run()?.silence()?;
    pod.netns.ip("link show eth0").context("GC took the other plugin's interface")?;
    ensure!(network.check(&attachment, &result).is_err(), "the agent still knows the attachment");
    network.del(&attachment, Some(&result))
}

/// CNI-13: an interface that cannot be the Pod's is refused, and nothing is on the agent's books.
pub(crate) fn an_unusable_result_is_refused() -> Result<()> {
    let node = Node::start("unusable")?;
    let pod = node.pod("pod")?;
    node.host.ip(&format!("link add theirs type veth peer name eth0 netns {}", pod.netns.name()))?;
    node.host.ip("link add other type veth peer name far")?;
    let result = |host: &str, ips: Value| {
        json!({
            "cniVersion": "1.1.0", "ips": ips,
            "interfaces": [{ "name": host }, { "name": "eth0", "sandbox": pod.netns.path() }],
        })
    };
    let one = json!([{ "address": "192.0.2.2/24", "interface": 1 }]);
    let two = json!([{ "address": "192.0.2.2/24", "interface": 1 }, { "address": "192.0.2.3/24" }]);
    for (host, ips, complaint) in [
        ("other", one.clone(), "its other side"),
        ("gone", one.clone(), "its other side"),
        ("theirs", json!([]), "one address"),
        ("theirs", json!([{ "address": "192.0.2.2/24", "interface": 0 }]), "one address"),
        ("theirs", two, "one address"),
    ] {
        let error = node.call("ADD", &pod).with("prevResult", result(host, ips)).run()?.error(7)?;
        ensure!(error["details"].to_string().contains(complaint), "{host}: {error}");
    }
    ensure!(node.recorder.calls().is_empty(), "the data path was asked: {:?}", node.recorder.calls());
    // The same interface with an address that is ours to judge.
    let good = result("theirs", one);
    ensure!(node.call("ADD", &pod).with("prevResult", good.clone()).run()?.result()? == good, "changed");
    // A second Pod with the address of the first.
    let other = node.pod("other")?;
    node.host.ip(&format!("link add more type veth peer name eth0 netns {}", other.netns.name()))?;
    let mut stolen = good;
    stolen["interfaces"][0]["name"] = json!("more");
    stolen["interfaces"][1]["sandbox"] = json!(other.netns.path());
    let error = node.call("ADD", &other).with("prevResult", stolen).run()?.error(101)?;
    ensure!(error["details"].to_string().contains(&pod.id), "the holder is not named: {error}");
    Ok(())
}
