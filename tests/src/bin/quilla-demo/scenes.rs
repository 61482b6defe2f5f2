//! The demo, scene by scene. Each claims one thing and checks it.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, ask, tally};
use quilla_tests::cluster::Cluster;
use quilla_tests::pod::Pod;
use quilla_tests::{binary, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::CLUSTER;
use crate::screen::{command, say, step, table};

const PODS: &str = include_str!("manifests/pods.yaml");
const SERVICES: &str = include_str!("manifests/services.yaml");
const SERVERS: [&str; 3] = ["web-a", "web-b", "web-c"];
const FAMILIES: [(&str, bool); 2] = [("IPv4", false), ("IPv6", true)];
const QUESTIONS: u32 = 150;

pub(crate) fn play() -> Result<Cluster> {
    say("A Kubernetes cluster of three nodes on this machine. Nodes and Pods are network namespaces;\n\
         the API server, the agents, the CNI plugin and the programs in the kernel are the real ones.\n");
    let mut cluster = start()?;
    let pods = create_pods(&cluster)?;
    let services = create_services(&cluster)?;
    let (client, servers) = pods.split_last().context("pods")?;
    pods_reach_pods(&pods)?;
    services_spread(client, &services)?;
    show_the_node(&cluster)?;
    the_agent_dies(&mut cluster, client, &services)?;
    a_backend_leaves(&cluster, client, &services[0], servers)?;
    Ok(cluster)
}

fn start() -> Result<Cluster> {
    let mut started = None;
    step("Starting the API server and the controller", || {
        started = Some(Cluster::builder(CLUSTER).nodes(3).control_plane()?);
        Ok("kubectl can talk to it".to_owned())
    })?;
    let mut cluster = started.context("the control plane")?;
    step("Starting three nodes, each with its agent", || {
        cluster.start_nodes()?;
        Ok("every agent has reached its own hidden Service, /self-test, through its data path".to_owned())
    })?;
    show(&cluster, &["get", "nodes", "-o", "wide"])?;
    Ok(cluster)
}

/// Runs kubectl before the viewer's eyes.
fn show(cluster: &Cluster, arguments: &[&str]) -> Result<()> {
    command(&format!("kubectl {}", arguments.join(" ")), &cluster.kubectl(arguments)?);
    Ok(())
}

/// The servers, then the client.
fn create_pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let mut pods = Vec::new();
    step("Creating four Pods with kubectl apply", || {
        cluster.apply(PODS)?;
        for name in SERVERS.into_iter().chain(["client"]) {
            pods.push(cluster.wait_pod(name)?);
        }
        Ok("the CNI plugin has wired each of them, one address per family".to_owned())
    })?;
    show(cluster, &["get", "pods", "-o", "wide"])?;
    Ok(pods)
}

/// A Service's addresses, IPv4 first, with its port and the way to ask it.
struct Service {
    name: &'static str,
    by: By,
    frontends: [SocketAddr; 2],
}

fn create_services(cluster: &Cluster) -> Result<[Service; 2]> {
    let mut services = Vec::new();
    step("Creating two dual-stack Services", || {
        cluster.apply(SERVICES)?;
        for (name, port, by) in [("web", 80, By::Http), ("names", 53, By::Udp)] {
            let ips = cluster.wait_service(name, SERVERS.len())?;
            let [v4, v6] = ips.as_slice() else { anyhow::bail!("{name} is not dual stack: {ips:?}") };
            let frontends = [SocketAddr::new(v4.parse()?, port), SocketAddr::new(v6.parse()?, port)];
            services.push(Service { name, by, frontends });
        }
        Ok("the controller has chosen addresses and found the backends".to_owned())
    })?;
    show(cluster, &["get", "services,endpointslices"])?;
    services.try_into().map_err(|_| anyhow::anyhow!("two services"))
}

fn pods_reach_pods(pods: &[Pod]) -> Result<()> {
    let mut rows = vec![vec!["from \\ to".to_owned()]];
    rows[0].extend(pods.iter().map(|pod| pod.name().to_owned()));
    step("Every Pod asks every Pod, TCP and UDP, IPv4 and IPv6", || {
        for client in pods {
            let mut row = vec![client.name().to_owned()];
            for server in pods {
                row.push(answers(client, server)?);
            }
            rows.push(row);
        }
        Ok("each answered, and saw the asking Pod's own address".to_owned())
    })?;
    table(&rows);
    Ok(())
}

/// How many questions were answered by the right Pod to the right one.
fn answers(client: &Pod, server: &Pod) -> Result<String> {
    let mut right = 0;
    for (family, v6) in FAMILIES {
        for by in [By::Http, By::Udp] {
            let to = SocketAddr::new(server.address(v6), 8080);
            let answer = ask(|program| client.command(program), to, by, 1)?.remove(0);
            ensure!(answer.server == server.name(), "{family}: {to} is {}", answer.server);
            ensure!(answer.caller == client.address(v6), "{family}: seen as {}", answer.caller);
            right += 1;
        }
    }
    Ok(format!("{right} of 4"))
}

fn services_spread(client: &Pod, services: &[Service]) -> Result<()> {
    let mut rows = vec![vec!["Service".to_owned(), "family".to_owned(), "way".to_owned()]];
    rows[0].extend(SERVERS.map(str::to_owned));
    step(&format!("The client asks each Service {QUESTIONS} times"), || {
        for service in services {
            for ((family, _), to) in FAMILIES.into_iter().zip(service.frontends) {
                for hooked in [true, false] {
                    let way = if hooked { "translated at the socket" } else { "translated per packet" };
                    let mut row = vec![format!("{} {to}", service.name), family.to_owned(), way.to_owned()];
                    row.extend(hits(client, service, to, hooked)?);
                    rows.push(row);
                }
            }
        }
        Ok("every question was answered, and every backend had its share".to_owned())
    })?;
    table(&rows);
    Ok(())
}

fn hits(client: &Pod, service: &Service, to: SocketAddr, hooked: bool) -> Result<Vec<String>> {
    let place = |program: &str| -> Command {
        if hooked { client.command(program) } else { client.command_without_hooks(program) }
    };
    // The endpoints just appeared in the API; the node's maps follow within moments.
    eventually::succeeds("the Service answers", || ask(place, to, service.by, 1))?;
    let answers = ask(place, to, service.by, QUESTIONS)?;
    let hits = tally(&answers);
    for server in SERVERS {
        let share = hits.get(server).copied().unwrap_or(0);
        ensure!(share >= 20, "{server} had {share} of {QUESTIONS} questions to {to}: {hits:?}");
    }
    ensure!(hits.len() == SERVERS.len(), "strangers answered: {hits:?}");
    Ok(SERVERS.iter().map(|server| hits[server].to_string()).collect())
}

/// What an operator sees on a node.
fn show_the_node(cluster: &Cluster) -> Result<()> {
    for view in ["status", "nodes"] {
        command(&format!("quilla {view}"), &cluster.node("node-a").quilla(&[view])?);
    }
    Ok(())
}

const KILLS: u32 = 6;

fn the_agent_dies(cluster: &mut Cluster, client: &Pod, services: &[Service]) -> Result<()> {
    let targets = services[0].frontends;
    let mut report = Value::Null;
    let mut pids = Vec::new();
    step(&format!("Under load, kill -9 of the client's agent, {KILLS} times"), || {
        let load = start_load(client, &targets)?;
        for _ in 0..KILLS {
            let node = cluster.node_mut("node-a");
            pids.push(node.agent()?.id().to_string());
            node.agent()?.kill()?;
            node.start_agent()?;
            node.wait_ready()?;
        }
        pids.push(cluster.node_mut("node-a").agent()?.id().to_string());
        report = finish_load(load)?;
        Ok("nobody noticed".to_owned())
    })?;
    let number = |key: &str| report[key].as_u64().map_or_else(|| "?".to_owned(), |number| number.to_string());
    say(&format!("    the agent's process each time: {}", pids.join(" → ")));
    table(&[
        vec![
            "long connections".to_owned(),
            number("longFlows"),
            "broken".to_owned(),
            number("longFlowsBroken"),
        ],
        vec![
            "new connections".to_owned(),
            number("connections"),
            "lost".to_owned(),
            number("connectionsLost"),
        ],
        vec!["messages echoed".to_owned(), number("longMessages")],
    ]);
    Ok(())
}

fn start_load(client: &Pod, targets: &[SocketAddr]) -> Result<Child> {
    let mut command = client.command(&binary::path("quilla-load")?.to_string_lossy());
    command.args(["--long", "100", "--rate", "300", "--seconds", "60"]);
    for target in targets {
        command.args(["--target", &target.to_string()]);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start the load")
}

fn finish_load(load: Child) -> Result<Value> {
    kill_process(Pid::from_child(&load), Signal::TERM).context("the load is still running")?;
    let output = load.wait_with_output().context("wait for the load")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&said).with_context(|| format!("parse {said}"))
}

fn a_backend_leaves(cluster: &Cluster, client: &Pod, service: &Service, servers: &[Pod]) -> Result<()> {
    let (leaving, staying) = servers.split_first().context("servers")?;
    let mut rows = vec![vec!["Service".to_owned(), "family".to_owned()]];
    rows[0].extend(SERVERS.map(str::to_owned));
    step(&format!("Deleting the Pod {}", leaving.name()), || {
        cluster.delete_pod(leaving.name())?;
        cluster.wait_service(service.name, staying.len())?;
        for ((family, _), to) in FAMILIES.into_iter().zip(service.frontends) {
            let shares = eventually::succeeds("only the others answer", || {
                let answers = ask(|program| client.command(program), to, service.by, QUESTIONS)?;
                let hits = tally(&answers);
                ensure!(!hits.contains_key(leaving.name()), "{hits:?}");
                Ok(SERVERS.map(|server| hits.get(server).copied().unwrap_or(0)))
            })?;
            let mut row = vec![format!("{} {to}", service.name), family.to_owned()];
            row.extend(shares.map(|share| share.to_string()));
            rows.push(row);
        }
        Ok("the others took over its share".to_owned())
    })?;
    table(&rows);
    Ok(())
}
