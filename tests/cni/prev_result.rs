//! `prevResult` in every wrong shape: refused by ADD and CHECK with its code, and no matter to a DEL.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::node::{Call, Node, Pod};

/// What is wrong, how a good result becomes so, and the codes of ADD and CHECK; 0 is success.
struct Case {
    pointer: &'static str,
    value: Value,
    add: u64,
    check: u64,
}

const fn case(pointer: &'static str, value: Value, add: u64, check: u64) -> Case {
    Case { pointer, value, add, check }
}

/// The pointers fit both results of this file: the host's interface, the Pod's, and its first address.
fn cases(elsewhere: &str) -> Vec<Case> {
    let mut cases = vec![
        case("/cniVersion", json!(7), 6, 6),
        case("/cniVersion", json!("9.9.9"), 1, 1),
        case("/cniVersion", json!("0.3.1"), 0, 0),
        case("/interfaces", json!({}), 6, 6),
        case("/interfaces/0", json!({}), 6, 6),
        case("/interfaces/0", json!({ "name": "nothing-of-ours" }), 7, 102),
        case("/interfaces/1/name", json!(null), 6, 6),
        case("/interfaces/1/mac", json!("zz:zz"), 6, 6),
        case("/interfaces/1/sandbox", json!(["x"]), 6, 6),
        case("/interfaces/1/sandbox", json!("/no/such/namespace"), 7, 102),
        case("/interfaces/1/sandbox", json!(elsewhere), 7, 102),
        // It is no interface of the Pod then, and ADD makes one where one is.
        case("/interfaces/1/sandbox", json!(""), 100, 102),
        case("/ips/0/interface", json!(9), 7, 7),
        case("/ips/0/interface", json!(-1), 6, 6),
        case("/ips/0/interface", json!("1"), 6, 6),
        case("/ips/0/address", json!("192.0.2.2"), 6, 6),
        case("/ips/0/address", json!("192.0.2.300/24"), 6, 6),
        case("/ips/0/gateway", json!("here"), 6, 6),
        case("/ips", json!(null), 7, 102),
        case("/routes", json!([{ "dst": "everywhere" }]), 6, 6),
        case("/dns", json!("192.0.2.53"), 6, 6),
    ];
    let wrong_types = [json!(7), json!("text"), json!([]), json!(true)];
    cases.extend(wrong_types.map(|value| case("", value, 6, 6)));
    cases
}

fn with(call: &Call, result: &Value, case: &Case) -> Result<Call> {
    let mut changed = result.clone();
    let place = changed.pointer_mut(case.pointer);
    *place.with_context(|| format!("{} of {result}", case.pointer))? = case.value.clone();
    Ok(call.clone().with("prevResult", changed))
}

fn expect(call: &Call, code: u64, case: &Case) -> Result<()> {
    let answer = call.run()?;
    let said = if code == 0 { answer.success } else { answer.error(code).is_ok() };
    ensure!(said, "{} = {}: want code {code}: {answer:?}", case.pointer, case.value);
    Ok(())
}

/// The result of another plugin that made the Pod's interface.
fn theirs(node: &Node, pod: &Pod) -> Result<Value> {
    node.host.ip(&format!("link add theirs type veth peer name eth0 netns {}", pod.netns.name()))?;
    Ok(json!({
        "cniVersion": "1.1.0", "dns": {}, "routes": [],
        "ips": [{ "address": "192.0.2.2/24", "gateway": "192.0.2.1", "interface": 1 }],
        "interfaces": [
            { "name": "theirs" },
            { "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": pod.netns.path() },
        ],
    }))
}

/// CNI-8, CNI-13, CNI-19, CNI-22: each shape has its code, an ADD that refuses it changes nothing, and DEL succeeds.
pub(crate) fn in_every_wrong_shape() -> Result<()> {
    let node = Node::start("wrong-result")?;
    let (chained, own, other) = (node.pod("chained")?, node.pod("own")?, node.pod("other")?);
    let theirs = theirs(&node, &chained)?;
    let mut ours = node.add(&own)?;
    ours["dns"] = json!({});
    ours["routes"][0]["gw"] = json!("");
    node.call("CHECK", &own).with("prevResult", ours.clone()).run()?.silence()?;
    let elsewhere = other.netns.path().display().to_string();
    let before = node.state(&chained)?;
    for case in cases(&elsewhere) {
        expect(&with(&node.call("ADD", &chained), &theirs, &case)?, case.add, &case)?;
        expect(&with(&node.call("CHECK", &own), &ours, &case)?, case.check, &case)?;
        expect(&with(&node.call("DEL", &chained), &theirs, &case)?, 0, &case)?;
        let after = node.state(&chained)?;
        ensure!(after == before, "{} = {}: {before}\nis now:\n{after}", case.pointer, case.value);
    }
    // All that is left is what nobody touched.
    node.call("CHECK", &own).with("prevResult", ours).run()?.silence()?;
    node.del(&own)
}

/// CNI-18, CNI-21, CNI-31: a DEL by a list that was changed or spoilt since the ADD, of a network that has no list any
/// more, or in another version, frees what the ADD took.
pub(crate) fn with_the_list_changed_or_gone() -> Result<()> {
    let node = Node::start("list-changed")?;
    let pod = node.pod("pod")?;
    let before = node.state(&pod)?;
    let mapping = json!({ "portMappings": [{ "hostPort": 80, "containerPort": 80 }] });
    let changes = [
        ("mtu", json!("large")),
        ("mtu", json!(1)),
        ("dns", json!(7)),
        ("logFile", json!("relative")),
        ("agentTimeoutSeconds", json!(-1)),
        ("ipam", json!("host-local")),
        ("runtimeConfig", json!("x")),
        ("capabilities", json!({ "unheardOf": true })),
        ("name", json!("renamed")),
        ("cniVersion", json!("0.3.1")),
        ("type", json!(null)),
    ];
    for (key, value) in changes {
        node.call("ADD", &pod).with("runtimeConfig", mapping.clone()).run()?.result()?;
        let del = node.call("DEL", &pod).with(key, value.clone()).run()?;
        del.silence().with_context(|| format!("{key} = {value}"))?;
        ensure!(node.state(&pod)? == before, "{key} = {value}: something is left");
    }
    // A runtime that lost its list and its memory has nothing but the names.
    node.call("ADD", &pod).with("runtimeConfig", mapping).run()?.result()?;
    let mut bare = node.call("DEL", &pod).with_env("CNI_NETNS", None).with_env("CNI_ARGS", None);
    bare.config = json!({
        "cniVersion": "1.1.0", "name": "quilla", "type": "quilla-cni",
        "agentSocket": node.files.path().join("cni.sock"), "dataDir": node.records(),
    });
    bare.run()?.silence()?;
    ensure!(node.state(&pod)? == before, "something is left");
    // What says where the agent is cannot be done without, and says so.
    node.call("DEL", &pod).with("agentSocket", "relative").run()?.error(7)?;
    Ok(())
}
