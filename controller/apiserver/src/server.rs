//! Wiring: opens the storage, listens, serves, stops.
//!
//! The controller's binary calls `Server::start`. Invariant: when `shutdown` returns, every acknowledged write is on disk
//! and no task of the server runs any more.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admission::Admission;
use crate::auth::Tokens;
use crate::collector;
use crate::http::{Service, Settings};
use crate::resource::{RESOURCES, Resource};
use crate::store::{Embedded, Store, StoreError};
use crate::tls::{Identity, TlsError, standard_names};
use crate::write::{Api, PERMANENT_NAMESPACES, WriteOptions};

/// How long a client may take for its TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// The pause after a failed accept (out of file descriptors), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long open requests may take to end once the server stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// How to run the server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 picks one.
    pub listen: SocketAddr,
    /// Database and certificates; made if absent.
    pub data_dir: PathBuf,
    /// (token, user) pairs that may do everything.
    pub tokens: Vec<(String, String)>,
    /// More DNS names and addresses for the server's certificate.
    pub san: Vec<String>,
    /// How many changes are kept for watches and lists of older revisions.
    pub history: usize,
    /// How often a watch that allows bookmarks gets one.
    pub bookmark_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: PathBuf::from("/var/lib/quilla/apiserver"),
            tokens: Vec::new(),
            san: Vec::new(),
            history: 10_000,
            bookmark_every: Duration::from_secs(30),
        }
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be made.
    #[error("cannot create the data directory {}", path.display())]
    DataDirectory {
        /// Which directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// The storage cannot be opened.
    #[error("cannot open the storage")]
    Store(#[from] StoreError),
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    /// A namespace every cluster has cannot be created.
    #[error("cannot create namespace {name}: {message}")]
    Namespace {
        /// Which one.
        name: &'static str,
        /// The refusal.
        message: String,
    },
}

/// The apiserver.
#[derive(Debug)]
pub struct Server;

/// A server that serves until `shutdown`; dropping it stops it too, without waiting.
pub struct RunningServer {
    address: SocketAddr,
    ca_pem: String,
    store: Arc<Embedded>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Opens the storage, creates the permanent namespaces, and serves. Must be called within a tokio runtime.
    pub async fn start(config: Config, admission: Arc<dyn Admission>) -> Result<RunningServer, Error> {
        let Config { listen, data_dir, tokens, san, history, bookmark_every } = config;
        std::fs::create_dir_all(&data_dir)
            .map_err(|source| Error::DataDirectory { path: data_dir.clone(), source })?;
        let mut names = standard_names(listen.ip());
        names.extend(san);
        let identity = Identity::load_or_create(&data_dir, &names)?;
        let store = Arc::new(Embedded::open(&data_dir.join("objects.redb"), history)?);
        let listener =
            TcpListener::bind(listen).await.map_err(|source| Error::Listen { address: listen, source })?;
        let address = listener.local_addr().map_err(|source| Error::Listen { address: listen, source })?;

        let api = Arc::new(Api::new(Arc::clone(&store) as Arc<dyn Store>, admission));
        create_namespaces(&api).await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(collector::run(Arc::clone(&api), stop.clone()));
        let service = Arc::new(Service {
            api,
            tokens: Tokens::new(tokens),
            settings: Settings { address: address.to_string(), bookmark_every },
            stop: stop.clone(),
        });
        let acceptor = TlsAcceptor::from(identity.config);
        tasks.spawn(accept(listener, acceptor, service, stop.clone(), tasks.clone()));
        tracing::info!(%address, "apiserver is serving");
        Ok(RunningServer { address, ca_pem: identity.ca_pem, store, stop, tasks })
    }
}

impl std::fmt::Debug for RunningServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RunningServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl RunningServer {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The certificate clients must trust.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// A kubeconfig for a client that reaches the server at `server_url`. It is JSON, which is YAML.
    pub fn kubeconfig(&self, token: &str, server_url: &str) -> String {
        let name = "quilla";
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": name,
            "clusters": [{"name": name, "cluster": {
                "server": server_url, "certificate-authority-data": STANDARD.encode(&self.ca_pem),
            }}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        });
        format!("{config:#}\n")
    }

    /// All stored objects of a kind, for scans at start-up.
    pub fn list(&self, group: &str, resource: &str) -> Vec<Value> {
        let Some(resource) = RESOURCES.iter().find(|row| row.group == group && row.plural == resource) else {
            return Vec::new();
        };
        let listing = self.store.list(&resource.bucket(), None, None);
        let objects = listing.map(|listing| listing.objects).unwrap_or_default();
        objects.iter().map(|object| resource.to_shown(Value::clone(&object.value))).collect()
    }

    /// Waits until the storage accepts no more writes; a server in that state still answers reads, and is best restarted.
    pub async fn failed(&self) -> Arc<StoreError> {
        self.store.failed().await
    }

    /// Ends watches, lets open requests finish, and closes the storage.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(DRAIN_LIMIT, self.tasks.wait()).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        let store = Arc::clone(&self.store);
        if tokio::task::spawn_blocking(move || store.close()).await.is_err() {
            tracing::error!("closing the storage panicked");
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn create_namespaces(api: &Api) -> Result<(), Error> {
    for name in PERMANENT_NAMESPACES {
        let body = json!({"metadata": {"name": name}});
        match api.create(Resource::core("namespaces"), "", body, WriteOptions::default()).await {
            Err(refusal) if refusal.reason != "AlreadyExists" => {
                return Err(Error::Namespace { name, message: refusal.message });
            }
            _ => {}
        }
    }
    Ok(())
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    service: Arc<Service>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (acceptor, service, stop) = (acceptor.clone(), Arc::clone(&service), stop.clone());
                tasks.spawn(async move {
                    if let Err(error) = connection(stream, acceptor, service, stop).await {
                        tracing::debug!(%peer, %error, "connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    service: Arc<Service>,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await??;
    let handler = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.handle(request).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(Duration::from_secs(30)));
    let connection = builder.serve_connection(TokioIo::new(stream), handler);
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
