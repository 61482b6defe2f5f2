//! The listener: accepts plugins, one task per connection, and consumes the records DEL leaves while the agent is away.
//! Made and stopped by the agent's wiring. The socket is root's from the moment it has its name.

use std::fs::{self, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quilla_cni_protocol::{Attachment, CniError, ReleaseRecord, failpoint};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::{self, JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::cni::durable::DurableStore;
use crate::cni::lock::AttachmentLocks;
use crate::cni::session::{attach_refusal, describe, serve};
use crate::cni::store::{Entry, Store};
use crate::cni::{AttachedEndpoint, Attacher, Pools, StoreError};

/// How long the agent's own releases wait for a plugin that works on the attachment; there is a next time.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);

/// How the server runs.
#[derive(Debug, Clone)]
pub struct CniServerConfig {
    /// Where plugins connect.
    pub socket: PathBuf,
    /// Where the journal lives; one agent only.
    pub state_dir: PathBuf,
    /// Where DEL leaves records while the agent is away (the plugin's `dataDir`).
    pub record_dir: PathBuf,
    /// The node's Pod CIDRs, once known; until then ADD is told to try again.
    pub pools: watch::Receiver<Option<Pools>>,
    /// MTU of new Pods.
    pub mtu: watch::Receiver<u32>,
    /// How long a released address rests before it may be given again.
    pub cool_down: Duration,
    /// How often records are looked for, besides at start and before an ADD.
    pub record_interval: Duration,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum CniServerError {
    /// The state cannot be used.
    #[error("open cni state")]
    Store(#[from] StoreError),
    /// The socket cannot be made.
    #[error("{operation} {}", path.display())]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The running server. Dropping it stops nothing; `shutdown` does.
#[derive(Debug)]
pub struct CniServer<A> {
    shared: Arc<Shared<A>>,
    socket: PathBuf,
    drain: CancellationToken,
    task: JoinHandle<()>,
}

impl<A: Attacher> CniServer<A> {
    /// Reads the journal, and listens.
    pub async fn start(config: CniServerConfig, attacher: A) -> Result<Self, CniServerError> {
        let CniServerConfig { socket, state_dir, record_dir, pools, mtu, cool_down, record_interval } =
            config;
        let opened = task::spawn_blocking(move || Store::open(&state_dir, cool_down)).await;
        let mut store = opened.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))?;
        if let Some(pools) = &*pools.borrow() {
            store.set_pools(pools);
        }
        match attacher.routes().await {
            Ok(routes) => store.set_routes(&routes),
            Err(error) => {
                tracing::warn!(error = %describe(&error), "look for endpoints that the journal lacks");
            }
        }
        let listener = listen(&socket)?;
        failpoint!(Listening, |source| CniServerError::Socket {
            operation: "listen on",
            path: socket.clone(),
            source
        });
        let shared = Arc::new(Shared {
            store: Arc::new(DurableStore::new(store)),
            locks: AttachmentLocks::default(),
            record_dir,
            mtu,
            attacher,
        });
        let drain = CancellationToken::new();
        let run = run(Arc::clone(&shared), listener, pools, record_interval, drain.clone());
        Ok(Self { shared, socket, drain, task: tokio::spawn(run) })
    }

    /// The endpoints the journal knows as attached; at start, what the agent has to program again.
    pub async fn endpoints(&self) -> Vec<AttachedEndpoint> {
        self.shared.with_store(|store| store.attached()).await
    }

    /// For whoever finds endpoints that nobody is going to DEL.
    pub fn releaser(&self) -> Releaser<A> {
        Releaser(Arc::clone(&self.shared))
    }

    /// For whoever only looks.
    pub fn ledger(&self) -> Ledger {
        Ledger(Arc::clone(&self.shared.store))
    }

    /// The data path the server was started with.
    pub fn attacher(&self) -> &A {
        &self.shared.attacher
    }

    /// Stops listening, lets plugins in the middle of an ADD finish, and removes the socket.
    pub async fn shutdown(self) {
        self.drain.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(error = %error, "cni server ended badly");
        }
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::warn!(path = %self.socket.display(), error = %error, "remove cni socket");
        }
    }
}

/// What the journal says now.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<DurableStore>);

impl Ledger {
    /// Every attachment on record.
    pub fn entries(&self) -> Vec<Entry> {
        self.0.locked().entries()
    }

    /// Addresses that are held and that no attachment has: there should be none.
    pub fn stray_addresses(&self) -> Vec<IpAddr> {
        self.0.locked().stray_addresses()
    }
}

/// Gives endpoints back on the agent's own account, in turn with the plugins.
#[derive(Debug)]
pub struct Releaser<A>(Arc<Shared<A>>);

impl<A: Attacher> Releaser<A> {
    /// Detaches and forgets the endpoint. Nothing to do if its attachment has another one by now, or none.
    pub async fn release(&self, endpoint: &AttachedEndpoint) -> Result<(), CniError> {
        let attachment = endpoint.attachment();
        let Some(_lock) = self.0.locks.acquire(&attachment, RELEASE_PATIENCE).await else {
            return Err(CniError::try_again("attachment is busy", format!("a plugin works on {attachment}")));
        };
        let key = attachment.clone();
        match self.0.with_store(move |store| store.entry(&key)).await {
            Some(Entry::Attached(known)) if known == *endpoint => self.0.release(&attachment).await,
            _ => Ok(()),
        }
    }
}

/// What sessions share.
#[derive(Debug)]
pub(super) struct Shared<A> {
    store: Arc<DurableStore>,
    pub(super) locks: AttachmentLocks,
    record_dir: PathBuf,
    mtu: watch::Receiver<u32>,
    pub(super) attacher: A,
}

impl<A: Attacher> Shared<A> {
    /// Works on the store where its file writes may block.
    pub(super) async fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> T {
        self.with_disk(|store| work(&mut store.locked())).await
    }

    /// Remembers that an endpoint is effective.
    pub(super) async fn commit(&self, endpoint: AttachedEndpoint) -> Result<(), StoreError> {
        self.with_disk(|store| store.commit(endpoint)).await
    }

    async fn with_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&DurableStore) -> T + Send + 'static,
    ) -> T {
        let store = Arc::clone(&self.store);
        let done = task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|panic| resume_unwind(panic.into_panic()))
    }

    /// MTU of new Pods.
    pub(super) fn mtu(&self) -> u32 {
        *self.mtu.borrow()
    }

    /// Detaches an endpoint and gives its addresses back. The caller holds the attachment's lock, or is alone.
    pub(super) async fn release(&self, attachment: &Attachment) -> Result<(), CniError> {
        let key = attachment.clone();
        if let Some(Entry::Attached(endpoint)) = self.with_store(move |store| store.entry(&key)).await {
            // Addresses are free only once the data path forgot them.
            let detached = self.attacher.detach(&endpoint).await;
            detached.map_err(|error| attach_refusal("detach endpoint", &error))?;
            failpoint!(EndpointDetached);
        }
        let key = attachment.clone();
        self.with_disk(move |store| store.release(&key)).await;
        Ok(())
    }

    /// Does what could not be done before: full disks get empty, devices that nobody knows go.
    async fn settle(&self) {
        let (settled, strangers) = self.with_store(|store| (store.settle(), store.has_strangers())).await;
        if let Err(error) = settled {
            tracing::warn!(error = %describe(&error), "write the cni journal");
        }
        if strangers && let Ok(routes) = self.attacher.routes().await {
            self.with_store(move |store| store.set_routes(&routes)).await;
        }
    }

    /// Carries out the DEL of an attachment that is only on record. The caller holds its lock.
    pub(super) async fn consume_record(&self, attachment: &Attachment) -> Result<(), CniError> {
        if !ReleaseRecord::path(&self.record_dir, attachment).exists() {
            return Ok(());
        }
        self.release(attachment).await?;
        failpoint!(RecordCarriedOut);
        self.forget_record(attachment)
    }

    /// Removes what is on record of a DEL that was carried out, or half on record of one that died.
    pub(super) fn forget_record(&self, attachment: &Attachment) -> Result<(), CniError> {
        ReleaseRecord::remove(&self.record_dir, attachment)
            .map(drop)
            .map_err(|error| CniError::try_again("consume release record", describe(&error)))
    }

    /// Carries out every DEL on record.
    async fn consume_records(&self) {
        let paths = match ReleaseRecord::list(&self.record_dir) {
            Ok(paths) => paths,
            Err(error) => {
                tracing::warn!(error = %describe(&error), "list release records");
                return;
            }
        };
        for path in paths {
            match ReleaseRecord::read(&path) {
                Ok(record) => self.consume_listed(&record.attachment).await,
                Err(error) => tracing::warn!(error = %describe(&error), "release record ignored"),
            }
        }
    }

    async fn consume_listed(&self, attachment: &Attachment) {
        // A plugin at work on the attachment consumes the record itself; otherwise the next round does.
        let Some(_lock) = self.locks.acquire(attachment, RELEASE_PATIENCE).await else { return };
        match self.consume_record(attachment).await {
            Ok(()) => tracing::info!(attachment = %attachment, "recorded release carried out"),
            Err(error) => tracing::warn!(attachment = %attachment, error = %error, "recorded release failed"),
        }
    }
}

async fn run<A: Attacher>(
    shared: Arc<Shared<A>>,
    listener: UnixListener,
    mut pools: watch::Receiver<Option<Pools>>,
    record_interval: Duration,
    drain: CancellationToken,
) {
    let mut sessions = JoinSet::new();
    let records = tokio::spawn(consume_regularly(Arc::clone(&shared), record_interval, drain.clone()));
    loop {
        tokio::select! {
            () = drain.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(sessions.spawn(serve(Arc::clone(&shared), stream, drain.clone()))),
                Err(error) => {
                    tracing::warn!(error = %error, "accept cni connection");
                    // Out of descriptors: waiting lets sessions end.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Ok(()) = pools.changed() => {
                let current = pools.borrow_and_update().clone();
                if let Some(pools) = current {
                    shared.with_store(move |store| store.set_pools(&pools)).await;
                }
            }
            Some(ended) = sessions.join_next() => report(ended),
        }
    }
    drop(listener);
    while let Some(ended) = sessions.join_next().await {
        report(ended);
    }
    report(records.await);
}

async fn consume_regularly<A: Attacher>(shared: Arc<Shared<A>>, period: Duration, drain: CancellationToken) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while drain.run_until_cancelled(ticks.tick()).await.is_some() {
        shared.consume_records().await;
        shared.settle().await;
    }
}

fn report(ended: Result<(), task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(error = %error, "cni task panicked");
    }
}

/// Makes the socket under another name first, so that nobody but root can reach it even for a moment, and a stale one
/// is replaced.
fn listen(path: &Path) -> Result<UnixListener, CniServerError> {
    let failed =
        |operation| move |source| CniServerError::Socket { operation, path: path.to_path_buf(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("create directory of"))?;
    }
    let aside = path.with_extension("new");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("clear the way for")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&aside).map_err(failed("bind"))?;
    fs::set_permissions(&aside, Permissions::from_mode(0o600)).map_err(failed("restrict"))?;
    fs::rename(&aside, path).map_err(failed("publish"))?;
    Ok(listener)
}
