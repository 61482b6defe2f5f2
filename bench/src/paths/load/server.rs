//! The end that answers: one thread for each kind of load, of which only one has work at a time.

use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result};

use super::{processor_time, say};
use crate::paths::metric::Metric;

/// Answers given, and bytes received in streams.
#[derive(Default)]
struct Done {
    answers: AtomicU64,
    bytes: AtomicU64,
}

/// Serves until its input ends. Each line of input is answered: answers, bytes, nanoseconds of processor time.
pub(super) fn run(address: IpAddr) -> Result<()> {
    let done = Arc::new(Done::default());
    serve(address, Metric::TcpRr, &done, echo)?;
    serve(address, Metric::TcpCrr, &done, echo)?;
    serve(address, Metric::Stream, &done, receive)?;
    let place = (address, Metric::UdpRr.port());
    let socket = UdpSocket::bind(place).with_context(|| format!("bind {place:?}"))?;
    let counted = Arc::clone(&done);
    thread::spawn(move || echo_datagrams(&socket, &counted));
    say("ready")?;
    for line in io::stdin().lock().lines() {
        line.context("read the next request")?;
        let [answers, bytes] = [&done.answers, &done.bytes].map(|count| count.load(Ordering::Relaxed));
        say(&format!("{answers} {bytes} {}", processor_time().as_nanos()))?;
    }
    Ok(())
}

fn serve(
    address: IpAddr,
    metric: Metric,
    done: &Arc<Done>,
    talk: fn(TcpStream, &Done) -> io::Result<()>,
) -> Result<()> {
    let place = (address, metric.port());
    let listener = TcpListener::bind(place).with_context(|| format!("listen at {place:?}"))?;
    let done = Arc::clone(done);
    thread::spawn(move || {
        // How a connection ends is the client's affair: it checks the count.
        for stream in listener.incoming().flatten() {
            drop(talk(stream, &done));
        }
    });
    Ok(())
}

/// Answers each byte with itself until the client closes.
fn echo(mut stream: TcpStream, done: &Done) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        done.answers.fetch_add(1, Ordering::Relaxed);
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn echo_datagrams(socket: &UdpSocket, done: &Done) {
    let mut byte = [0];
    while let Ok((length, client)) = socket.recv_from(&mut byte) {
        done.answers.fetch_add(1, Ordering::Relaxed);
        drop(socket.send_to(&byte[..length], client));
    }
}

/// Takes all that comes, then says how much it was.
fn receive(mut stream: TcpStream, done: &Done) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut received = 0;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        received += length as u64;
    }
    done.bytes.fetch_add(received, Ordering::Relaxed);
    stream.write_all(&received.to_be_bytes())
}
