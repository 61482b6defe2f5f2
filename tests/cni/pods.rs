//! Pods that talk: to each other through the host, and within one namespace.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quilla_tests::command::Run;

use crate::node::{Node, addresses};
use crate::process::ROLE;

/// Both families, both directions, with nothing but what ADD made (the host forwards in place of the data path).
pub(crate) fn two_pods_reach_each_other() -> Result<()> {
    let node = Node::start("pod-pod")?;
    // IPv6 has no forwarding per interface.
    node.host.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    let (left, right) = (node.pod("left")?, node.pod("right")?);
    let (left_result, right_result) = (node.add(&left)?, node.add(&right)?);
    let directions =
        [(&left, &left_result, &right, &right_result), (&right, &right_result, &left, &left_result)];
    for (client, client_result, server, server_result) in directions {
        // One for both families: a port listened on stays taken while a forked child has not yet executed.
        let listener = server.netns.run(|| TcpListener::bind("[::]:8080"))?.context("listen")?;
        for (mine, theirs) in addresses(client_result).iter().zip(addresses(server_result)) {
            let address = SocketAddr::new(theirs.parse::<IpAddr>()?, 8080);
            let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(10));
            let mut stream = client.netns.run(connect)?.with_context(|| format!("{mine} to {theirs}"))?;
            let (mut accepted, from) = listener.accept().context("accept")?;
            ensure!(from.ip().to_canonical() == mine.parse::<IpAddr>()?, "{from} is not {mine}");
            stream.write_all(b"words").context("write")?;
            drop(stream);
            let mut words = String::new();
            accepted.read_to_string(&mut words).context("read")?;
            ensure!(words == "words", "{words}");
        }
    }
    Ok(())
}

/// Containers of a Pod share its namespace: two processes talk over localhost and hold one address.
pub(crate) fn two_processes_of_one_pod() -> Result<()> {
    let node = Node::start("one-pod")?;
    let pod = node.pod("pod")?;
    let result = node.add(&pod)?;
    let program = env::current_exe().context("find this program")?;
    let program = program.to_str().context("path of this program")?;
    let mut server = pod.netns.command(program);
    let mut server = server.env(ROLE, "server").stdout(Stdio::piped()).spawn().context("start the server")?;
    let mut first_line = String::new();
    BufReader::new(server.stdout.take().context("standard output")?).read_line(&mut first_line)?;
    ensure!(first_line == "listening\n", "{first_line}");
    let seen = pod.netns.command(program).env(ROLE, "client").text();
    if seen.is_err() {
        drop(server.kill());
    }
    ensure!(server.wait().context("wait for the server")?.success() || seen.is_err(), "the server failed");
    let address = &addresses(&result)[0];
    ensure!(seen?.trim() == format!("{address} {address}"), "not one address: {address}");
    Ok(())
}
