//! The agent's CNI server in this process, with a recorder as its data path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use quilla_agent::cni::{AttachError, AttachedEndpoint, Attacher, CniServer, CniServerConfig, Pools};
use quilla_cni_protocol::PodRef;
use tokio::runtime;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// What the data path was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Attach(AttachedEndpoint),
    Detach(AttachedEndpoint),
    Check(AttachedEndpoint),
}

/// How the data path behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Behaviour {
    #[default]
    Obey,
    Refuse,
    NotReady,
    /// Obeys when a plugin with a time-out of one second has given up.
    Late,
    Hang,
}

impl Behaviour {
    fn refusal(self) -> Option<AttachError> {
        match self {
            Self::NotReady => Some(AttachError::NotReady { reason: "on purpose".into() }),
            Self::Refuse => Some(AttachError::Failed {
                operation: "load program for",
                object: "the test".into(),
                source: "on purpose".into(),
            }),
            Self::Obey | Self::Late | Self::Hang => None,
        }
    }
}

/// A data path that remembers and does nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder {
    state: Arc<Mutex<(Behaviour, Vec<Call>)>>,
}

impl Recorder {
    pub(crate) fn behave(&self, behaviour: Behaviour) {
        self.locked().0 = behaviour;
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.locked().1.clone()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, (Behaviour, Vec<Call>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, call: Call) -> Result<(), AttachError> {
        let behaviour = {
            let mut state = self.locked();
            state.1.push(call);
            state.0
        };
        match behaviour {
            Behaviour::Obey | Behaviour::NotReady | Behaviour::Refuse => {
                behaviour.refusal().map_or(Ok(()), Err)
            }
            Behaviour::Late => {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                Ok(())
            }
            Behaviour::Hang => std::future::pending().await,
        }
    }
}

impl Attacher for Recorder {
    async fn attach(&self, endpoint: &AttachedEndpoint, _: &CancellationToken) -> Result<(), AttachError> {
        self.answer(Call::Attach(endpoint.clone())).await
    }

    async fn detach(&self, endpoint: &AttachedEndpoint) -> Result<(), AttachError> {
        // Cleaning up works even where attaching does not.
        self.locked().1.push(Call::Detach(endpoint.clone()));
        Ok(())
    }

    async fn routes(&self) -> Result<Vec<(String, IpAddr)>, AttachError> {
        Ok(Vec::new())
    }

    async fn wished_addresses(&self, _: &PodRef) -> Result<Vec<IpAddr>, AttachError> {
        Ok(Vec::new())
    }

    fn wish_refused(&self, _: &PodRef, _: &str) {}

    fn status(&self) -> Result<(), AttachError> {
        let behaviour = self.locked().0;
        behaviour.refusal().map_or(Ok(()), Err)
    }

    async fn check(&self, endpoint: &AttachedEndpoint) -> Result<(), AttachError> {
        self.answer(Call::Check(endpoint.clone())).await
    }
}

/// The pools most tests use.
pub(crate) fn pools() -> Pools {
    Pools {
        ipv4: vec![ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 1, 7, 0), 24)],
        ipv6: vec![ipnet::Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 1, 7, 0, 0, 0, 0, 0), 64)],
    }
}

/// A running server. Dropping it is a crash: no task gets to finish.
#[derive(Debug)]
pub(crate) struct Agent {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    pools: watch::Sender<Option<Pools>>,
    /// What the journal knew at start.
    pub(crate) known_at_start: Vec<AttachedEndpoint>,
}

impl Agent {
    /// Starts with files below `folder`.
    pub(crate) fn start(folder: &Path, pools: Option<Pools>, recorder: Recorder) -> Result<Self> {
        let (pools, pools_receiver) = watch::channel(pools);
        let (mtu, mtu_receiver) = watch::channel(1450);
        let config = CniServerConfig {
            socket: folder.join("cni.sock"),
            state_dir: folder.join("state"),
            record_dir: folder.join("records"),
            pools: pools_receiver,
            mtu: mtu_receiver,
            cool_down: Duration::ZERO,
            record_interval: Duration::from_millis(100),
        };
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("build runtime")?;
        let (stop, stopped) = oneshot::channel();
        let (started, start) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            // The MTU has a sender as long as the server runs.
            let _mtu = mtu;
            runtime.block_on(async {
                let server = match CniServer::start(config, recorder).await {
                    Ok(server) => server,
                    Err(error) => return drop(started.send(Err(error))),
                };
                let known = server.endpoints().await;
                drop(started.send(Ok(known)));
                // An error is the sender's drop, which means the same.
                drop(stopped.await);
            });
        });
        let known_at_start = start.recv().context("start the cni server")??;
        Ok(Self { stop: Some(stop), thread: Some(thread), pools, known_at_start })
    }

    /// Changes the node's Pod CIDRs.
    pub(crate) fn set_pools(&self, pools: Pools) {
        self.pools.send_replace(Some(pools));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the cni server panicked");
        }
    }
}
