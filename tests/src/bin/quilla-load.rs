//! TCP load with a conscience: every byte sent must come back, every connection counts.
//!
//! Holds long flows open, each echoing a numbered message over and over, and opens new connections at a steady rate.
//! Runs inside the namespace of a Pod against an echo server; prints one JSON object; fails if anything was lost.
//! With `--tell`, a line `established` comes before, when all long flows stand, and then one for each new connection:
//! when it began and when its answer was there, in nanoseconds since 1970, whom it was for, and the name of the Pod that
//! answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Parser)]
struct Options {
    /// Echo servers; flows are spread over them in turn.
    #[arg(long, required = true)]
    target: Vec<SocketAddr>,
    /// Echo servers for long flows only.
    #[arg(long)]
    long_target: Vec<SocketAddr>,
    /// Flows that live for the whole run.
    #[arg(long, default_value_t = 200)]
    long: usize,
    /// New connections per second.
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Between two messages of a long flow.
    #[arg(long, default_value_t = 20)]
    pause_milliseconds: u64,
    /// Tell of each new connection who answered.
    #[arg(long)]
    tell: bool,
    /// Length of the run, unless SIGTERM ends it earlier.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// An answer later than this counts as lost.
    #[arg(long, default_value_t = 5)]
    patience_seconds: u64,
}

#[derive(Debug, Default)]
struct Tally {
    long_messages: AtomicU64,
    long_broken: AtomicU64,
    connections: AtomicU64,
    connections_lost: AtomicU64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Arc::new(Options::parse());
    let tally = Arc::new(Tally::default());
    let end = CancellationToken::new();
    tokio::spawn(finish(Duration::from_secs(options.seconds), end.clone()));

    let mut tasks = JoinSet::new();
    let (starting, mut all_stand) = mpsc::channel(1);
    let targets = options.target.iter().chain(&options.long_target).copied().cycle();
    let targets: Vec<SocketAddr> = targets.take(options.long).collect();
    for (number, target) in targets.into_iter().enumerate() {
        let (options, tally, end) = (Arc::clone(&options), Arc::clone(&tally), end.clone());
        let starting = starting.clone();
        tasks.spawn(async move {
            if let Err(error) = long_flow(target, &options, &tally, &end, starting).await {
                tally.long_broken.fetch_add(1, Ordering::Relaxed);
                eprintln!("long flow {number} to {target}: {error:#}");
            }
        });
    }
    drop(starting);
    // Nobody sends: the channel ends when every flow has let go of it.
    all_stand.recv().await;
    if options.tell {
        println!("established");
    }
    let started = Instant::now();
    arrivals(&options, &tally, &end, &mut tasks).await;
    end.cancelled().await;
    let loaded = started.elapsed();
    while tasks.join_next().await.transpose()?.is_some() {}
    report(&options, &tally, loaded)
}

async fn finish(after: Duration, end: CancellationToken) -> Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("listen for signals")?;
    tokio::select! { () = sleep(after) => {}, _ = terminated.recv() => {} }
    end.cancel();
    Ok(())
}

/// Opens connections at the rate asked for, each for one message.
async fn arrivals(
    options: &Arc<Options>,
    tally: &Arc<Tally>,
    end: &CancellationToken,
    tasks: &mut JoinSet<()>,
) {
    if options.rate == 0 {
        return;
    }
    let mut tick = interval(Duration::from_secs(1) / u32::try_from(options.rate).unwrap_or(u32::MAX));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0.. {
        tick.tick().await;
        if end.is_cancelled() {
            return;
        }
        let (options, tally) = (Arc::clone(options), Arc::clone(tally));
        tasks.spawn(async move {
            let target = options.target[number % options.target.len()];
            tally.connections.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = one_message(target, &options, number as u64).await {
                tally.connections_lost.fetch_add(1, Ordering::Relaxed);
                eprintln!("connection {number} to {target}: {error:#}");
            }
        });
        while tasks.try_join_next().is_some() {}
    }
}

async fn long_flow(
    target: SocketAddr,
    options: &Options,
    tally: &Tally,
    end: &CancellationToken,
    starting: mpsc::Sender<()>,
) -> Result<()> {
    let mut stream = connect(target, options).await?;
    let (mut number, mut starting) = (0u64, Some(starting));
    while !end.is_cancelled() {
        echo(&mut stream, options, number).await?;
        drop(starting.take());
        tally.long_messages.fetch_add(1, Ordering::Relaxed);
        number += 1;
        sleep(Duration::from_millis(options.pause_milliseconds)).await;
    }
    Ok(())
}

async fn one_message(target: SocketAddr, options: &Options, number: u64) -> Result<()> {
    let begun = nanoseconds()?;
    let mut stream = connect(target, options).await?;
    if options.tell {
        let server = who(&mut stream, options).await?;
        println!("{begun} {} {target} {server}", nanoseconds()?);
        return Ok(());
    }
    echo(&mut stream, options, number).await?;
    stream.shutdown().await.context("shutdown")
}

fn nanoseconds() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH).context("clock")?.as_nanos())
}

/// The name of the Pod at the other end.
async fn who(stream: &mut TcpStream, options: &Options) -> Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.context("send")?;
    let mut answer = String::new();
    timeout(Duration::from_secs(options.patience_seconds), stream.read_to_string(&mut answer))
        .await
        .context("receive: no answer")?
        .context("receive")?;
    let (_, name) = answer.split_once("\r\n\r\n").with_context(|| format!("not an answer: {answer:?}"))?;
    Ok(name.trim().to_owned())
}

async fn connect(target: SocketAddr, options: &Options) -> Result<TcpStream> {
    let stream = timeout(Duration::from_secs(options.patience_seconds), TcpStream::connect(target))
        .await
        .context("connect: no answer")?
        .context("connect")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    Ok(stream)
}

async fn echo(stream: &mut TcpStream, options: &Options, number: u64) -> Result<()> {
    let sent = number.to_be_bytes();
    stream.write_all(&sent).await.context("send")?;
    let mut received = [0; 8];
    timeout(Duration::from_secs(options.patience_seconds), stream.read_exact(&mut received))
        .await
        .context("receive: no answer")?
        .context("receive")?;
    ensure!(received == sent, "sent {sent:?}, received {received:?}");
    Ok(())
}

fn report(options: &Options, tally: &Tally, loaded: Duration) -> Result<()> {
    let [messages, broken, connections, lost] =
        [&tally.long_messages, &tally.long_broken, &tally.connections, &tally.connections_lost]
            .map(|counter| counter.load(Ordering::Relaxed));
    println!(
        "{}",
        serde_json::json!({
            "longFlows": options.long,
            "longFlowsBroken": broken,
            "longMessages": messages,
            "connections": connections,
            "connectionsLost": lost,
        })
    );
    ensure!(broken == 0 && lost == 0, "{broken} flows broken, {lost} connections lost");
    was_generated(options, messages, connections, loaded)
}

/// Nothing lost of nothing sent proves nothing. Half the rate leaves room for a busy machine, and each flow that lives has
/// heard something within each time that an answer may take.
fn was_generated(options: &Options, messages: u64, connections: u64, loaded: Duration) -> Result<()> {
    let milliseconds = u64::try_from(loaded.as_millis())?;
    let asked = options.rate * milliseconds / 1000;
    ensure!(2 * connections >= asked, "only {connections} connections were made of {asked} asked for");
    let slowest = options.patience_seconds * 1000 + options.pause_milliseconds;
    let expected = options.long as u64 * (milliseconds / slowest).max(1);
    ensure!(
        messages >= expected,
        "only {messages} messages on {} long flows, at least {expected} are a load",
        options.long
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::{Options, Tally, report, was_generated};

    fn options() -> Options {
        let line = "quilla-load --target 192.0.2.1:80 --long 10 --rate 100 --pause-milliseconds 200";
        Options::parse_from(line.split(' '))
    }

    #[test]
    fn a_load_that_was_not_generated_is_a_failure() {
        let minute = Duration::from_mins(1);
        was_generated(&options(), 110, 3000, minute).unwrap();
        for (messages, connections) in [(110, 2999), (109, 3000), (0, 6000), (110, 0)] {
            let error = was_generated(&options(), messages, connections, minute).unwrap_err().to_string();
            assert!(error.starts_with("only "), "{error}");
        }
        // However short it was.
        was_generated(&options(), 9, 25, Duration::from_millis(500)).unwrap_err();
        was_generated(&options(), 10, 24, Duration::from_millis(500)).unwrap_err();
    }

    #[test]
    fn whatever_is_lost_is_a_failure() {
        for (broken, lost) in [(1, 0), (0, 1)] {
            let tally = Tally {
                long_messages: 10_000.into(),
                long_broken: broken.into(),
                connections: 100.into(),
                connections_lost: lost.into(),
            };
            report(&options(), &tally, Duration::from_secs(1)).unwrap_err();
        }
    }
}
