//! CNI-33: what a runtime may ask for beyond an interface, by `runtimeConfig`, `args` and `CNI_ARGS`.

use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use quilla_agent::cni::AttachedEndpoint;
use quilla_tests::command::Run;
use quilla_tests::eventually;
use quilla_tests::netns::Netns;
use serde_json::{Value, json};

use crate::agent::Behaviour;
use crate::node::{Answer, Node, Pod, addresses};

fn add(node: &Node, pod: &Pod, runtime_config: Value) -> Result<Answer> {
    node.call("ADD", pod).with("runtimeConfig", runtime_config).run()
}

fn mapping(host_port: u16, protocol: &str, host_ip: &str) -> Value {
    json!({ "portMappings": [
        { "hostPort": host_port, "containerPort": 80, "protocol": protocol, "hostIP": host_ip },
    ] })
}

/// The host ports of the endpoints on the journal, as the agent's next start reads them.
fn journaled(node: &mut Node) -> Result<Vec<String>> {
    node.kill_agent();
    node.start_agent()?;
    let known = &node.agent.as_ref().context("agent")?.known_at_start;
    let ports = |endpoint: &AttachedEndpoint| endpoint.host_ports.iter().map(ToString::to_string).collect();
    Ok(known.iter().flat_map(|endpoint| -> Vec<String> { ports(endpoint) }).collect())
}

/// Host ports reach the data path and the journal; two Pods never hold the same, and the refusal names the holder.
pub(crate) fn host_ports() -> Result<()> {
    let mut node = Node::start("host-ports")?;
    let (holder, other) = (node.pod("holder")?, node.pod("other")?);
    add(&node, &holder, mapping(8080, "tcp", ""))?.result()?;
    ensure!(journaled(&mut node)? == ["*:8080/tcp"], "not on the journal");

    for same in [mapping(8080, "TCP", ""), mapping(8080, "", "192.0.2.1"), mapping(8080, "tcp", "::")] {
        let error = add(&node, &other, same)?.error(101)?;
        let details = error["details"].to_string();
        ensure!(
            details.contains(&holder.id) && details.contains("8080/tcp"),
            "the holder is not named: {error}"
        );
    }
    let links = node.host.ip("link show type veth")?;
    ensure!(
        links.lines().filter(|line| line.contains("quil")).count() == 1,
        "a refused Pod has one: {links}"
    );
    add(&node, &other, mapping(8080, "udp", ""))?.result()?;
    let mut held = journaled(&mut node)?;
    held.sort();
    ensure!(held == ["*:8080/tcp", "*:8080/udp"], "{held:?}");

    // The same port of two addresses is two ports.
    let (one, two) = (node.pod("one")?, node.pod("two")?);
    add(&node, &one, mapping(9090, "tcp", "192.0.2.1"))?.result()?;
    add(&node, &two, mapping(9090, "tcp", "192.0.2.2"))?.result()?;
    let everywhere = node.pod("everywhere")?;
    add(&node, &everywhere, mapping(9090, "tcp", ""))?.error(101)?;
    Ok(())
}

/// CNI-20, CNI-26: a host port is free again after DEL, GC and a failed ADD, and held through a second one.
pub(crate) fn host_ports_are_given_back() -> Result<()> {
    let mut node = Node::start("ports-back")?;
    let (first, second) = (node.pod("first")?, node.pod("second")?);
    let ports = || mapping(8080, "tcp", "");
    let answer = add(&node, &first, ports())?.result()?;
    ensure!(add(&node, &first, ports())?.result()? == answer, "CNI-12: the second answer differs");
    node.del(&first)?;
    add(&node, &second, ports())?.result()?;
    node.call("GC", &first).with("cni.dev/valid-attachments", json!([])).run()?.silence()?;
    add(&node, &first, ports())?.result()?;
    node.del(&first)?;

    node.recorder.behave(Behaviour::Refuse);
    add(&node, &first, ports())?.error(101)?;
    node.recorder.behave(Behaviour::Obey);
    add(&node, &second, ports())?.result()?;
    // DEL without an agent: the port goes when the record is carried out, which an ADD of the same Pod waits for.
    node.kill_agent();
    node.del(&second)?;
    node.start_agent()?;
    add(&node, &second, ports())?.result()?;
    ensure!(journaled(&mut node)?.len() == 1, "leaked or lost");
    Ok(())
}

/// A wished address and Ethernet address are what the Pod gets; one that is held is refused.
pub(crate) fn addresses_and_mac() -> Result<()> {
    let node = Node::start("wishes")?;
    let (pod, other) = (node.pod("pod")?, node.pod("other")?);
    let wish = json!({ "ips": ["10.1.7.77/24", "fd00:1:7::77"], "mac": "02:00:00:00:00:77" });
    let result = add(&node, &pod, wish.clone())?.result()?;
    ensure!(addresses(&result) == ["10.1.7.77", "fd00:1:7::77"], "{result}");
    ensure!(result["interfaces"][1]["mac"] == "02:00:00:00:00:77", "{result}");
    let link = pod.netns.ip("link show eth0")?;
    ensure!(link.contains("02:00:00:00:00:77"), "{link}");
    ensure!(!add(&node, &other, wish)?.success, "an address was given twice");
    ensure!(!add(&node, &other, json!({ "ips": ["192.0.2.1"] }))?.success, "an address of no pool was given");

    // By `args` and by `CNI_ARGS`; the family that is not named gets any address.
    let call = node.call("ADD", &other).with("args", json!({ "cni": { "ips": ["10.1.7.78"] } }));
    let result = call.run()?.result()?;
    ensure!(addresses(&result)[0] == "10.1.7.78" && addresses(&result).len() == 2, "{result}");
    node.del(&other)?;
    let call = node.call("ADD", &other).with_env("CNI_ARGS", Some("IP=fd00:1:7::79;MAC=02:00:00:00:00:79"));
    let result = call.run()?.result()?;
    ensure!(addresses(&result)[1] == "fd00:1:7::79", "{result}");
    ensure!(result["interfaces"][1]["mac"] == "02:00:00:00:00:79", "{result}");
    Ok(())
}

/// Name resolution is in the result; malformed wishes are refused, and do not keep a DEL from its work (CNI-21).
pub(crate) fn names_and_nonsense() -> Result<()> {
    let node = Node::start("names")?;
    let pod = node.pod("pod")?;
    let dns = json!({ "servers": ["10.96.0.10"], "searches": ["cluster.local"], "options": ["ndots:5"] });
    let names = json!({ "dns": dns, "aliases": { "quilla": ["web"] } });
    let result = add(&node, &pod, names)?.result()?;
    let want = json!({ "nameservers": ["10.96.0.10"], "search": ["cluster.local"], "options": ["ndots:5"] });
    ensure!(result["dns"] == want, "{result}");

    node.call("DEL", &pod).with("runtimeConfig", 7).run()?.silence()?;

    let other = node.pod("other")?;
    let before = node.state(&other)?;
    for nonsense in
        [json!(7), mapping(0, "tcp", ""), mapping(1, "icmp", ""), json!({ "mac": "01:00:00:00:00:00" })]
    {
        add(&node, &other, nonsense.clone())?.error(7)?;
        node.call("DEL", &other).with("runtimeConfig", nonsense).run()?.silence()?;
    }
    let after = node.state(&other)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

/// Datagrams of 1,000 bytes, sent all at once; few enough for a socket's buffer.
const DATAGRAMS: usize = 60;

/// What is too fast in a direction waits or is dropped there, and nothing of the limits outlives a failed ADD.
pub(crate) fn bandwidth() -> Result<()> {
    let node = Node::start("bandwidth")?;
    let (pod, free) = (node.pod("pod")?, node.pod("free")?);
    node.host.ip("addr add 192.0.2.1/32 dev lo")?;
    // 8 kB and then 8 kB per second: of 60 kB at once, most is too much.
    let slow = json!({ "bandwidth": {
        "ingressRate": 64_000, "ingressBurst": 64_000, "egressRate": 64_000, "egressBurst": 64_000,
    } });
    node.recorder.behave(Behaviour::Refuse);
    add(&node, &pod, slow.clone())?.error(101)?;
    let rules = pod.netns.command("nft").args(["list", "ruleset"]).text()?;
    ensure!(rules.is_empty(), "a failed ADD left {rules}");
    node.recorder.behave(Behaviour::Obey);

    let limited = add(&node, &pod, slow)?.result()?;
    let unlimited = node.add(&free)?;
    for (pod, result, fast) in [(&pod, &limited, false), (&free, &unlimited, true)] {
        let address = &addresses(result)[0];
        let into = arrived(&node.host, &pod.netns, address, fast)?;
        let out = arrived(&pod.netns, &node.host, "192.0.2.1", fast)?;
        let enough = |count: usize| (count > DATAGRAMS / 2) == fast;
        ensure!(enough(into) && enough(out), "{address}: {into} in and {out} out of {DATAGRAMS}");
    }
    Ok(())
}

/// CNI-22, CNI-23, CNI-33: CHECK misses each limit that is not there any more, by its name, and is content with both.
pub(crate) fn check_misses_limits() -> Result<()> {
    let node = Node::start("limits")?;
    let check = |pod: &Pod, result: &Value| node.call("CHECK", pod).with("prevResult", result.clone()).run();
    let limits = |bandwidth: Value| json!({ "bandwidth": bandwidth });
    let both = json!({ "ingressRate": 8_000_000, "egressRate": 40_000_000_000_u64 });
    let damages = [
        ("tc qdisc del dev eth0 root", "egress: the tbf queue of eth0 is missing"),
        (
            "tc qdisc replace dev eth0 root tbf rate 1mbit burst 10kb latency 10ms",
            "egress: the tbf queue of eth0 lets 1000000 bits per second pass",
        ),
        ("tc qdisc replace dev eth0 root pfifo", "egress: the tbf queue of eth0 is missing"),
        ("nft delete table netdev quilla-eth0", "ingress: the nftables rule of eth0 is missing"),
        ("nft flush chain netdev quilla-eth0 received", "ingress: the nftables rule of eth0 is missing"),
    ];
    for (damage, complaint) in damages {
        let pod = node.pod("pod")?;
        let result = add(&node, &pod, limits(both.clone()))?.result()?;
        check(&pod, &result)?.silence()?;
        ensure!(
            add(&node, &pod, limits(both.clone()))?.result()? == result,
            "CNI-12: the second answer differs"
        );
        let mut words = damage.split(' ');
        pod.netns.command(words.next().context("program")?).args(words).text()?;
        let error = check(&pod, &result)?.error(102)?;
        let details = error["details"].as_str().unwrap_or_default();
        ensure!(details == format!("bandwidth, {complaint}"), "{damage}: {details}");
        node.del(&pod)?;
    }
    // Limits in one direction, and none.
    for bandwidth in [json!({ "ingressRate": 8_000_000 }), json!({ "egressRate": 8_000_000 }), json!({})] {
        let pod = node.pod("pod")?;
        let result = add(&node, &pod, limits(bandwidth))?.result()?;
        check(&pod, &result)?.silence()?;
        node.del(&pod)?;
    }
    Ok(())
}

/// How many datagrams reach the address in the other namespace: some at least, most if the way is to be fast.
fn arrived(from: &Netns, to: &Netns, address: &str, fast: bool) -> Result<usize> {
    let server = to.run(|| UdpSocket::bind((address, 0)))?.context("bind")?;
    let address = server.local_addr().context("look up the port")?;
    server.set_nonblocking(true).context("set non-blocking")?;
    let client = from.run(|| UdpSocket::bind("0.0.0.0:0"))?.context("bind the client")?;
    let mut buffer = [0; 1500];
    // A link may need a moment until it carries anything.
    eventually::succeeds("the first datagram arrives", || {
        client.send_to(b"x", address).context("send")?;
        server.recv(&mut buffer).context("receive")
    })?;
    for _ in 0..DATAGRAMS {
        // A full queue is said to the sender, too.
        drop(client.send_to(&[0; 1000], address));
    }
    let mut count = 0;
    let receive = || {
        count += std::iter::from_fn(|| server.recv(&mut buffer).ok()).filter(|bytes| *bytes > 1).count();
        Ok(count)
    };
    eventually::becomes("datagrams arrive", receive, |count| *count > if fast { DATAGRAMS / 2 } else { 0 })
}
