//! What a Service's specification says of callers from outside: traffic policies, source ranges, affinity, health
//! checks, and what becomes of those whom nobody serves. Real clients and servers, both families.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, ask};
use quilla_tests::client::{at, curl, dig};
use quilla_tests::cluster::Cluster;
use quilla_tests::topology::OUTSIDE;
use quilla_tests::workload::Workload;
use quilla_tests::{binary, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::clients::{Faults, VIP, curl_all, expose, parse};

/// S11, S21, S25, S26: with `externalTrafficPolicy: Local` the server sees the caller's own address, a node without
/// endpoints answers nobody from outside, and its own Pods and processes are served by every address.
pub(crate) fn local_policy_keeps_the_caller_s_address() -> Result<()> {
    let cluster = Cluster::builder("external-local").nodes(2).start()?;
    cluster.pod("node-a", "web-a").label("app", "web").runs(Workload::Nginx)?.start()?;
    let near = cluster.pod("node-a", "near").start()?;
    let far = cluster.pod("node-b", "far").start()?;
    let exposed = expose(&cluster, "web", Workload::Nginx, &json!({"externalTrafficPolicy": "Local"}))?;
    cluster.wait_service("web", 1)?;
    let outside = |program: &str| cluster.outside().command(program);
    let own = parse(OUTSIDE)?;
    let node = |name: &str| cluster.node(name).addresses();
    let local = at(node("node-a"), exposed.node_port).into_iter().chain(at(parse(VIP)?, 80));
    let mut faults = Faults::default();
    for to in local {
        let outcome = curl_all(&outside, to, &["web-a"]).and_then(|answers| {
            let stranger = answers.iter().find(|answer| answer.caller != own[usize::from(to.is_ipv6())]);
            ensure!(stranger.is_none(), "the caller's address is lost: {stranger:?}");
            Ok(())
        });
        faults.note(&format!("outside to {to}"), outcome)?;
    }
    for to in at(node("node-b"), exposed.node_port) {
        let outcome = eventually::succeeds("nobody answers", || curl(outside, to)?.silence());
        faults.note(&format!("outside to {to} without endpoints"), outcome)?;
    }
    for to in exposed.all()? {
        for (name, pod) in [("near", &near), ("far", &far)] {
            let place = |program: &str| pod.command_without_hooks(program);
            // A Pod of another node is from outside to a node port, and node-b serves nobody there.
            let outcome = if name == "near" && node("node-b").contains(&to.ip()) {
                curl(place, to).and_then(|outcome| outcome.silence())
            } else {
                curl_all(&place, to, &["web-a"]).map(drop)
            };
            faults.note(&format!("{name} to {to}"), outcome)?;
        }
        let node = cluster.node("node-b");
        let outcome = curl_all(&|program| node.command(program), to, &["web-a"]);
        faults.note(&format!("node-b to {to}"), outcome.map(drop))?;
    }
    faults.none()?;
    cluster.stop()
}

/// S20: where no Pod serves, every client is told at once: curl and dig end with "connection refused", never by their
/// own patience.
pub(crate) fn without_endpoints_clients_are_refused() -> Result<()> {
    let cluster = Cluster::builder("external-refused").nodes(2).start()?;
    let pod = cluster.pod("node-a", "client").start()?;
    let exposed = expose(&cluster, "none", Workload::Nginx, &json!({}))?;
    let mut faults = Faults::default();
    let mut refused = |client: &str, place: &dyn Fn(&str) -> std::process::Command, to: SocketAddr| {
        let outcome = eventually::succeeds("refused", || curl(place, to)?.refused());
        faults.note(&format!("curl from {client} to {to}"), outcome)?;
        let outcome = eventually::succeeds("refused", || dig(place, to, false)?.refused());
        faults.note(&format!("dig from {client} to {to}"), outcome)
    };
    for to in exposed.external()? {
        refused("outside", &|program| cluster.outside().command(program), to)?;
    }
    for to in exposed.all()? {
        refused("a Pod", &|program| pod.command(program), to)?;
        refused("a Pod without hooks", &|program| pod.command_without_hooks(program), to)?;
        refused("a node", &|program| cluster.node("node-a").command(program), to)?;
    }
    faults.none()?;
    cluster.stop()
}

/// S24: source ranges keep strangers off the balancer's addresses, silently, and off nothing else.
pub(crate) fn source_ranges_guard_the_balancer_s_address() -> Result<()> {
    let cluster = Cluster::builder("external-ranges").nodes(2).start()?;
    cluster.pod("node-b", "web-b").label("app", "web").runs(Workload::Nginx)?.start()?;
    let allowed = json!({"loadBalancerSourceRanges": [" 203.0.113.0/30", "2001:db8:113::/64"]});
    let exposed = expose(&cluster, "web", Workload::Nginx, &allowed)?;
    cluster.wait_service("web", 1)?;
    let outside = |program: &str| cluster.outside().command(program);
    for to in exposed.external()? {
        curl_all(&outside, to, &["web-b"]).with_context(|| format!("{to} from within the ranges"))?;
    }
    let others = json!({"spec": {"loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8:ffff::/64"]}});
    cluster.kubectl(&["patch", "service", "web", "--type=merge", "-p", &others.to_string()])?;
    for to in exposed.external()? {
        if parse(VIP)?.contains(&to.ip()) {
            eventually::succeeds("silence", || curl(outside, to)?.silence())
                .with_context(|| format!("{to} from without"))?;
        } else {
            curl_all(&outside, to, &["web-b"]).with_context(|| format!("{to} is not guarded"))?;
        }
    }
    cluster.stop()
}

/// S18: a client comes back to its server by whatever external address; another client is independent of it.
pub(crate) fn clients_come_back_to_their_server() -> Result<()> {
    let cluster = Cluster::builder("external-affinity").nodes(2).start()?;
    for (node, name) in [("node-a", "web-1"), ("node-b", "web-2"), ("node-b", "web-3")] {
        cluster.pod(node, name).label("app", "web").runs(Workload::Nginx)?.start()?;
    }
    // More callers than servers: some two of them will be served by different ones, or affinity is not by client.
    let outside = |program: &str| cluster.outside().command(program);
    let others: Vec<[IpAddr; 2]> = (3..19)
        .map(|n| parse([&format!("203.0.113.{n}"), &format!("2001:db8:113::{n}")]))
        .collect::<Result<_>>()?;
    for [v4, v6] in &others {
        cluster.outside().ip(&format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad"))?;
    }
    let affinity = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}});
    let exposed = expose(&cluster, "web", Workload::Nginx, &affinity)?;
    cluster.wait_service("web", 3)?;
    for to in at(cluster.node("node-a").addresses(), exposed.node_port).into_iter().chain(at(parse(VIP)?, 80))
    {
        eventually::succeeds("the Service answers", || curl(outside, to)?.answer())?;
        let mut servers = BTreeSet::new();
        for other in &others {
            let from = other[usize::from(to.is_ipv6())].to_string();
            let place = |program: &str| {
                let mut command = cluster.outside().command(program);
                command.args(["--interface", &from]);
                command
            };
            let first = curl(place, to)?.answer()?.answer()?.server;
            for _ in 0..8 {
                let again = curl(place, to)?.answer()?.answer()?.server;
                ensure!(again == first, "{from} went to {first}, then to {again}, by {to}");
            }
            servers.insert(first);
        }
        ensure!(servers.len() > 1, "{} clients all went to {servers:?} by {to}", others.len());
    }
    cluster.stop()
}

/// S40: what a load balancer's health check sees of a node with a ready endpoint, and of one without.
pub(crate) fn balancers_see_which_node_has_endpoints() -> Result<()> {
    let cluster = Cluster::builder("external-health").nodes(2).start()?;
    cluster.pod("node-a", "web-a").label("app", "web").runs(Workload::Nginx)?.start()?;
    let exposed = expose(&cluster, "web", Workload::Nginx, &json!({"externalTrafficPolicy": "Local"}))?;
    let port = exposed.health_check.context("no healthCheckNodePort")?;
    let outside = |program: &str| cluster.outside().command(program);
    let expect = |node: &str, code: u16, endpoints: u32| {
        for to in at(cluster.node(node).addresses(), port) {
            eventually::succeeds(&format!("{code} from {to}"), || {
                let page = curl(outside, to)?.answer()?;
                ensure!(page.code == code, "{page:?}");
                for (name, value) in [
                    ("Content-Type", "application/json"),
                    ("X-Content-Type-Options", "nosniff"),
                    ("X-Load-Balancing-Endpoint-Weight", &endpoints.to_string()),
                ] {
                    ensure!(page.header(name) == Some(value), "{name} is not {value} in {page:?}");
                }
                let body: serde_json::Value = serde_json::from_str(&page.body)?;
                let expected = json!({"service": {"namespace": "default", "name": "web"},
                    "localEndpoints": endpoints, "serviceProxyHealthy": true});
                ensure!(body == expected, "{body}");
                Ok(())
            })?;
        }
        Ok::<_, anyhow::Error>(())
    };
    expect("node-a", 200, 1)?;
    expect("node-b", 503, 0)?;
    cluster.pod("node-b", "web-b").label("app", "web").runs(Workload::Nginx)?.start()?;
    expect("node-b", 200, 1)?;
    cluster.delete_pod("web-a")?;
    expect("node-a", 503, 0)?;
    cluster.stop()
}

/// Promise 2 for those outside: sessions by node ports and balancer's addresses, to backends on both nodes, outlive the
/// agents, and new ones are made while there is none.
pub(crate) fn sessions_survive_an_agent_s_restart() -> Result<()> {
    let mut cluster = Cluster::builder("external-restart").nodes(2).start()?;
    for (node, name) in [("node-a", "web-a"), ("node-b", "web-b")] {
        cluster.pod(node, name).label("app", "web").start()?;
    }
    let exposed = expose(&cluster, "web", Workload::Nginx, &json!({}))?;
    cluster.wait_service("web", 2)?;
    let targets: Vec<SocketAddr> = at(cluster.node("node-a").addresses(), exposed.node_port)
        .into_iter()
        .chain(at(parse(VIP)?, 80))
        .collect();
    for to in &targets {
        eventually::succeeds("the Service answers", || {
            curl(|program| cluster.outside().command(program), *to)?.answer()
        })?;
    }
    let load = load(&cluster, &targets, ["--long", "50", "--rate", "100"])?;
    for _ in 0..3 {
        for node in ["node-a", "node-b"] {
            cluster.node_mut(node).agent()?.kill()?;
        }
        for to in &targets {
            curl(|program| cluster.outside().command(program), *to)?.answer().context("without an agent")?;
        }
        for node in ["node-a", "node-b"] {
            cluster.node_mut(node).start_agent()?;
            cluster.node_mut(node).wait_ready()?;
        }
    }
    println!("agents restarted: {}", unharmed(load)?);
    cluster.stop()
}

/// S17: a Pod whose weight becomes 0 keeps the sessions it has and gets no new ones, and some again with a weight.
pub(crate) fn a_weight_of_zero_drains_a_pod() -> Result<()> {
    let cluster = Cluster::builder("external-weight").nodes(2).start()?;
    for (node, name) in [("node-a", "web-a"), ("node-b", "web-b")] {
        cluster.pod(node, name).label("app", "web").start()?;
    }
    let exposed = expose(&cluster, "web", Workload::Nginx, &json!({}))?;
    cluster.wait_service("web", 2)?;
    let targets = at(cluster.node("node-a").addresses(), exposed.node_port);
    let answers = |count: u32| -> Result<BTreeSet<String>> {
        let mut servers = BTreeSet::new();
        for to in targets {
            let answers = ask(|program| cluster.outside().command(program), to, By::Http, count)?;
            servers.extend(answers.into_iter().map(|answer| answer.server));
        }
        Ok(servers)
    };
    let become_of = |expected: &[&str]| {
        eventually::becomes("who answers", || answers(30), |found| found.iter().eq(expected)).map(drop)
    };
    become_of(&["web-a", "web-b"])?;
    let load = load(&cluster, &targets, ["--long", "40", "--rate", "0"])?;
    for (weight, servers) in [("0", &["web-a"][..]), ("50", &["web-a", "web-b"])] {
        let weight = format!("quilla.dev/weight={weight}");
        cluster.kubectl(&["annotate", "pod", "web-b", &weight, "--overwrite"])?;
        become_of(servers)?;
    }
    unharmed(load)?;
    cluster.stop()
}

fn load(cluster: &Cluster, targets: &[SocketAddr], how: [&str; 4]) -> Result<Child> {
    let mut load = cluster.outside().command(&binary::path("quilla-load")?.to_string_lossy());
    load.args(how).args(["--seconds", "300"]);
    for to in targets {
        load.args(["--target", &to.to_string()]);
    }
    load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start the load")
}

/// Ends a load that must have lost nothing; what it says.
fn unharmed(load: Child) -> Result<String> {
    kill_process(Pid::from_child(&load), Signal::TERM).context("the load is still running")?;
    let output = load.wait_with_output().context("wait for the load")?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success(), "lost: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}
