//! The client of harness Pods: asks a `quilla-pod` who it is, and notices every lie about addresses on the way.
//!
//! Prints one line per answer: the server's name and the caller's address as the server saw it. Fails at the first
//! answer that is missing, comes from another address than was asked, or differs from what was sent.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Protocol {
    /// One HTTP request per connection.
    Http,
    /// Datagrams from an unconnected socket.
    Udp,
    /// Datagrams from a connected socket.
    UdpConnected,
    /// A stream of bytes there and back.
    Echo,
}

#[derive(Debug, Parser)]
struct Options {
    /// Whom to ask.
    target: SocketAddr,
    /// How to ask.
    #[arg(long, value_enum, default_value_t = Protocol::Http)]
    protocol: Protocol,
    /// How often, each time from a new socket.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Length of the stream of `echo`, or of each datagram beyond the question.
    #[arg(long, default_value_t = 0)]
    bytes: usize,
    /// An answer later than this is missing.
    #[arg(long, default_value_t = 5)]
    patience_seconds: u64,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    for number in 0..options.count {
        let answer = match options.protocol {
            Protocol::Http => http(options),
            Protocol::Udp => udp(options, false),
            Protocol::UdpConnected => udp(options, true),
            Protocol::Echo => echo(options),
        };
        let answer = answer.with_context(|| format!("question {number} to {}", options.target))?;
        println!("{answer}");
    }
    Ok(())
}

fn connect(options: &Options) -> Result<TcpStream> {
    let patience = Duration::from_secs(options.patience_seconds);
    let stream = TcpStream::connect_timeout(&options.target, patience).context("connect")?;
    stream.set_read_timeout(Some(patience)).context("set the time limit")?;
    let peer = stream.peer_addr().context("getpeername")?;
    ensure!(peer == options.target, "getpeername says {peer}");
    Ok(stream)
}

fn http(options: &Options) -> Result<String> {
    let mut stream = connect(options)?;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", options.target);
    stream.write_all(request.as_bytes()).context("send")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receive")?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("not an answer: {answer:?}"))?;
    let caller = head.lines().find_map(|line| line.strip_prefix("X-Caller: "));
    Ok(format!("{} {}", body.trim(), caller.context("no X-Caller in the answer")?))
}

fn udp(options: &Options, connected: bool) -> Result<String> {
    let any: SocketAddr = match options.target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).context("bind")?;
    socket
        .set_read_timeout(Some(Duration::from_secs(options.patience_seconds)))
        .context("set the time limit")?;
    if connected {
        socket.connect(options.target).context("connect")?;
        let peer = socket.peer_addr().context("getpeername")?;
        ensure!(peer == options.target, "getpeername says {peer}");
    }
    let question = |text: &[u8]| -> Result<Vec<u8>> {
        let sent = if connected { socket.send(text) } else { socket.send_to(text, options.target) };
        sent.context("send")?;
        let mut answer = vec![0; text.len().max(512)];
        let (length, from) = socket.recv_from(&mut answer).context("receive")?;
        ensure!(from == options.target, "answered from {from}");
        answer.truncate(length);
        Ok(answer)
    };
    let long = pattern(options.bytes);
    ensure!(question(&long)? == long, "the echo of {} bytes differs", long.len());
    let (name, caller) = (question(b"who")?, question(b"from")?);
    Ok(format!("{} {}", String::from_utf8(name)?, String::from_utf8(caller)?))
}

/// Writes and reads at the same time: either side's buffers are smaller than the stream.
fn echo(options: &Options) -> Result<String> {
    let mut stream = connect(options)?;
    let sent = pattern(options.bytes);
    let (mut writer, body) = (stream.try_clone().context("share the stream")?, sent.clone());
    let sender = thread::spawn(move || writer.write_all(&body));
    let mut received = vec![0; sent.len()];
    stream.read_exact(&mut received).context("receive")?;
    let Ok(outcome) = sender.join() else { bail!("the sender panicked") };
    outcome.context("send")?;
    ensure!(received == sent, "the echo of {} bytes differs", sent.len());
    Ok(format!("echoed {} bytes", sent.len()))
}

/// Bytes that show a shift, a loss and a repetition.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 251) % 251).unwrap_or_default()).collect()
}
