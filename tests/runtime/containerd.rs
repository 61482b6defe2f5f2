//! Pods of containerd, through CRI as a kubelet would run them.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::{Daemon, Run};
use quilla_tests::eventually;
use quilla_tests::require::{Need, skip};

use crate::cri::{Client, Empty, PodConfig, PodMetadata, PortMapping};
use crate::image;
use crate::place::{NODE, Place};

const NEEDS: [Need; 3] = [Need::Containerd, Need::ReferencePlugins, Need::Busybox];

/// A running containerd. Its Pods' processes are in the cluster's cgroup and end with it.
struct Containerd {
    client: Client,
    daemon: Daemon,
    _place: Place,
}

impl Containerd {
    fn start(cluster: &Cluster) -> Result<Self> {
        let place = Place::on(cluster)?;
        let config = place.files.join("config.toml");
        fs::write(&config, configuration(&place)).context("write the configuration")?;
        let mut command = place.command(cluster, "containerd");
        command.arg("--config").arg(&config);
        let mut daemon = Daemon::start("containerd", &mut command, &place.files.join("log"))?;
        let socket = place.files.join("containerd.sock");
        let archive = image::archive(&place.files)?;
        let import = || {
            let mut ctr = cluster.node(NODE).command("ctr");
            ctr.arg("--address").arg(&socket).args(["--namespace", "k8s.io", "images", "import"]);
            ctr.args(["--snapshotter", "native"]).arg(&archive).text()
        };
        eventually::succeeds_while("containerd has the image", || daemon.check(), import)?;
        let client = Client::connect(&socket)?;
        eventually::succeeds("containerd has a network", || client.require_network())?;
        Ok(Self { client, daemon, _place: place })
    }

    /// A Pod as the kubelet would describe it.
    fn run(&self, name: &str) -> Result<(PodConfig, String)> {
        self.run_with(name, Vec::new())
    }

    fn run_with(&self, name: &str, port_mappings: Vec<PortMapping>) -> Result<(PodConfig, String)> {
        let limit = |direction: &str| (format!("kubernetes.io/{direction}-bandwidth"), "1G".to_owned());
        let config = PodConfig {
            port_mappings,
            annotations: HashMap::from(["ingress", "egress"].map(limit)),
            metadata: Some(PodMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            linux: Some(Empty {}),
        };
        let pod = self.client.run_pod(&config).with_context(|| self.daemon.tail(3))?;
        Ok((config, pod))
    }
}

/// Neither overlayfs nor cgroup controllers nor `AppArmor`: what the tests ask of a machine.
fn configuration(place: &Place) -> String {
    let Place { files, plugins, networks, .. } = place;
    let (files, plugins, networks) = (files.display(), plugins.display(), networks.display());
    format!(
        r#"version = 2
root = "{files}/root"
state = "{files}/state"
[grpc]
address = "{files}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{files}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
disable_tcp_service = true
restrict_oom_score_adj = true
disable_cgroup = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{networks}"
"#,
        image = image::NAME,
    )
}

/// The endpoints that the agent knows, one a line.
fn endpoints(cluster: &Cluster) -> Result<String> {
    cluster.node(NODE).quilla(&["endpoints", "--output", "json"])
}

/// CNI-1, CNI-14, CNI-20, CNI-33: `RunPodSandbox` attaches, two containers share address and ports, a Service answers, and
/// `StopPodSandbox` leaves nothing, however often it is called.
pub(crate) fn two_containers_of_a_pod() -> Result<()> {
    if skip("containerd::two_containers_of_a_pod", &NEEDS) {
        return Ok(());
    }
    let cluster = Cluster::builder("containerd").nodes(1).start()?;
    let containerd = Containerd::start(&cluster)?;
    let (config, pod) = containerd.run("pair")?;
    let client = &containerd.client;
    let status = client.pod_status(&pod)?;
    let addresses = status.addresses();
    ensure!(status.state == 0 && addresses.len() == 2, "not ready with two addresses: {status:?}");
    let known = endpoints(&cluster)?;
    ensure!(known.contains(&addresses[0]) && known.contains(&pod), "the agent does not know it: {known}");

    let httpd = ["httpd", "-f", "-p", "8080", "-h", "/www"];
    let server = client.start_container(&pod, &config, "server", image::NAME, &httpd)?;
    let other = client.start_container(&pod, &config, "other", image::NAME, &["sleep", "1000000"])?;
    let local = ["wget", "-qO-", "http://127.0.0.1:8080/name"];
    eventually::succeeds("the other container reaches the server by loopback", || {
        client.output(&other, &local)
    })?;
    let show = ["ip", "-o", "addr", "show", "eth0"];
    let seen = client.output(&server, &show)?;
    ensure!(seen == client.output(&other, &show)?, "two addresses in one Pod");
    ensure!(addresses.iter().all(|address| seen.contains(address.as_str())), "{seen} lacks {addresses:?}");
    let link = client.output(&other, &["ip", "-o", "link", "show", "eth0"])?;
    ensure!(link.contains("qdisc tbf"), "CNI-33: the annotated bandwidth is not limited: {link}");
    let known = endpoints(&cluster)?;
    ensure!(known.contains("(tbf queue)"), "CNI-33: the limit and what enforces it are not named: {known}");
    let taken = client.exec(&other, &httpd)?;
    ensure!(taken.exit_code != 0 && taken.words().contains("in use"), "ports are not shared: {taken:?}");

    service_reaches(&cluster, client, &other)?;
    let running = interfaces(&cluster)?;
    client.stop_pod(&pod)?;
    client.stop_pod(&pod)?;
    ensure!(client.pod_status(&pod)?.state == 1, "still ready");
    ensure!(!endpoints(&cluster)?.contains(&pod), "the agent still knows it");
    client.remove_pod(&pod)?;
    ensure!(interfaces(&cluster)? + 1 == running, "its interface is left");
    drop(containerd);
    cluster.stop()
}

/// How many Pods have an interface on the node.
fn interfaces(cluster: &Cluster) -> Result<usize> {
    let mut ip = cluster.node(NODE).netns().command("ip");
    let links = ip.args(["-o", "link", "show", "type", "veth"]).text()?;
    Ok(links.lines().filter(|line| line.contains(": quil")).count())
}

/// CNI-33: a host port that CRI asks for leads from the world to the container, over both families; another Pod that
/// wants it is refused, with the holder named, until the first is stopped.
pub(crate) fn host_port() -> Result<()> {
    if skip("containerd::host_port", &NEEDS) {
        return Ok(());
    }
    let cluster = Cluster::builder("host-port").nodes(1).start()?;
    let containerd = Containerd::start(&cluster)?;
    let client = &containerd.client;
    let mapping = PortMapping { host_port: 18080, container_port: 8080, ..PortMapping::default() };
    let (config, pod) = containerd.run_with("first", vec![mapping.clone()])?;
    let httpd = ["httpd", "-f", "-p", "8080", "-h", "/www"];
    client.start_container(&pod, &config, "server", image::NAME, &httpd)?;
    for address in cluster.node(NODE).addresses() {
        let url = format!("http://{}/name", SocketAddr::new(address, 18080));
        eventually::succeeds("the host port answers the world", || {
            cluster.outside().command("curl").args(["-sf", "-m", "2", &url]).text()
        })?;
    }

    let refused = containerd.run_with("second", vec![mapping.clone()]).expect_err("the port is taken");
    ensure!(format!("{refused:#}").contains("default/first"), "the holder is not named: {refused:#}");
    client.stop_pod(&pod)?;
    let (_, second) = containerd.run_with("second", vec![mapping])?;
    client.stop_pod(&second)?;
    drop(containerd);
    cluster.stop()
}

/// The data path that the plugin asked for: from the container to a Service of the cluster.
fn service_reaches(cluster: &Cluster, client: &Client, container: &str) -> Result<()> {
    cluster.pod(NODE, "backend").label("app", "backend").start()?;
    cluster.apply(
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"backend","namespace":"default"},
            "spec":{"selector":{"app":"backend"},"ports":[{"port":80,"targetPort":8080}]}}"#,
    )?;
    let get = ["get", "service", "backend", "-o", "jsonpath={.spec.clusterIP}"];
    let url = format!("{}:80", cluster.kubectl(&get)?);
    let (address, port) = url.rsplit_once(':').context("address of the service")?;
    eventually::succeeds("the service answers", || {
        client.output(container, &["nc", "-w", "2", address, port, "-e", "true"])
    })
    .map(drop)
}

/// CNI-18, CNI-21, CNI-28: without its agent no Pod starts, and one that runs is stopped; nothing of either is left once
/// the agent is back.
pub(crate) fn agent_dead() -> Result<()> {
    if skip("containerd::agent_dead", &NEEDS) {
        return Ok(());
    }
    let mut cluster = Cluster::builder("dead").nodes(1).start()?;
    let containerd = Containerd::start(&cluster)?;
    let (_, pod) = containerd.run("early")?;
    cluster.node_mut(NODE).agent()?.kill()?;
    let refused = containerd.run("late").expect_err("there is no agent");
    ensure!(format!("{refused:#}").contains("connect to the agent"), "another reason: {refused:#}");
    containerd.client.stop_pod(&pod)?;
    containerd.client.remove_pod(&pod)?;

    cluster.node_mut(NODE).start_agent()?;
    cluster.node_mut(NODE).wait_ready()?;
    eventually::succeeds("the release on record is carried out", || {
        let known = endpoints(&cluster)?;
        ensure!(!known.contains(&pod), "{known}");
        Ok(())
    })?;
    let (_, again) = containerd.run("again")?;
    containerd.client.stop_pod(&again)?;
    drop(containerd);
    cluster.stop()
}
