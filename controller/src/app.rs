//! The wiring: reads the configuration, starts the apiserver and the tasks, and ends them together. Called by `main`
//! and by tests. A task that ends before the drain ends the whole.
//!
//! One process runs the reconcilers. With several, each would first hold a Lease and start them in [`App::start`] only
//! then, and drain when it loses it.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use quilla_apiserver::{RunningServer, Server};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission::NetworkAdmission;
use crate::config::{self, Config};
use crate::credentials;
use crate::error::Error;
use crate::health::{self, Readiness};
use crate::metrics::Metrics;
use crate::reconcile::endpoint_slice::EndpointSlices;
use crate::reconcile::kubernetes_service::KubernetesService;
use crate::reconcile::node_cidr::NodeCidrs;
use crate::reconcile::scheduler::Scheduler;
use crate::reconcile::{self, Context, Reconciler, service_cidr};
use crate::service::ServiceAdmission;

/// How often the objects every cluster has are looked after.
const ENSURE_PERIOD: Duration = Duration::from_secs(30);
const ENSURE_RETRY: Duration = Duration::from_secs(1);
const ENSURE: &str = "cluster_objects";
/// How long tasks may take to finish what they are at.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

type Tasks = JoinSet<(&'static str, Result<(), Error>)>;

/// A running controller.
#[derive(Debug)]
pub struct App {
    apiserver: Option<RunningServer>,
    tasks: Tasks,
    drain: CancellationToken,
    health: SocketAddr,
}

impl App {
    /// Starts everything; returns once the apiserver answers and all tasks run.
    pub async fn start(config: Config) -> Result<Self, Error> {
        let subnets =
            config::subnets(&config.cluster_cidrs, config.node_cidr_mask_v4, config.node_cidr_mask_v6)?;
        config::check_disjoint(&config.cluster_cidrs, &config.service_cidrs)?;
        let listener = health::bind(config.health_listen).await?;
        let health = listener.local_addr().unwrap_or(config.health_listen);
        let mut parts = vec![NodeCidrs::NAME];
        let (apiserver, client) = if let Some(path) = &config.kubeconfig {
            (None, connect_to(read_kubeconfig(path)?).await?)
        } else {
            parts.extend([EndpointSlices::NAME, Scheduler::NAME, ENSURE]);
            let (apiserver, client) = start_apiserver(&config).await?;
            (Some(apiserver), client)
        };
        let (readiness, drain) = (Readiness::of(parts), CancellationToken::new());
        let context = Context { metrics: Metrics::default(), readiness, drain: drain.clone() };
        let mut tasks = Tasks::new();
        spawn(&mut tasks, "health", health::serve(listener, context.clone()));
        reconciler(&mut tasks, NodeCidrs::new(client.clone(), subnets), &context);
        if let Some(apiserver) = &apiserver {
            reconciler(&mut tasks, EndpointSlices::new(client.clone()), &context);
            reconciler(&mut tasks, Scheduler::new(client.clone()), &context);
            let kubernetes = kubernetes_service(&config, apiserver.local_addr());
            let cidrs = config.service_cidrs.clone();
            spawn(&mut tasks, ENSURE, ensure(client, cidrs, kubernetes, context));
        }
        Ok(Self { apiserver, tasks, drain, health })
    }

    /// The embedded apiserver.
    pub fn apiserver(&self) -> Option<&RunningServer> {
        self.apiserver.as_ref()
    }

    /// Where health and metrics are served.
    pub fn health_address(&self) -> SocketAddr {
        self.health
    }

    /// Waits until a task ends, which none should, or the apiserver's storage fails.
    pub async fn failed(&mut self) -> Error {
        let storage = async {
            match &self.apiserver {
                Some(apiserver) => apiserver.failed().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            source = storage => return Error::Storage { source },
            ended = self.tasks.join_next() => ended,
        };
        match ended {
            Some(Ok((_, Err(error)))) => error,
            Some(Ok((task, Ok(())))) => Error::TaskEnded { task },
            Some(Err(_)) => Error::TaskEnded { task: "one that panicked" },
            None => Error::TaskEnded { task: "every" },
        }
    }

    /// Lets the tasks finish what they are at, then stops the apiserver.
    pub async fn shutdown(mut self) {
        self.drain.cancel();
        let joined =
            tokio::time::timeout(DRAIN_LIMIT, async { while self.tasks.join_next().await.is_some() {} });
        if joined.await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        if let Some(apiserver) = self.apiserver {
            apiserver.shutdown().await;
        }
    }
}

async fn start_apiserver(config: &Config) -> Result<(RunningServer, Client), Error> {
    credentials::private_folder(&config.data_dir)?;
    let token_file = config.token_file.clone().unwrap_or_else(|| config.data_dir.join("tokens"));
    let tokens = credentials::tokens(&token_file)?;
    let token = tokens.first().map(|(token, _)| token.clone()).unwrap_or_default();
    let services = ServiceAdmission::new(&config.service_cidrs, config.service_node_port_range)
        .reserving(&config.cluster_cidrs);
    let admission = Arc::new(NetworkAdmission::new(services));
    let server = quilla_apiserver::Config {
        listen: config.listen,
        data_dir: config.data_dir.clone(),
        tokens,
        san: config.advertise_addresses.iter().map(IpAddr::to_string).collect(),
        ..quilla_apiserver::Config::default()
    };
    let admit = Arc::clone(&admission) as Arc<dyn quilla_apiserver::Admission>;
    let started = Server::start(server, admit).await;
    let apiserver = started.map_err(|source| Error::Apiserver { source: Box::new(source) })?;
    let cidrs = apiserver.list("networking.k8s.io", "servicecidrs");
    admission.adopt(&cidrs, &apiserver.list("", "services"));

    let local = reachable(apiserver.local_addr());
    let public = config.advertise_addresses.first();
    let public = public.map_or(local, |address| SocketAddr::new(*address, local.port()));
    let path = config.data_dir.join("admin.kubeconfig");
    credentials::write_private(&path, &apiserver.kubeconfig(&token, &format!("https://{public}")))?;
    tracing::info!(kubeconfig = %path.display(), "administrator's kubeconfig written");
    let own = apiserver.kubeconfig(&token, &format!("https://{local}"));
    let own =
        Kubeconfig::from_yaml(&own).map_err(|source| Error::Kubeconfig { path, source: Box::new(source) })?;
    let client = connect_to(own).await?;
    Ok((apiserver, client))
}

fn read_kubeconfig(path: &Path) -> Result<Kubeconfig, Error> {
    Kubeconfig::read_from(path)
        .map_err(|source| Error::Kubeconfig { path: path.to_owned(), source: Box::new(source) })
}

async fn connect_to(kubeconfig: Kubeconfig) -> Result<Client, Error> {
    let failed = |source: kube::Error| Error::Connect { source: Box::new(source) };
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    let config = config.map_err(|source| failed(kube::Error::from(source)))?;
    Client::try_from(config).map_err(failed)
}

/// An address to connect to for one that is listened on.
fn reachable(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

fn kubernetes_service(config: &Config, listening: SocketAddr) -> Option<KubernetesService> {
    let advertised: Vec<_> = match config.advertise_addresses.as_slice() {
        [] => vec![listening],
        addresses => addresses.iter().map(|address| SocketAddr::new(*address, listening.port())).collect(),
    };
    KubernetesService::new(&config.service_cidrs, &advertised)
}

/// Looks after the objects every cluster has.
async fn ensure(
    client: Client,
    cidrs: Vec<IpNet>,
    kubernetes: Option<KubernetesService>,
    context: Context,
) -> Result<(), Error> {
    loop {
        let outcome = async {
            service_cidr::ensure(&client, &cidrs).await?;
            match &kubernetes {
                Some(kubernetes) => kubernetes.ensure(&client).await,
                None => Ok(()),
            }
        };
        let pause = match outcome.await {
            Ok(()) => {
                context.readiness.reached(ENSURE);
                ENSURE_PERIOD
            }
            Err(error) => {
                context.metrics.failed(ENSURE, error.name());
                let error = &error as &(dyn std::error::Error + 'static);
                tracing::warn!(error, "the cluster's own objects are not right, trying again later");
                ENSURE_RETRY
            }
        };
        tokio::select! {
            () = context.drain.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn reconciler<R: Reconciler + 'static>(tasks: &mut Tasks, reconciler: R, context: &Context) {
    spawn(tasks, R::NAME, reconcile::run(reconciler, context.clone()));
}

fn spawn(
    tasks: &mut Tasks,
    name: &'static str,
    task: impl Future<Output = Result<(), Error>> + Send + 'static,
) {
    tasks.spawn(async move { (name, task.await) });
}
