//! The wiring: builds every part, connects them, joins them. Read it to see how the agent hangs together.
//!
//! A part that ends before it was asked to ends the agent: half an agent is worse than one that its supervisor starts
//! again, because the kernel goes on without either.

use std::fs::{File, TryLockError};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use quilla_abi::config::flag;
use quilla_datapath::{Datapath, DatapathError};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::apiserver::{Hosts, Servers};
use crate::cni::{CniServer, CniServerConfig, CniServerError, Ledger, Pools};
use crate::endpoint::Endpoints;
use crate::events::Notice;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::node::NodeSettings;
use crate::options::Options;
use crate::overlay::{Encapsulation, Mode};
use crate::proxy_health::ProxyHealth;
use crate::reconcile::{Command, Handle, Parts, Reconciler, View, channel};
use crate::selftest::{Readiness, SelfTest};
use crate::snapshot::Published;
use crate::sockets::Support;
use crate::static_address::StaticAddresses;
use crate::watch::Update;
use crate::{
    abandoned, admin, events, health, health_check, kernel_watch, last_known, masquerade, overlay,
    proxy_health, snapshot, sockets, watch as watches,
};

/// How long the apiserver may take before the last-known snapshot is used.
const FALLBACK_AFTER: Duration = Duration::from_secs(5);
/// How often records of DELs are looked for.
const RECORD_INTERVAL: Duration = Duration::from_secs(5);

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The kernel refused.
    #[error("open the data path")]
    Datapath(#[from] DatapathError),
    /// The apiserver's address or credentials cannot be read.
    #[error("read kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The CNI server did not start.
    #[error("start the cni server")]
    Cni(#[from] CniServerError),
    /// The operating system refused.
    #[error("{operation} {object}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Another agent runs on this node's pins.
    #[error("the pins in {} are in use by another agent", bpffs.display())]
    InUse {
        /// The file system of the pins.
        bpffs: PathBuf,
    },
    /// A part ended that should not have.
    #[error("{part} ended unexpectedly")]
    Ended {
        /// Which.
        part: &'static str,
    },
}

/// Runs the agent until it is told to stop. What is in the kernel stays there.
pub async fn run(options: Options) -> Result<(), AppError> {
    let (client, hosts) = client(&options).await?;
    let listener = bind(options.metrics).await?;
    make_directories(&options)?;
    // Before anything in the kernel is touched: a second agent would replace the maps under the first one.
    let _alone = alone(&options)?;
    let metrics = Arc::new(Metrics::new());
    let datapath = open(&options).await?;
    let drain = CancellationToken::new();

    let (published, snapshots) = watch::channel(None);
    let (view_sender, view) = watch::channel(Arc::new(View::default()));
    let (mtu_sender, mtu) = watch::channel(1500);
    let (pools_sender, pools) = watch::channel(None);
    let not_ready = Readiness::NotReady { reason: "the kernel is not programmed yet".into() };
    let (readiness_sender, readiness) = watch::channel(not_ready);
    let (ended_sender, ended) = mpsc::unbounded_channel();
    let (support_sender, sockets_support) = watch::channel(Support::Unknown);
    let (encapsulation_sender, encapsulation) = watch::channel(encapsulation(&options, &datapath)?);
    let (servers_sender, servers) = watch::channel(hosts.known());
    let first = masquerade::first(&options.masquerade(), options.masquerade_config.as_deref());
    let (masquerade_sender, chosen) = watch::channel(first);
    let (reconciler, commands) = channel();

    let cni = cni_config(&options, pools, mtu.clone());
    let (notices, noticed) = mpsc::channel(64);
    let static_addresses = StaticAddresses {
        allowed: options.static_addresses,
        published: snapshots.clone(),
        view: view.clone(),
        client: client.clone(),
        notices: notices.clone(),
    };
    let endpoints = Endpoints::new(Arc::clone(&datapath), reconciler.clone(), static_addresses);
    let cni = CniServer::start(cni, endpoints).await?;
    let self_test = SelfTest::bind().await.map_err(io("listen for", "the self-test"))?;
    let own_services = self_test.services().map_err(io("read the address of", "the self-test"))?;
    let parts = Parts {
        datapath: Arc::clone(&datapath),
        node: node_settings(&options, mtu_sender, encapsulation.clone(), servers, chosen),
        cgroup: options.cgroup.clone(),
        metrics: Arc::clone(&metrics),
        published: snapshots.clone(),
        view: view_sender,
        ended: ended_sender,
        endpoints: cni.endpoints().await,
        own_services,
        audit_interval: Duration::from_secs(options.audit_interval),
    };
    let worker = Reconciler::new(parts)?;
    let mut worker = tokio::task::spawn_blocking(move || worker.run(&commands));

    let mut tasks = Tasks { set: JoinSet::new(), drain: drain.clone() };
    let received = tasks.start_watches(&options, &client, &metrics);
    tasks.start("addresses of the apiserver", hosts.follow(servers_sender, drain.clone()));
    tasks.start("snapshot owner", snapshot::own(received, published, drain.clone()));
    tasks.start_snapshots(&options, &snapshots, &reconciler);
    tasks.start_overlay(&options, &view, encapsulation_sender, &reconciler);
    tasks.start_masquerade(&options, masquerade_sender, &reconciler);
    tasks.start_reports(&options, client, &view, &metrics, (notices, noticed));
    let ending =
        sockets::end(ended, Arc::clone(&datapath), support_sender, Arc::clone(&metrics), drain.clone());
    tasks.start("sockets of deleted backends", ending);
    tasks.start_kernel_watches(&reconciler);
    tasks.start("address pools", follow_pools(view.clone(), pools_sender, drain.clone()));
    let shared = || (view.clone(), Arc::clone(&metrics), drain.clone());
    let (seen, counted, until) = shared();
    let abandoned = abandoned::release(cni.releaser(), seen, snapshots.clone(), counted, until);
    tasks.start("abandoned endpoints", abandoned);
    let (seen, counted, until) = shared();
    tasks.start("self-test", self_test.run(options.cgroup.clone(), seen, readiness_sender, counted, until));
    let socket = options.run_dir.join("admin.sock");
    let admin_listener = admin::listen(&socket).map_err(io("listen on", &socket.to_string_lossy()))?;
    let found_out = (sockets_support, encapsulation, mtu);
    let desk = desk(&options, &datapath, &view, cni.ledger(), &readiness, found_out);
    tasks.start("admin socket", admin::serve(admin_listener, desk, drain.clone()));
    tasks.start_health(&options, listener, Health { metrics, datapath, view, readiness }, snapshots);

    let outcome = tasks.supervise(&mut worker).await;
    cni.shutdown().await;
    drop(reconciler);
    tasks.join(worker).await;
    outcome
}

/// The async parts, by name.
struct Tasks {
    set: JoinSet<&'static str>,
    drain: CancellationToken,
}

impl Tasks {
    fn start(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(async move {
            part.await;
            name
        });
    }

    /// What the cluster's objects are.
    fn start_watches(
        &mut self,
        options: &Options,
        client: &kube::Client,
        metrics: &Arc<Metrics>,
    ) -> mpsc::Receiver<Update> {
        let (updates, received) = mpsc::channel(1024);
        let mut watching = watches::start(client, &options.node_name, &updates, metrics, &self.drain);
        self.start("watches", async move { while watching.join_next().await.is_some() {} });
        received
    }

    /// What becomes of snapshots: the reconciler's orders, and a copy on the disk for the next start.
    fn start_snapshots(
        &mut self,
        options: &Options,
        snapshots: &watch::Receiver<Option<Published>>,
        reconciler: &Handle,
    ) {
        let (file, drain) = (last_known::path(&options.state_dir), || self.drain.clone());
        let keeping = last_known::keep(file.clone(), snapshots.clone(), drain());
        let forwarding = forward(snapshots.clone(), reconciler.clone(), file, drain());
        self.start("last-known snapshot", keeping);
        self.start("snapshot forwarder", forwarding);
    }

    /// What the kernel says of the node's devices and of programs that others remove.
    fn start_kernel_watches(&mut self, reconciler: &Handle) {
        let drain = || self.drain.clone();
        let devices = kernel_watch::devices(reconciler.clone(), drain());
        let programs = kernel_watch::programs(reconciler.clone(), drain());
        self.start("device watch", devices);
        self.start("program watch", programs);
    }

    /// Whether packets for other nodes may be encapsulated directly, if that is to be found out.
    fn start_overlay(
        &mut self,
        options: &Options,
        view: &watch::Receiver<Arc<View>>,
        state: watch::Sender<Encapsulation>,
        reconciler: &Handle,
    ) {
        if options.encapsulation == Mode::Auto && !options.overlay_checksum {
            let (port, drain) = (options.health.port(), self.drain.clone());
            let finding = overlay::find_out(port, view.clone(), state, reconciler.clone(), drain);
            self.start("overlay probe", finding);
        }
    }

    /// What the file says of the masquerade, if there is one.
    fn start_masquerade(
        &mut self,
        options: &Options,
        chosen: watch::Sender<masquerade::Chosen>,
        reconciler: &Handle,
    ) {
        if let Some(file) = options.masquerade_config.clone() {
            let drain = self.drain.clone();
            let following = masquerade::follow(options.masquerade(), file, chosen, reconciler.clone(), drain);
            self.start("masquerade configuration", following);
        }
    }

    /// What the cluster hears of the node: events, and the health check node ports.
    fn start_reports(
        &mut self,
        options: &Options,
        client: kube::Client,
        view: &watch::Receiver<Arc<View>>,
        metrics: &Arc<Metrics>,
        (notices, noticed): (mpsc::Sender<Notice>, mpsc::Receiver<Notice>),
    ) {
        let node = options.node_name.clone();
        let reporting = events::report(client, node, view.clone(), noticed, self.drain.clone());
        let checks = health_check::serve(view.clone(), Arc::clone(metrics), notices, self.drain.clone());
        self.start("events", reporting);
        self.start("health checks", checks);
    }

    /// Health and metrics over HTTP: as kube-proxy serves them, and the agent's own.
    fn start_health(
        &mut self,
        options: &Options,
        listener: TcpListener,
        health: Health,
        published: watch::Receiver<Option<Published>>,
    ) {
        let (node, metrics) = (options.node_name.clone(), Arc::clone(&health.metrics));
        let proxy = ProxyHealth { node, metrics, published };
        self.start("probes", proxy_health::serve(options.health, proxy, self.drain.clone()));
        let mode = proxy_health::serve_mode(options.proxy_metrics, health.clone(), self.drain.clone());
        self.start("proxy mode", mode);
        let serving = health::serve(listener, health, self.drain.clone());
        self.start("health server", async {
            if let Err(error) = serving.await {
                tracing::error!(error = %error, "serve health");
            }
        });
    }

    /// Waits for the order to stop, or for the first part that ends without one; then tells all to end.
    async fn supervise(&mut self, reconciler: &mut JoinHandle<()>) -> Result<(), AppError> {
        let mut terminate = signal(SignalKind::terminate()).map_err(io("handle", "SIGTERM"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(io("handle", "SIGINT"))?;
        let outcome = tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            _ = reconciler => Err(AppError::Ended { part: "reconciler" }),
            ended = self.set.join_next() => {
                let part = ended.and_then(Result::ok).unwrap_or("a part that panicked");
                Err(AppError::Ended { part })
            }
        };
        tracing::info!("stopping; the kernel goes on");
        self.drain.cancel();
        outcome
    }

    async fn join(mut self, reconciler: JoinHandle<()>) {
        while let Some(ended) = self.set.join_next().await {
            if let Err(error) = ended {
                tracing::error!(error = %error, "a part ended badly");
            }
        }
        // It ends with the last handle, unless its end is why we are here.
        if !reconciler.is_finished()
            && let Err(error) = reconciler.await
        {
            tracing::error!(error = %error, "the reconciler ended badly");
        }
    }
}

async fn client(options: &Options) -> Result<(kube::Client, Hosts), AppError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| AppError::Kubeconfig {
        path: options.kubeconfig.clone(),
        source,
    };
    let file = Kubeconfig::read_from(&options.kubeconfig).map_err(|error| failed(error.into()))?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let config = config.map_err(|error| failed(error.into()))?;
    let hosts = Hosts::of(&config);
    Ok((kube::Client::try_from(config).map_err(|error| failed(error.into()))?, hosts))
}

async fn bind(address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).await.map_err(io("listen on", &address.to_string()))
}

/// What the admin socket answers from.
fn desk(
    options: &Options,
    datapath: &Arc<Datapath>,
    view: &watch::Receiver<Arc<View>>,
    ledger: Ledger,
    readiness: &watch::Receiver<Readiness>,
    (sockets, encapsulation, mtu): (
        watch::Receiver<Support>,
        watch::Receiver<Encapsulation>,
        watch::Receiver<u32>,
    ),
) -> admin::Admin {
    admin::Admin {
        node: options.node_name.clone(),
        datapath: Arc::clone(datapath),
        view: view.clone(),
        ledger,
        readiness: readiness.clone(),
        sockets,
        encapsulation,
        routing: options.routing,
        mtu,
    }
}

fn make_directories(options: &Options) -> Result<(), AppError> {
    for directory in [&options.state_dir, &options.run_dir] {
        std::fs::create_dir_all(directory).map_err(io("create", &directory.to_string_lossy()))?;
    }
    Ok(())
}

/// The right to this node's pins, for as long as the file is open; the kernel takes it back when the process ends.
fn alone(options: &Options) -> Result<File, AppError> {
    let path = options.bpffs.to_string_lossy();
    let directory = File::open(&options.bpffs).map_err(io("open", &path))?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(AppError::InUse { bpffs: options.bpffs.clone() }),
        Err(TryLockError::Error(error)) => Err(io("lock", &path)(error)),
    }
}

fn io(operation: &'static str, object: &str) -> impl FnOnce(std::io::Error) -> AppError {
    let object = object.to_owned();
    move |source| AppError::Io { operation, object, source }
}

async fn open(options: &Options) -> Result<Arc<Datapath>, AppError> {
    let kernel = quilla_datapath::Options {
        bpffs: options.bpffs.clone(),
        flow_capacity: options.flow_capacity,
        pods: options.pod_programs,
        ..quilla_datapath::Options::default()
    };
    let opened = tokio::task::spawn_blocking(move || Datapath::open(&kernel)).await;
    let datapath = opened.map_err(|_| AppError::Ended { part: "loader" })??;
    for map in &datapath.opened().replaced {
        tracing::warn!(map, "pinned map of another version moved aside");
    }
    Ok(Arc::new(datapath))
}

fn cni_config(
    options: &Options,
    pools: watch::Receiver<Option<Pools>>,
    mtu: watch::Receiver<u32>,
) -> CniServerConfig {
    CniServerConfig {
        socket: options.run_dir.join("cni.sock"),
        state_dir: options.state_dir.clone(),
        record_dir: options.state_dir.join("cni"),
        pools,
        mtu,
        cool_down: Duration::from_secs(options.address_cool_down),
        record_interval: RECORD_INTERVAL,
    }
}

/// What holds until another node has been asked.
fn encapsulation(options: &Options, datapath: &Datapath) -> Result<Encapsulation, DatapathError> {
    let before = datapath.maps().config.get(0)?.unwrap_or_default().flags & flag::DIRECT != 0;
    Ok(Encapsulation::new(options.encapsulation, options.overlay_checksum, before))
}

fn node_settings(
    options: &Options,
    mtu: watch::Sender<u32>,
    encapsulation: watch::Receiver<Encapsulation>,
    servers: watch::Receiver<Servers>,
    masquerade: watch::Receiver<masquerade::Chosen>,
) -> NodeSettings {
    NodeSettings {
        name: options.node_name.clone(),
        uplinks: options.uplink.clone(),
        vni: options.vni,
        overlay_port: options.overlay_port,
        overlay_mtu: options.overlay_mtu,
        routing: options.routing,
        masquerade,
        node_port_addresses: options.node_port_addresses.clone(),
        reject_without_local: options.reject_without_local_endpoints,
        servers,
        encapsulation,
        mtu,
    }
}

/// Tells the reconciler about snapshots; about the last-known one if none comes.
async fn forward(
    mut snapshots: watch::Receiver<Option<Published>>,
    reconciler: Handle,
    file: PathBuf,
    drain: CancellationToken,
) {
    let first = tokio::time::timeout(FALLBACK_AFTER, snapshots.wait_for(Option::is_some));
    let Some(first) = drain.run_until_cancelled(first).await.map(|first| first.is_ok()) else { return };
    if first {
        reconciler.tell(Command::SnapshotChanged);
    } else if let Ok(Some(snapshot)) = tokio::task::spawn_blocking(move || last_known::load(&file)).await {
        tracing::warn!("no apiserver answers: starting from the last-known snapshot");
        let published = Published { snapshot: Arc::new(snapshot), ..Published::default() };
        reconciler.tell(Command::Fallback(Box::new(published)));
    }
    while let Some(Ok(())) = drain.run_until_cancelled(snapshots.changed()).await {
        if !reconciler.tell(Command::SnapshotChanged) {
            return;
        }
    }
}

/// Gives addresses out only once the kernel knows what they are.
async fn follow_pools(
    mut view: watch::Receiver<Arc<View>>,
    pools: watch::Sender<Option<Pools>>,
    drain: CancellationToken,
) {
    while let Some(Ok(())) = drain.run_until_cancelled(view.changed()).await {
        let current: Pools = view.borrow_and_update().pod_cidrs.iter().copied().collect();
        pools.send_if_modified(|known| {
            let changed = !current.is_empty() && known.as_ref() != Some(&current);
            if changed {
                *known = Some(current);
            }
            changed
        });
    }
}
