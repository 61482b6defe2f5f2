//! Connections that a Service led to their backend when the socket was connected: they end with it, and no others do.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::eventually;
use quilla_tests::pod::Pod;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: led, namespace: default}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: led}
  ports:
  - {name: tcp, port: 80, targetPort: 8080, protocol: TCP}
";

/// A process of a Pod with one connection, on which it sends for each line that it is told.
struct Speaker {
    child: Child,
    told: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Speaker {
    fn start(pod: &Pod, to: SocketAddr) -> Result<Self> {
        let script = "trap '' PIPE; exec 3<>/dev/tcp/$0/$1 && echo connected
            while read -r line; do if printf . >&3; then echo sent; else echo lost; fi; done";
        let mut command = pod.command("bash");
        command.args(["-c", script, &to.ip().to_string(), &to.port().to_string()]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start bash")?;
        let told = child.stdin.take().context("standard input")?;
        let says = BufReader::new(child.stdout.take().context("standard output")?);
        let mut speaker = Self { child, told, says };
        ensure!(speaker.line()? == "connected", "{to}");
        Ok(speaker)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.says.read_line(&mut line).context("read")?;
        Ok(line.trim().to_owned())
    }

    /// Sends one byte; what became of it.
    fn send(&mut self) -> Result<String> {
        self.told.write_all(b"\n").context("write")?;
        self.line()
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// S45: when an endpoint leaves its Service for good, connections of Pods that the Service led there at `connect` are
/// reset, on this node and on another. One that asked for the Pod itself goes on.
pub(crate) fn connections_end_with_their_backend() -> Result<()> {
    let cluster = Cluster::builder("led").nodes(2).start()?;
    let server = cluster.pod("node-a", "server").label("app", "led").start()?;
    let clients = [cluster.pod("node-a", "near").start()?, cluster.pod("node-b", "far").start()?];
    cluster.apply(SERVICE)?;
    let ips = cluster.wait_service("led", 1)?;
    let (mut led, mut plain) = (Vec::new(), Vec::new());
    for client in &clients {
        for ip in &ips {
            let to = SocketAddr::new(ip.parse()?, 80);
            led.push(eventually::succeeds("the Service connects", || Speaker::start(client, to))?);
            let own = server.address(to.is_ipv6());
            plain.push(Speaker::start(client, SocketAddr::new(own, 8080))?);
        }
    }
    for speaker in led.iter_mut().chain(&mut plain) {
        ensure!(speaker.send()? == "sent", "before");
    }
    cluster.kubectl(&["label", "pod", "server", "app=other", "--overwrite"])?;
    cluster.wait_service("led", 0)?;
    for speaker in &mut led {
        eventually::succeeds("the connection is reset", || {
            ensure!(speaker.send()? == "lost", "still there");
            Ok(())
        })?;
    }
    for speaker in &mut plain {
        for _ in 0..2 {
            ensure!(speaker.send()? == "sent", "it asked for the Pod itself");
        }
    }
    cluster.stop()
}
