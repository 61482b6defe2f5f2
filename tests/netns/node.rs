//! What a node does for itself and says of itself: sockets of its own processes, and what load balancers ask it.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_tests::ask::{By, ask};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::eventually;
use quilla_tests::topology::OUTSIDE;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: names, namespace: default}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: names}
  ports:
  - {name: udp, port: 53, targetPort: 8080, protocol: UDP}
  - {name: web, port: 80, targetPort: 8080, protocol: TCP}
";

/// A process of the node with one connected datagram socket, on which it waits; it says why it ends.
struct Waiting(Child);

impl Waiting {
    fn start(cluster: &Cluster, to: &str) -> Result<Self> {
        let script = "exec 3<>/dev/udp/$0/53 && echo connected && read -r -u 3 line";
        let mut command = cluster.node("node-a").command("bash");
        command.args(["-c", script, to]).stdin(Stdio::null());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut waiting = Self(child.context("start bash")?);
        let mut line = String::new();
        let stdout = waiting.0.stdout.as_mut().context("standard output")?;
        BufReader::new(stdout).read_line(&mut line).context("read")?;
        ensure!(line == "connected\n", "{to}: {line:?}");
        Ok(waiting)
    }

    /// What it said at its end.
    fn end(&mut self) -> Result<String> {
        eventually::succeeds("the socket's owner is told", || {
            self.0.try_wait().context("wait")?.context("still waiting")
        })?;
        let mut said = String::new();
        let stderr = self.0.stderr.as_mut().context("standard error")?;
        stderr.read_to_string(&mut said).context("read")?;
        Ok(said)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// S45, S48, E18: a client of the node that waits on a connected socket for a backend that is deleted gets an error,
/// and only that client does.
pub(crate) fn connected_sockets_end_with_their_backend() -> Result<()> {
    let cluster = Cluster::builder("sockets-end").nodes(1).start()?;
    let pod = cluster.pod("node-a", "only").label("app", "names").start()?;
    let other = cluster.pod("node-a", "other").start()?;
    cluster.apply(SERVICE)?;
    let ips = cluster.wait_service("names", 1)?;
    let mut clients = Vec::new();
    for ip in &ips {
        let to = SocketAddr::new(ip.parse()?, 53);
        eventually::succeeds("the Service answers", || {
            ask(|program| cluster.node("node-a").command(program), to, By::UdpConnected, 1)
        })?;
        clients.push(Waiting::start(&cluster, ip)?);
    }
    let mut bystander = Waiting::start(&cluster, &other.address(true).to_string())?;
    cluster.delete_pod(pod.name())?;
    for client in &mut clients {
        let said = client.end()?;
        ensure!(said.contains("connection abort"), "{said}");
    }
    ensure!(bystander.0.try_wait()?.is_none(), "a socket that no Service led anywhere ended");
    cluster.stop()
}

/// E6, E8: what the node itself routes to Service addresses ends at once and leaves by no device. Its sockets, connected
/// or not, reach the Service all the same, and the world has its route.
pub(crate) fn the_node_s_own_packets_for_services_go_nowhere() -> Result<()> {
    let cluster = Cluster::builder("nowhere").nodes(1).start()?;
    let node = cluster.node("node-a");
    cluster.pod("node-a", "only").label("app", "names").start()?;
    cluster.apply(SERVICE)?;
    for (ip, own) in cluster.wait_service("names", 1)?.iter().zip(node.addresses()) {
        let to = SocketAddr::new(ip.parse()?, 53);
        for by in [By::Udp, By::UdpConnected] {
            eventually::succeeds("the Service answers", || ask(|program| node.command(program), to, by, 1))?;
        }
        let way = node.command("ip").args(["route", "get", ip]).output().context("ip route get")?;
        let said = String::from_utf8_lossy(&way.stderr);
        ensure!(!way.status.success() && said.contains("unreachable"), "{ip}: {way:?}");
        let outside = if own.is_ipv4() { OUTSIDE[0] } else { OUTSIDE[1] };
        node.command("ip").args(["route", "get", outside]).text()?;
    }
    cluster.stop()
}

/// A Pod's connection that a Service led to its backend at the socket shows the backend's address only: it is found by
/// the Service all the same, in both directions, and one to the Pod itself is not.
pub(crate) fn connections_led_at_the_socket_have_a_service() -> Result<()> {
    let cluster = Cluster::builder("of-service").nodes(1).start()?;
    let node = cluster.node("node-a");
    let server = cluster.pod("node-a", "server").label("app", "names").start()?;
    let [client, direct] = ["client", "direct"].map(|name| cluster.pod("node-a", name).start());
    let (client, direct) = (client?, direct?);
    cluster.apply(SERVICE)?;
    let ips = cluster.wait_service("names", 1)?;
    for (ip, own) in ips.iter().zip([false, true].map(|v6| server.address(v6))) {
        let (service, backend) = (SocketAddr::new(ip.parse()?, 80), SocketAddr::new(own, 8080));
        eventually::succeeds("the Service answers", || {
            ask(|program| client.command(program), service, By::Http, 1)
        })?;
        ask(|program| direct.command(program), backend, By::Http, 1)?;
        let found = node.quilla(&["flows", "--service", "names", "--proto", "tcp", "-o", "json"])?;
        let found: Vec<serde_json::Value> = serde_json::from_str(&found)?;
        let ends = |row: &serde_json::Value| {
            let ends = ["source", "destination"].map(|end| row[end].as_str().unwrap_or_default().to_owned());
            (row["service"] == "default/names:web").then_some(ends)
        };
        let ends: Vec<_> = found.iter().filter_map(ends).collect();
        let backend = backend.to_string();
        ensure!(ends.iter().any(|[_, to]| *to == backend), "no led flow to {backend}: {found:?}");
        ensure!(ends.iter().any(|[from, _]| *from == backend), "no answers from {backend}: {found:?}");
        let stranger = direct.address(own.is_ipv6()).to_string();
        ensure!(!ends.iter().flatten().any(|end| end.contains(&stranger)), "{stranger}: {found:?}");
    }
    cluster.stop()
}

/// S41: a node that an autoscaler is about to remove tells load balancers, but not its own supervisor.
pub(crate) fn a_node_that_is_leaving_says_so_to_load_balancers() -> Result<()> {
    let cluster = Cluster::builder("leaving").nodes(1).start()?;
    let node = cluster.node("node-a").addresses()[0];
    let expect = |path: &str, code: &str| {
        eventually::succeeds(&format!("{path} answers {code}"), || {
            let found = status(&cluster, node, path)?;
            ensure!(found == code, "{found}");
            Ok(())
        })
    };
    expect("healthz", "200")?;
    let taint =
        r#"{"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}"#;
    cluster.kubectl(&["patch", "node", "node-a", "--type=merge", "-p", taint])?;
    expect("healthz", "503")?;
    expect("livez", "200")?;
    cluster.kubectl(&["patch", "node", "node-a", "--type=merge", "-p", r#"{"spec": {"taints": null}}"#])?;
    expect("healthz", "200")?;
    cluster.stop()
}

/// The HTTP status that the outside gets from the health port.
fn status(cluster: &Cluster, node: IpAddr, path: &str) -> Result<String> {
    let mut curl = cluster.outside().command("curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &format!("http://{node}:10256/{path}")]);
    curl.text()
}
