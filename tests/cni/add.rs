//! ADD: what it makes, what it answers, and when.

use std::collections::HashSet;
use std::thread;

use anyhow::{Result, ensure};
use quilla_agent::cni::Pools;
use quilla_tests::command::Run;
use serde_json::{Value, json};

use crate::agent::{Agent, Behaviour, Call, pools};
use crate::node::{Node, addresses};

/// CNI-10, CNI-14: the result in each version.
pub(crate) fn every_version() -> Result<()> {
    let node = Node::start("versions")?;
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = node.pod("pod")?;
        let result = node.call("ADD", &pod).with("cniVersion", version).run()?.result()?;
        ensure!(result["cniVersion"] == version, "{result}");
        let interfaces = &result["interfaces"];
        ensure!(interfaces[0].get("sandbox").is_none() && interfaces[1]["name"] == "eth0", "{result}");
        ensure!(interfaces[1]["sandbox"] == json!(pod.netns.path()), "{result}");
        ensure!(interfaces[1].get("mtu").is_some() == (version == "1.1.0"), "{result}");
        let old = version.starts_with('0');
        for (index, family) in ["4", "6"].into_iter().enumerate() {
            let ip = &result["ips"][index];
            ensure!(ip["interface"] == 1 && ip["gateway"].is_string(), "{result}");
            ensure!(ip.get("version") == old.then(|| json!(family)).as_ref(), "{result}");
        }
        node.call("DEL", &pod).with("cniVersion", version).run()?.silence()?;
    }
    Ok(())
}

/// CNI-15, CNI-20: after ADD and DEL both namespaces are as before, settings included.
pub(crate) fn nothing_remains_after_del() -> Result<()> {
    let node = Node::start("identical")?;
    let pod = node.pod("pod")?;
    let before = node.state(&pod)?;
    node.add(&pod)?;
    ensure!(node.state(&pod)? != before, "ADD did nothing");
    node.del(&pod)?;
    let after = node.state(&pod)?;
    ensure!(after == before, "before:\n{before}\nafter:\n{after}");
    ensure!(node.record_count()? == 0, "a record although the agent was there");
    Ok(())
}

/// CNI-11, CNI-14: the Pod's side is as the result says, and usable at once.
pub(crate) fn what_the_pod_gets() -> Result<()> {
    let node = Node::start("pod-side")?;
    let pod = node.pod("pod")?;
    let result = node.add(&pod)?;
    let ip = |arguments: &str| -> Result<Value> {
        let text = pod.netns.command("ip").arg("-j").args(arguments.split(' ')).text()?;
        Ok(serde_json::from_str(&text)?)
    };
    let link = &ip("addr show dev eth0")?[0];
    ensure!(link["mtu"] == 1450 && link["address"] == result["interfaces"][1]["mac"], "{link}");
    ensure!(link["operstate"] == "UP", "{link}");
    let infos = link["addr_info"].as_array().cloned().unwrap_or_default();
    let global: Vec<_> = infos.iter().filter(|info| info["scope"] == "global").collect();
    ensure!(global.len() == 2, "one address per family: {link}");
    ensure!(global.iter().all(|info| info.get("tentative").is_none()), "an address is tentative: {link}");
    ensure!(global[0]["prefixlen"] == 32 && global[1]["prefixlen"] == 128, "{link}");
    for (family, gateway) in [("-4", "10.1.7.1"), ("-6", "fd00:1:7::1")] {
        let routes = ip(&format!("{family} route show default"))?;
        ensure!(routes[0]["gateway"] == gateway && routes[0]["dev"] == "eth0", "{routes}");
        let neighbours = ip(&format!("{family} neigh show {gateway} dev eth0"))?;
        ensure!(neighbours[0]["lladdr"] == result["interfaces"][0]["mac"], "{neighbours}");
        ensure!(neighbours[0]["state"] == json!(["PERMANENT"]), "{neighbours}");
    }
    let loopback = ip("link show lo")?;
    ensure!(loopback[0]["flags"].to_string().contains("\"UP\""), "{loopback}");
    Ok(())
}

/// The host's side: name, settings, routes and neighbours.
pub(crate) fn what_the_host_gets() -> Result<()> {
    let node = Node::start("host-side")?;
    // As distributions have it.
    node.host.sysctl("net.ipv4.conf.default.rp_filter", "1")?;
    node.host.sysctl("net.ipv4.conf.default.proxy_arp", "1")?;
    let pod = node.pod("pod")?;
    let result = node.add(&pod)?;
    let name = result["interfaces"][0]["name"].as_str().unwrap_or_default().to_owned();
    ensure!(name.starts_with("quil") && name.len() == 15, "{name}");
    for (setting, value) in [
        ("ipv4", "rp_filter", "0"),
        ("ipv4", "proxy_arp", "0"),
        ("ipv4", "forwarding", "1"),
        ("ipv6", "accept_ra", "0"),
    ]
    .map(|(family, key, value)| (format!("/proc/sys/net/{family}/conf/{name}/{key}"), value))
    {
        let text = node.host.command("cat").arg(&setting).text()?;
        ensure!(text.trim() == value, "{setting} is {text}");
    }
    let own = node.host.command("ip").args(["-o", "addr", "show", "dev", &name]).text()?;
    ensure!(own.is_empty(), "the host side has an address: {own}");
    for address in addresses(&result) {
        let route = node.host.command("ip").args(["route", "get", &address]).text()?;
        ensure!(route.contains(&format!("dev {name}")), "{route}");
        let neighbour = node.host.command("ip").args(["neigh", "show", &address, "dev", &name]).text()?;
        let mac = result["interfaces"][1]["mac"].as_str().unwrap_or("no mac");
        ensure!(neighbour.contains(mac) && neighbour.contains("PERMANENT"), "{neighbour}");
    }
    Ok(())
}

/// CNI-12, CNI-16: a repeated ADD answers the same, and no second address is taken.
pub(crate) fn twice_is_one_address() -> Result<()> {
    let node = Node::start("twice")?;
    let (pod, other) = (node.pod("pod")?, node.pod("other")?);
    let first = node.add(&pod)?;
    let second = node.add(&pod)?;
    ensure!(first == second, "first {first}, second {second}");
    ensure!(addresses(&first) == ["10.1.7.2", "fd00:1:7::2"], "{first}");
    let configured = node.call("ADD", &pod).with("mtu", 1300).run()?.result()?;
    ensure!(configured == first, "what is configured by now, not what is: {configured}");
    ensure!(addresses(&node.add(&other)?) == ["10.1.7.3", "fd00:1:7::3"], "an address was lost");

    // Once reality is damaged the identical result would be a lie. First what the agent sees, then what the plugin does.
    node.recorder.behave(Behaviour::Refuse);
    node.call("ADD", &pod).run()?.error(102)?;
    node.recorder.behave(Behaviour::Obey);
    ensure!(node.add(&pod)? == first, "nothing was undone");
    pod.netns.ip("link set eth0 down")?;
    node.call("ADD", &pod).run()?.error(102)?;
    Ok(())
}

/// CNI-16: the data path has the endpoint, with true facts, before the runtime has the result.
pub(crate) fn the_agent_is_asked_before_the_answer() -> Result<()> {
    let node = Node::start("attach")?;
    let pod = node.pod("pod")?;
    let result = node.add(&pod)?;
    let calls = node.recorder.calls();
    let [Call::Attach(endpoint)] = calls.as_slice() else { anyhow::bail!("{calls:?}") };
    ensure!(endpoint.container_id == pod.id && endpoint.ifname == "eth0", "{endpoint:?}");
    ensure!((endpoint.pod_namespace.as_str(), &endpoint.pod_name) == ("default", &pod.id), "{endpoint:?}");
    let link = node.host.command("ip").args(["-j", "link", "show", &endpoint.host_ifname]).text()?;
    let link: Value = serde_json::from_str(&link)?;
    ensure!(link[0]["ifindex"] == endpoint.host_ifindex, "{link}, {endpoint:?}");
    let addresses = [endpoint.ipv4.map(|ip| ip.to_string()), endpoint.ipv6.map(|ip| ip.to_string())];
    ensure!(
        crate::node::addresses(&result) == addresses.into_iter().flatten().collect::<Vec<_>>(),
        "{result}"
    );

    let other = node.pod("other")?;
    node.add(&other)?;
    let calls = node.recorder.calls();
    let Some(Call::Attach(second)) = calls.last() else { anyhow::bail!("{calls:?}") };
    ensure!(endpoint.netns_cookie != second.netns_cookie, "two namespaces, one cookie: {calls:?}");
    Ok(())
}

/// A cluster of one family.
pub(crate) fn one_family_only() -> Result<()> {
    let cases =
        [(Pools { ipv6: vec![], ..pools() }, "10.1.7.2"), (Pools { ipv4: vec![], ..pools() }, "fd00:1:7::2")];
    for (pools, expected) in cases {
        let mut node = Node::without_agent("one-family")?;
        node.agent = Some(Agent::start(node.files.path(), Some(pools), node.recorder.clone())?);
        let pod = node.pod("pod")?;
        let before = node.state(&pod)?;
        let result = node.add(&pod)?;
        ensure!(addresses(&result) == [expected], "{result}");
        ensure!(result["routes"].as_array().map(Vec::len) == Some(1), "{result}");
        node.del(&pod)?;
        ensure!(node.state(&pod)? == before, "something remains");
    }
    Ok(())
}

/// Host and runtime may create interfaces with IPv6 off; a Pod with an IPv6 address needs it on.
pub(crate) fn ipv6_off_by_default() -> Result<()> {
    let node = Node::start("ipv6-off")?;
    let pod = node.pod("pod")?;
    node.host.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
    pod.netns.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
    let before = node.state(&pod)?;
    let result = node.add(&pod)?;
    node.call("CHECK", &pod).with("prevResult", result).run()?.silence()?;
    node.del(&pod)?;
    ensure!(node.state(&pod)? == before, "something remains");
    Ok(())
}

/// CNI-30: many ADDs at once give as many addresses.
pub(crate) fn in_parallel() -> Result<()> {
    const PODS: usize = 24;
    let node = Node::start("parallel")?;
    let pods = (0..PODS).map(|index| node.pod(&index.to_string())).collect::<Result<Vec<_>>>()?;
    let results: Vec<Result<Value>> = thread::scope(|scope| {
        let adds: Vec<_> = pods.iter().map(|pod| scope.spawn(|| node.add(pod))).collect();
        adds.into_iter().map(|add| add.join().expect("does not panic")).collect()
    });
    let mut given = HashSet::new();
    for result in results {
        given.extend(addresses(&result?));
    }
    ensure!(given.len() == 2 * PODS, "{} addresses for {PODS} pods", given.len());
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let dels: Vec<_> = pods.iter().map(|pod| scope.spawn(|| node.del(pod))).collect();
        dels.into_iter().map(|del| del.join().expect("does not panic")).collect()
    });
    outcomes.into_iter().collect()
}
