//! The container of harness Pods: answers on each of its ports, over TCP and UDP, and says who it is.
//!
//! `GET` is answered with the Pod's name, and with the caller's address in a header; any other bytes are echoed. A
//! datagram `who` is answered with the name, `from` with the caller's address, any other is echoed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

#[derive(Debug, Parser)]
struct Options {
    /// What to call oneself.
    #[arg(long)]
    name: String,
    /// Ports to serve.
    #[arg(long)]
    port: Vec<u16>,
    /// Addresses to serve on. A host with several needs them named: from a socket that is bound to none, the answer to
    /// a datagram may leave with another address than was asked.
    #[arg(long = "address", default_value = "::")]
    addresses: Vec<IpAddr>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let name: Arc<str> = options.name.into();
    let mut servers = JoinSet::new();
    for port in options.port {
        // The unspecified IPv6 address takes callers of both families.
        for address in options.addresses.iter().map(|ip| SocketAddr::new(*ip, port)) {
            let listener =
                TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
            let socket = UdpSocket::bind(address).await.with_context(|| format!("bind {address}"))?;
            servers.spawn(serve_streams(listener, Arc::clone(&name)));
            servers.spawn(serve_datagrams(socket, Arc::clone(&name)));
        }
    }
    println!("{name} is ready");
    while let Some(ended) = servers.join_next().await {
        ended.context("a server panicked")??;
    }
    // Without ports there is nothing to do but to exist.
    std::future::pending().await
}

async fn serve_streams(listener: TcpListener, name: Arc<str>) -> Result<()> {
    loop {
        let (stream, peer) = listener.accept().await.context("accept")?;
        let name = Arc::clone(&name);
        // A broken connection is the caller's affair: it sees it too.
        tokio::spawn(async move { drop(converse(stream, peer, &name).await) });
    }
}

async fn converse(mut stream: TcpStream, peer: SocketAddr, name: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        if buffer[..length].starts_with(b"GET ") {
            let mut head = buffer[..length].to_vec();
            while !head.ends_with(b"\r\n\r\n") && head.len() < buffer.len() {
                head.push(stream.read_u8().await?);
            }
            let caller = caller(peer);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Caller: {caller}\r\nConnection: close\r\n\r\n{name}\n",
                name.len() + 1
            );
            stream.write_all(answer.as_bytes()).await?;
            return Ok(stream.shutdown().await?);
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

async fn serve_datagrams(socket: UdpSocket, name: Arc<str>) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // An ICMP error about an earlier answer is reported here, and concerns nobody else.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = match &buffer[..length] {
            b"who" => name.as_bytes().to_vec(),
            b"from" => caller(peer).into_bytes(),
            other => other.to_vec(),
        };
        drop(socket.send_to(&answer, peer).await);
    }
}

/// IPv4 callers by their IPv4 address.
fn caller(peer: SocketAddr) -> String {
    SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string()
}
