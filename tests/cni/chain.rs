//! Plugin chains: an ADD after another plugin, and CHECK.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::agent::Behaviour;
use crate::node::Node;

/// CNI-13: the result of an earlier plugin comes first, indices of ours move behind it.
pub(crate) fn add_keeps_what_came_before() -> Result<()> {
    let node = Node::start("chain")?;
    let pod = node.pod("pod")?;
    let earlier = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "other0", "mac": "02:00:00:00:00:01", "sandbox": "/somewhere" }],
        "ips": [{ "address": "192.0.2.2/24", "interface": 0 }],
        "dns": { "nameservers": ["192.0.2.53"] },
    });
    let result = node.call("ADD", &pod).with("prevResult", earlier.clone()).run()?.result()?;
    ensure!(
        result["interfaces"][0] == earlier["interfaces"][0] && result["dns"] == earlier["dns"],
        "{result}"
    );
    ensure!(result["ips"][0] == earlier["ips"][0], "{result}");
    ensure!(result["ips"][1]["interface"] == 2 && result["interfaces"][2]["name"] == "eth0", "{result}");
    Ok(())
}

/// CNI-22, CNI-24: right after ADD, in every version that has CHECK; additions by others are accepted.
pub(crate) fn check_accepts_the_result() -> Result<()> {
    let node = Node::start("check")?;
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let pod = node.pod("pod")?;
        let result = node.call("ADD", &pod).with("cniVersion", version).run()?.result()?;
        let check = node.call("CHECK", &pod).with("cniVersion", version).with("prevResult", result.clone());
        check.run()?.silence()?;

        pod.netns.ip("addr add 192.0.2.9/24 dev eth0\nlink set eth0 mtu 1400\n")?;
        check.run()?.silence()?;

        node.call("DEL", &pod).with("cniVersion", version).run()?.silence()?;
    }
    Ok(())
}

/// CNI-23: a later plugin of the chain that changes the hardware address, and says so, has cut the Pod off all the same.
pub(crate) fn check_finds_a_pod_that_is_cut_off() -> Result<()> {
    let node = Node::start("check-mac")?;
    let pod = node.pod("pod")?;
    let mut result = node.add(&pod)?;
    pod.netns.ip("link set eth0 address 02:00:00:00:00:99")?;
    let said = |result: &serde_json::Value| -> Result<String> {
        let check = node.call("CHECK", &pod).with("prevResult", result.clone()).run()?;
        Ok(check.error(102)?["details"].to_string())
    };
    ensure!(said(&result)?.contains("has mac 02:00:00:00:00:99, not"), "{}", said(&result)?);
    result["interfaces"][1]["mac"] = json!("02:00:00:00:00:99");
    let details = said(&result)?;
    ensure!(details.contains("the data path was told") && !details.contains(", not"), "{details}");
    Ok(())
}

/// CNI-22, CNI-23: everything ADD made, and the agent's part, is looked at.
pub(crate) fn check_finds_each_difference() -> Result<()> {
    let node = Node::start("check-bad")?;
    let host =
        |name: &str, command: &str| -> Result<()> { node.host.ip(&command.replace("HOST", name)).map(drop) };
    let damages = [
        ("pod", "link set eth0 down", "down"),
        ("pod", "addr del 10.1.7.0/32 dev eth0", "address"),
        ("pod", "route del default via fd00:1:7::1", "default route"),
        ("pod", "link del eth0", "interface eth0 is missing"),
        ("pod", "neigh del fd00:1:7::1 dev eth0", "pinned neighbour fd00:1:7::1"),
        ("pod", "neigh replace 10.1.7.1 lladdr 02:00:00:00:00:66 dev eth0", "pinned neighbour 10.1.7.1"),
        ("host", "neigh del 10.1.7.0 dev HOST", "of the host is missing"),
        ("host", "link set HOST down", "host interface"),
        ("host", "route del 10.1.7.0/32", "host route"),
        ("host", "link set HOST address 02:00:00:00:00:77", "another mac"),
    ];
    for (side, damage, complaint) in damages {
        let pod = node.pod("pod")?;
        let result = node.add(&pod)?;
        let address = result["ips"][0]["address"].as_str().unwrap_or_default();
        let bare = address.trim_end_matches("/32");
        let damage = damage.replace("10.1.7.0/32", address).replace("10.1.7.0", bare);
        match side {
            "pod" => drop(pod.netns.ip(&damage)?),
            _ => host(result["interfaces"][0]["name"].as_str().unwrap_or_default(), &damage)?,
        }
        let error = node.call("CHECK", &pod).with("prevResult", result).run()?.error(102)?;
        ensure!(error["details"].to_string().contains(complaint), "{damage}: {error}");
        node.del(&pod)?;
    }

    let pod = node.pod("pod")?;
    let result = node.add(&pod)?;
    let check = node.call("CHECK", &pod).with("prevResult", result);
    node.recorder.behave(Behaviour::Refuse);
    check.run()?.error(102)?;
    node.recorder.behave(Behaviour::NotReady);
    check.run()?.error(11)?;
    node.recorder.behave(Behaviour::Obey);
    check.run()?.silence()?;
    node.del(&pod)?;
    check.run()?.error(102)?;
    Ok(())
}

/// CNI-9, CNI-22: CHECK came with 0.4.0, and compares with something.
pub(crate) fn check_needs_a_version_and_a_result() -> Result<()> {
    let mut node = Node::start("check-input")?;
    let pod = node.pod("pod")?;
    let result = node.add(&pod)?;
    let check = node.call("CHECK", &pod);
    check.run()?.error(7)?;
    check.clone().with("prevResult", "nonsense").run()?.error(6)?;
    check.clone().with("prevResult", result.clone()).with("cniVersion", "0.3.1").run()?.error(1)?;
    // CNI-23: no agent, no guarantee.
    node.kill_agent();
    check.with("prevResult", result).run()?.error(11)?;
    Ok(())
}
