//! S18, S20, S22, S24 at socket time: who is translated there, and who fails at once.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use quilla_abi::config::Config;
use quilla_abi::service::{Service, flag, scope};
use quilla_tests::cgroup::Cgroup;
use quilla_tests::sandbox::Sandbox;

use crate::led::{Pinned, led};
use crate::rig::{Family, Rig, TCP, UDP, Who, namespace};

/// The kernel has no test run for these programs: real sockets of a process in a cgroup of its own.
pub(crate) fn connect() -> Result<()> {
    let netns = namespace("sockets")?;
    let cgroup = Cgroup::create(&Sandbox::current()?.cgroup().join("sockets"))?;
    netns.run(|| {
        let mut rig = Rig::load("sockets", false)?;
        rig.datapath.attach_sockets(cgroup.path())?;
        for (family, loopback) in [(Family::V4, "127.0.0.1:0"), (Family::V6, "[::1]:0")] {
            let service = family.ip(Who::Service(16));
            let refused = dial(&cgroup, &service.to_string())?;
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(!refused.status.success() && said.contains("refused"), "{family:?}: {said}");
            let listener = TcpListener::bind(loopback)?;
            rig.set_service(family, 16, TCP, &[listener.local_addr()?])?;
            let connected = dial(&cgroup, &service.to_string())?;
            let said = String::from_utf8_lossy(&connected.stderr).into_owned();
            ensure!(connected.status.success(), "{family:?}: {said}");
            listener.accept().context("the connection arrived")?;
            // The socket is gone, and so is what was remembered of it.
            let maps = rig.datapath.maps();
            ensure!(
                maps.sockets_v4.entries()?.is_empty() && maps.sockets_v6.entries()?.is_empty(),
                "not released"
            );
        }
        rig.datapath.detach_sockets()?;
        Ok(())
    })?
}

/// Connects to port 80 from inside the cgroup.
fn dial(cgroup: &Cgroup, address: &str) -> Result<Output> {
    let members = cgroup.path().join("cgroup.procs");
    ensure!(fs::exists(&members)?, "no {}", members.display());
    let script = format!("echo $$ > {} && exec 3<>/dev/tcp/{address}/80", members.display());
    Command::new("bash").args(["-c", &script]).output().context("run bash")
}

/// What a row asks for, and whether a Pod's and the node's connections are translated at the socket.
const ROWS: [(u32, u32, bool, bool); 5] = [
    (0, 0, true, true),
    (flag::MAGLEV, 0, true, true),
    (0, 100, false, true),
    (flag::LEAST_CONNECTIONS, 0, false, true),
    (flag::SOURCE_RANGES | flag::NODE_ALLOWED, 0, false, true),
];

/// S18, S24, S26: what depends on the client is left to a Pod's device; processes of the node have none. The Service's
/// address is one of the namespace's own here, so that a connection that is left alone arrives, too.
pub(crate) fn policies() -> Result<()> {
    let netns = namespace("policies")?;
    for family in Family::BOTH {
        netns.ip(&format!("addr add {} dev lo", family.ip(Who::Vip(1))))?;
    }
    let cgroup = Cgroup::create(&Sandbox::current()?.cgroup().join("policies"))?;
    netns.run(|| {
        let mut rig = Rig::load("policies", false)?;
        rig.datapath.attach_sockets(cgroup.path())?;
        for (family, loopback) in [(Family::V4, "127.0.0.1:0"), (Family::V6, "[::1]:0")] {
            let vip = family.at(Who::Vip(1), 80);
            let (own, backend) = (TcpListener::bind(vip)?, TcpListener::bind(loopback)?);
            for listener in [&own, &backend] {
                listener.set_nonblocking(true)?;
            }
            for (flags, affinity_seconds, pod, node) in ROWS {
                let row = Service { id: 6, flags, affinity_seconds, ..Service::default() };
                rig.serve((vip, TCP), scope::INTERNAL, row, &[backend.local_addr()?])?;
                for (of_node, translated) in [(false, pod), (true, node)] {
                    be(&rig, of_node)?;
                    let connected = dial(&cgroup, &vip.ip().to_string())?;
                    let said = String::from_utf8_lossy(&connected.stderr).into_owned();
                    ensure!(connected.status.success(), "{family:?} {flags:x}: {said}");
                    let arrived = if translated { backend.accept() } else { own.accept() };
                    arrived.with_context(|| format!("{family:?} {flags:x}, node {of_node}"))?;
                }
            }
            // The node is one client.
            let maps = rig.datapath.maps();
            let clients = match family {
                Family::V4 => {
                    maps.affinity_v4.entries()?.iter().map(|(key, _)| key.client == [0; 4]).collect()
                }
                Family::V6 => maps
                    .affinity_v6
                    .entries()?
                    .iter()
                    .map(|(key, _)| key.client == [0; 16])
                    .collect::<Vec<_>>(),
            };
            ensure!(clients == [true], "{clients:?}");
            refused(&mut rig, &cgroup, family, vip, backend.local_addr()?)?;
            counted(&mut rig, &cgroup, vip, backend.local_addr()?)?;
            datagrams(&mut rig, &cgroup, family)?;
        }
        rig.datapath.detach_sockets()?;
        Ok(())
    })?
}

/// Takes the namespace for the node's own, or for a Pod's.
pub(crate) fn be(rig: &Rig, node: bool) -> Result<()> {
    let cookie = quilla_datapath::netns::cookie()?;
    let [low, high] = [cookie, cookie >> 32].map(|half| (half & 0xffff_ffff) as u32);
    let netns_cookie = if node { [low, high] } else { [0; 2] };
    Ok(rig.datapath.maps().config.set(0, &Config { netns_cookie, ..Rig::config() })?)
}

/// S22, S24: the node where it may not be, and at an address that nobody has.
fn refused(
    rig: &mut Rig,
    cgroup: &Cgroup,
    family: Family,
    vip: SocketAddr,
    backend: SocketAddr,
) -> Result<()> {
    be(rig, true)?;
    let row = Service { id: 6, flags: flag::SOURCE_RANGES, ..Service::default() };
    rig.serve((vip, TCP), scope::INTERNAL, row, &[backend])?;
    for (address, words) in [(vip.ip(), "not permitted"), (family.ip(Who::Service(99)), "refused")] {
        let output = dial(cgroup, &address.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(words), "{address}: {said}");
    }
    Ok(())
}

/// A socket of the node counts for its backend until it is released.
fn counted(rig: &mut Rig, cgroup: &Cgroup, vip: SocketAddr, backend: SocketAddr) -> Result<()> {
    let row = Service { id: 6, flags: flag::LEAST_CONNECTIONS, ..Service::default() };
    rig.serve((vip, TCP), scope::INTERNAL, row, &[backend])?;
    ensure!(rig.load_of((backend, TCP))?.connections == 0, "what came before is released");
    let open = while_connected(cgroup, vip, || Ok(rig.load_of((backend, TCP))?.connections))?;
    ensure!(open == 1, "{open}");
    ensure!(rig.load_of((backend, TCP))?.connections == 0, "released");
    Ok(())
}

/// Looks at something while a process in the cgroup has a connection.
fn while_connected<T>(cgroup: &Cgroup, to: SocketAddr, look: impl FnOnce() -> Result<T>) -> Result<T> {
    let script = format!(
        "echo $$ > {} && exec 3<>/dev/tcp/{}/{} && echo connected && read",
        cgroup.path().join("cgroup.procs").display(),
        to.ip(),
        to.port()
    );
    let mut child = Command::new("bash")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("run bash")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
    let seen = look();
    drop(child.stdin.take());
    child.wait()?;
    ensure!(line.trim() == "connected", "{to}: {line}");
    seen
}

/// S45: a socket that a Service led to a backend in vain, and that then asks for the backend itself, is not the Service's
/// any more.
pub(crate) fn led_before() -> Result<()> {
    let netns = namespace("led-before")?;
    for family in Family::BOTH {
        netns.ip(&format!("addr add {} dev lo", family.ip(Who::Vip(1))))?;
    }
    let cgroup = Cgroup::create(&Sandbox::current()?.cgroup().join("led-before"))?;
    netns.run(|| {
        let mut rig = Rig::load("led-before", false)?;
        rig.datapath.attach_sockets(cgroup.path())?;
        let _pinned = Pinned::here()?;
        for family in Family::BOTH {
            let backend = family.at(Who::Vip(1), 80);
            let _listener = TcpListener::bind(backend)?;
            let rows = |rig: &Rig| -> Result<usize> {
                let maps = rig.datapath.maps();
                Ok(maps.sockets_v4.entries()?.len() + maps.sockets_v6.entries()?.len())
            };
            let (before, left) = led(
                &mut rig,
                backend,
                |rig| Ok((rows(rig)?, while_connected(&cgroup, backend, || rows(rig))?)),
                |_| Ok(()),
            )?;
            ensure!(left + 1 == before, "{family:?}: {left} of {before} rows are left");
        }
        rig.datapath.detach_sockets()?;
        Ok(())
    })?
}

/// S45, E18: a Pod's datagrams are left to its device; the node's are translated.
fn datagrams(rig: &mut Rig, cgroup: &Cgroup, family: Family) -> Result<()> {
    let (vip, backend) = (family.at(Who::Service(12), 53), family.at(Who::PodB, 5353));
    rig.set_service(family, 12, UDP, &[backend])?;
    for (of_node, port) in [(false, vip.port()), (true, backend.port())] {
        be(rig, of_node)?;
        let script = format!(
            "echo $$ > {} && exec 3<>/dev/udp/{}/53 && cat /proc/self/net/udp /proc/self/net/udp6",
            cgroup.path().join("cgroup.procs").display(),
            vip.ip()
        );
        let output = Command::new("bash").args(["-c", &script]).output().context("run bash")?;
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(table.contains(&format!(":{port:04X} ")), "{family:?}, node {of_node}: {table}");
    }
    Ok(())
}
