//! Readiness is a connection that went through the data path, not a configuration that was read.
//!
//! The agent has a Service of its own per family, on an address reserved for nobody, whose one backend is a listener in
//! the agent. A probe process joins the hooked control group and connects to the Service; the socket programs must
//! bring it to the listener, which answers with a random token.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quilla_abi::service::scope;
use quilla_plan::{BackendKey, FrontendKey};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::reconcile::View;

/// The dummy address of RFC 7600: no host has it.
const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);
/// In the discard-only prefix of RFC 6666.
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);
/// Port of both Services.
const PORT: u16 = 7;
/// How long a probe may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two probes while they fail, and while they pass.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Whether the data path works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The last probe of each family passed.
    Ready,
    /// Not yet, or not any more.
    NotReady {
        /// Why.
        reason: String,
    },
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The connection did not come about.
    #[error("{operation} {object}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else answered.
    #[error("{to} answered something else")]
    Answer {
        /// Who.
        to: SocketAddr,
    },
}

/// The listeners behind the agent's own Services.
#[derive(Debug)]
pub struct SelfTest {
    listeners: Vec<(SocketAddr, TcpListener)>,
    token: Arc<str>,
}

impl SelfTest {
    /// Listens on the loopback address of each family that the host has.
    pub async fn bind() -> io::Result<Self> {
        let mut listeners = Vec::new();
        let pairs = [
            (IpAddr::V4(SERVICE_V4), IpAddr::V4(Ipv4Addr::LOCALHOST)),
            (IpAddr::V6(SERVICE_V6), IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ];
        for (service, loopback) in pairs {
            match TcpListener::bind((loopback, 0)).await {
                Ok(listener) => listeners.push((SocketAddr::new(service, PORT), listener)),
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    tracing::info!(address = %loopback, "no loopback address, no self-test of the family");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self { listeners, token: format!("{:032x}", rand::random::<u128>()).into() })
    }

    /// The Services, for the planner's tables.
    pub fn services(&self) -> io::Result<Vec<(FrontendKey, BackendKey)>> {
        let protocol = quilla_model::Protocol::Tcp.number();
        let service = |(service, listener): &(SocketAddr, TcpListener)| {
            let local = listener.local_addr()?;
            let frontend =
                FrontendKey { address: service.ip(), port: service.port(), protocol, scope: scope::INTERNAL };
            Ok((frontend, BackendKey { address: local.ip(), port: local.port(), protocol }))
        };
        self.listeners.iter().map(service).collect()
    }

    /// Answers probes, and probes: as soon as the kernel is programmed, then for as long as the agent runs.
    pub async fn run(
        self,
        cgroup: PathBuf,
        mut view: watch::Receiver<Arc<View>>,
        readiness: watch::Sender<Readiness>,
        metrics: Arc<Metrics>,
        drain: CancellationToken,
    ) {
        let targets: Vec<_> = self.listeners.iter().map(|(service, _)| *service).collect();
        let mut answering = tokio::task::JoinSet::new();
        for (_, listener) in self.listeners {
            answering.spawn(answer(listener, Arc::clone(&self.token)));
        }
        let programmed = view.wait_for(|view| view.programmed);
        if !matches!(drain.run_until_cancelled(programmed).await, Some(Ok(_))) {
            return;
        }
        loop {
            let outcome = probe_all(&targets, &cgroup, &self.token).await;
            let ready = outcome == Readiness::Ready;
            metrics.ready(ready);
            report(&readiness.send_replace(outcome.clone()), &outcome);
            let pause = if ready { INTERVAL.1 } else { INTERVAL.0 };
            if drain.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }
}

fn report(before: &Readiness, now: &Readiness) {
    match now {
        _ if before == now => {}
        Readiness::Ready => tracing::info!("self-test passed"),
        Readiness::NotReady { reason } => tracing::warn!(reason, "self-test failed"),
    }
}

async fn answer(listener: TcpListener, token: Arc<str>) {
    loop {
        let answered = match listener.accept().await {
            Ok((mut stream, _)) => stream.write_all(token.as_bytes()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = answered {
            tracing::debug!(error = %error, "answer a probe");
            tokio::time::sleep(INTERVAL.0).await;
        }
    }
}

async fn probe_all(targets: &[SocketAddr], cgroup: &Path, token: &str) -> Readiness {
    for &to in targets {
        if let Err(reason) = probe_in_child(to, cgroup, token).await {
            return Readiness::NotReady { reason: format!("self-test through {to}: {reason}") };
        }
    }
    Readiness::Ready
}

/// A process of its own, because joining the group is for the whole process.
async fn probe_in_child(to: SocketAddr, cgroup: &Path, token: &str) -> Result<(), String> {
    // Not the path it was started by: an upgrade has put another program there, or none.
    let mut command = Command::new("/proc/self/exe");
    // The agent's own settings may be in the environment; the probe has none of them.
    command.env_clear();
    command.arg("probe").arg("--cgroup").arg(cgroup);
    command.args(["--to", &to.to_string(), "--token", token]).kill_on_drop(true);
    let finished = tokio::time::timeout(2 * TIMEOUT, command.output()).await;
    match finished {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ")),
        Ok(Err(error)) => Err(format!("run the probe: {error}")),
        Err(_) => Err("the probe hangs".into()),
    }
}

/// The probe itself, in its own process.
pub fn probe(cgroup: &Path, to: SocketAddr, token: &str) -> Result<(), ProbeError> {
    let failed = |operation, object: String| move |source| ProbeError::Io { operation, object, source };
    let members = cgroup.join("cgroup.procs");
    let joined = std::fs::write(&members, std::process::id().to_string());
    joined.map_err(failed("join", members.display().to_string()))?;
    let connected = TcpStream::connect_timeout(&to, TIMEOUT);
    let mut stream = connected.map_err(failed("connect to", to.to_string()))?;
    let mut answer = String::new();
    stream
        .set_read_timeout(Some(TIMEOUT))
        .and_then(|()| stream.flush())
        .and_then(|()| stream.read_to_string(&mut answer))
        .map_err(failed("read from", to.to_string()))?;
    if answer == token { Ok(()) } else { Err(ProbeError::Answer { to }) }
}
