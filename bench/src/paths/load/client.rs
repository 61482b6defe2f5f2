//! The end that asks, and measures.

use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use rustix::net::sockopt::set_socket_linger;

use super::{PATIENCE, Window, say};
use crate::paths::metric::Metric;

/// Transactions between two looks at the clock.
const BATCH: u64 = 16;

/// Measures until its input ends. Each line of input is a metric and milliseconds.
pub(super) fn run(server: IpAddr, core: usize) -> Result<()> {
    say("ready")?;
    for line in io::stdin().lock().lines() {
        let line = line.context("read the next request")?;
        let (metric, milliseconds) =
            line.split_once(' ').with_context(|| format!("not a request: {line}"))?;
        let metric = Metric::from_str(metric, false).map_err(anyhow::Error::msg)?;
        let length =
            Duration::from_millis(milliseconds.parse().with_context(|| format!("not a request: {line}"))?);
        let open = || Window::open(core, length);
        let place = (server, metric.port());
        let report = match metric {
            Metric::TcpRr => ask_stream(place, open),
            Metric::TcpCrr => connect_often(place, open, true),
            Metric::TcpCrrFin => connect_often(place, open, false),
            Metric::UdpRr => ask_datagrams(place, open),
            Metric::Stream | Metric::StreamGsoOff => send(place, open),
        };
        say(&report.unwrap_or_else(|error| format!("failed: {error:#}")))?;
    }
    Ok(())
}

type Place = (IpAddr, u16);

fn connect(place: Place) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&place.into(), PATIENCE)
        .with_context(|| format!("connect to {place:?}"))?;
    stream.set_read_timeout(Some(PATIENCE)).context("limit the wait")?;
    stream.set_nodelay(true).context("send at once")?;
    Ok(stream)
}

fn ask_stream(place: Place, open: impl Fn() -> Result<Window>) -> Result<String> {
    let mut stream = connect(place)?;
    let (mut count, mut byte) = (0, [1]);
    let window = open()?;
    while window.is_open() {
        for _ in 0..BATCH {
            stream.write_all(&byte).context("ask")?;
            stream.read_exact(&mut byte).context("wait for the answer")?;
        }
        count += BATCH;
    }
    window.close(count)
}

/// Whether closed by reset or FIN, the server has nothing left to send.
fn connect_often(place: Place, open: impl Fn() -> Result<Window>, reset: bool) -> Result<String> {
    let (mut count, mut byte) = (0, [1]);
    let window = open()?;
    while window.is_open() {
        let mut stream = TcpStream::connect(place).with_context(|| format!("connect to {place:?}"))?;
        stream.write_all(&byte).context("ask")?;
        stream.read_exact(&mut byte).context("wait for the answer")?;
        if reset {
            set_socket_linger(&stream, Some(Duration::ZERO)).context("ask for a reset")?;
        }
        drop(stream);
        count += 1;
    }
    window.close(count)
}

fn ask_datagrams(place: Place, open: impl Fn() -> Result<Window>) -> Result<String> {
    let any = if place.0.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(any).context("bind")?;
    socket.connect(place).with_context(|| format!("connect to {place:?}"))?;
    socket.set_read_timeout(Some(PATIENCE)).context("limit the wait")?;
    let (mut count, mut byte) = (0, [1]);
    let window = open()?;
    while window.is_open() {
        for _ in 0..BATCH {
            socket.send(&byte).context("ask")?;
            socket.recv(&mut byte).context("wait for the answer")?;
        }
        count += BATCH;
    }
    window.close(count)
}

/// The time ends when the server has said how much it received.
fn send(place: Place, open: impl Fn() -> Result<Window>) -> Result<String> {
    let mut stream = connect(place)?;
    let block = vec![0x5a; 128 * 1024];
    let mut sent = 0_u64;
    let window = open()?;
    while window.is_open() {
        stream.write_all(&block).context("send")?;
        sent += block.len() as u64;
    }
    stream.shutdown(Shutdown::Write).context("end the stream")?;
    let mut received = [0; 8];
    stream.read_exact(&mut received).context("wait for the server's count")?;
    let received = u64::from_be_bytes(received);
    ensure!(received == sent, "{received} of {sent} bytes arrived");
    window.close(sent)
}
