//! Connections to a backend that leaves its Service: they end with it, wherever they were translated, and no others do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_tests::cluster::Cluster;
use quilla_tests::command::Run;
use quilla_tests::eventually;
use quilla_tests::netns::run_inside;
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
  - {name: push, port: 81, targetPort: 7070, protocol: TCP}
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

/// A process with one connection from which it only reads.
struct Reader {
    child: Child,
    complaints: ChildStderr,
}

impl Reader {
    fn start(mut command: Command, to: SocketAddr) -> Result<Self> {
        let script = "exec 3<>/dev/tcp/$0/$1 && echo connected && exec cat <&3 >/dev/null";
        command.args(["-c", script, &to.ip().to_string(), &to.port().to_string()]);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start bash")?;
        let complaints = child.stderr.take().context("standard error")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("standard output")?).read_line(&mut line)?;
        let reader = Self { child, complaints };
        ensure!(line.trim() == "connected", "{to}");
        Ok(reader)
    }

    /// Waits until its read has failed, and says how.
    fn end(&mut self) -> Result<String> {
        eventually::succeeds("the read ends", || self.child.try_wait()?.context("still reading"))?;
        let mut said = String::new();
        self.complaints.read_to_string(&mut said)?;
        Ok(said)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How many connections a Pod's sockets have with this peer, as they know it themselves.
fn peers(pod: &Pod, peer: SocketAddr) -> Result<usize> {
    let mut command = pod.command("ss");
    command.args(["--no-header", "--numeric", "--tcp", "state", "established", "dst", &peer.to_string()]);
    Ok(command.text()?.lines().count())
}

/// S45: when an endpoint leaves its Service for good, connections of Pods that the Service led there at `connect` are
/// reset, on this node and on another. One that asked for the Pod itself goes on.
///
/// Whoever only reads hears of it when the server sends something, and so does the server; led at the socket and per
/// packet, on the server's node and on another.
pub(crate) fn connections_end_with_their_backend() -> Result<()> {
    let cluster = Cluster::builder("led").nodes(2).start()?;
    let server = cluster.pod("node-a", "server").label("app", "led").start()?;
    let clients = [cluster.pod("node-a", "near").start()?, cluster.pod("node-b", "far").start()?];
    let listener = run_inside(server.netns(), || TcpListener::bind((Ipv6Addr::UNSPECIFIED, 7070)))??;
    cluster.apply(SERVICE)?;
    let ips = cluster.wait_service("led", 1)?;
    let (mut led, mut plain) = (Vec::new(), Vec::new());
    let (mut readers, mut told, mut others_accepted) = (Vec::new(), Vec::new(), Vec::new());
    for client in &clients {
        for ip in &ips {
            let ip = ip.parse()?;
            let [to, pushes] = [80, 81].map(|port| SocketAddr::new(ip, port));
            led.push(eventually::succeeds("the Service connects", || Speaker::start(client, to))?);
            led.push(Speaker::start(client, pushes)?);
            others_accepted.push(listener.accept().context("accept")?.0);
            let own = |port| SocketAddr::new(server.address(to.is_ipv6()), port);
            plain.push(Speaker::start(client, own(8080))?);
            for command in [client.command("bash"), client.command_without_hooks("bash")] {
                readers.push(Reader::start(command, pushes)?);
                told.push(listener.accept().context("accept")?.0);
            }
            let seen = [own(8080), own(7070), to, pushes].map(|peer| peers(client, peer));
            let [eighty, led_there, none, per_packet] = seen;
            let seen = [eighty?, led_there?, none?, per_packet?];
            ensure!(seen == [2, 2, 0, 1], "led at the socket, or per packet: {seen:?}");
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
    push(&mut told, &mut readers)?;
    for speaker in &mut plain {
        for _ in 0..2 {
            ensure!(speaker.send()? == "sent", "it asked for the Pod itself");
        }
    }
    cluster.stop()
}

/// The server says something once, on connections of which their clients only read.
fn push(connections: &mut [TcpStream], readers: &mut [Reader]) -> Result<()> {
    for connection in &mut *connections {
        connection.write_all(b"an event\n").context("push")?;
    }
    for reader in readers {
        let said = reader.end()?;
        ensure!(said.contains("reset"), "it ended otherwise: {said}");
    }
    for connection in connections {
        eventually::succeeds("the server is told", || {
            ensure!(connection.write_all(b"more\n").is_err(), "still there");
            Ok(())
        })?;
    }
    Ok(())
}

const SILENT: &str = "
apiVersion: v1
kind: Service
metadata: {name: silent, namespace: default}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: led}
  ports:
  - {name: tcp, port: 80, targetPort: 9, protocol: TCP}
";

/// S20: whoever connects to where nobody listens is refused at once, on the Pod's node and on another; to the Pod itself, and
/// through a Service with it and without any endpoint, led at the socket and per packet.
pub(crate) fn where_nobody_listens_clients_are_refused() -> Result<()> {
    let cluster = Cluster::builder("silent").nodes(2).start()?;
    let server = cluster.pod("node-a", "server").label("app", "led").start()?;
    let clients = [cluster.pod("node-a", "near").start()?, cluster.pod("node-b", "far").start()?];
    cluster.apply(SILENT)?;
    let ips = cluster.wait_service("silent", 1)?;
    let refused = |to: SocketAddr| {
        for client in &clients {
            for mut command in [client.command("bash"), client.command_without_hooks("bash")] {
                command.args(["-c", "exec 3<>/dev/tcp/$0/$1", &to.ip().to_string(), &to.port().to_string()]);
                let output = command.output().context("run bash")?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(said.contains("Connection refused"), "{} to {to}: {said}", client.name());
            }
        }
        Ok(())
    };
    for ip in &ips {
        let ip: std::net::IpAddr = ip.parse()?;
        refused(SocketAddr::new(server.address(ip.is_ipv6()), 9))?;
        eventually::succeeds("the Service's Pod refuses", || refused(SocketAddr::new(ip, 80)))?;
    }
    cluster.kubectl(&["label", "pod", "server", "app=other", "--overwrite"])?;
    cluster.wait_service("silent", 0)?;
    for ip in &ips {
        eventually::succeeds("the Service refuses", || refused(SocketAddr::new(ip.parse()?, 80)))?;
    }
    cluster.stop()
}
