//! A stream there and back between two Pods, whole windows at a time, of which every byte is compared.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quilla_tests::eventually;
use quilla_tests::netns::run_inside;
use quilla_tests::pod::Pod;

/// Where the harness's own server of a Pod echoes.
const PORT: u16 = 8080;
/// Bytes at once: several of the largest packets that the kernel makes.
const CHUNK: usize = 200_000;
/// Between two chunks: fast enough to fill windows, slow enough to leave others the processor.
const PAUSE: Duration = Duration::from_millis(10);
/// Longer than TCP waits to repeat what got lost, again and again.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running stream.
#[derive(Debug)]
pub(crate) struct Bulk {
    name: String,
    stream: TcpStream,
    stop: Arc<AtomicBool>,
    echoed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Bulk {
    /// From one Pod to the other and back.
    pub(crate) fn start(from: &Pod, to: &Pod, v6: bool) -> Result<Self> {
        Self::to(from, to.name(), SocketAddr::new(to.address(v6), PORT))
    }

    /// From a Pod to whoever echoes there and back.
    pub(crate) fn to(from: &Pod, whom: &str, target: SocketAddr) -> Result<Self> {
        let connect = || TcpStream::connect_timeout(&target, PATIENCE);
        let stream = run_inside(from.netns(), connect)?.with_context(|| format!("connect to {target}"))?;
        stream.set_read_timeout(Some(PATIENCE)).context("set the time limit")?;
        stream.set_write_timeout(Some(PATIENCE)).context("set the time limit")?;
        let (stop, echoed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ended, writer) = (Arc::clone(&stop), stream.try_clone().context("share the stream")?);
        let (count, reader) = (Arc::clone(&echoed), stream.try_clone().context("share the stream")?);
        let threads =
            vec![thread::spawn(move || write(writer, &ended)), thread::spawn(move || read(reader, &count))];
        let name = format!("{} to {whom} at {target}", from.name());
        Ok(Self { name, stream, stop, echoed, threads })
    }

    /// Waits until another few megabytes went there and back.
    pub(crate) fn goes_on(&self) -> Result<()> {
        let before = self.echoed.load(Ordering::Relaxed);
        eventually::succeeds("the stream goes on", || {
            let now = self.echoed.load(Ordering::Relaxed);
            ensure!(now > before + 20 * CHUNK as u64, "{}: {} bytes more", self.name, now - before);
            Ok(())
        })
    }

    /// Ends it in order; an error, if it was broken, or if a byte is missing or another one. What was echoed.
    pub(crate) fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let Ok(ended) = thread.join() else { bail!("{}: a thread panicked", self.name) };
            ended.with_context(|| self.name.clone())?;
        }
        Ok(self.echoed.load(Ordering::Relaxed))
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It may be over already.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

/// The byte at a place of the stream.
fn byte(at: u64) -> u8 {
    u8::try_from((at * 31 + at / 251) % 251).unwrap_or_default()
}

fn write(mut stream: TcpStream, stop: &AtomicBool) -> Result<()> {
    let mut at = 0;
    while !stop.load(Ordering::Relaxed) {
        let chunk: Vec<u8> = (at..at + CHUNK as u64).map(byte).collect();
        stream.write_all(&chunk).with_context(|| format!("write after {at} bytes"))?;
        at += CHUNK as u64;
        thread::sleep(PAUSE);
    }
    stream.shutdown(Shutdown::Write).context("end the stream")
}

fn read(mut stream: TcpStream, echoed: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let length = stream.read(&mut buffer).with_context(|| format!("read after {at} bytes"))?;
        if length == 0 {
            return Ok(());
        }
        let right = buffer[..length].iter().zip(at..).all(|(found, at)| *found == byte(at));
        ensure!(right, "other bytes after {at}");
        at += length as u64;
        echoed.store(at, Ordering::Relaxed);
    }
}
