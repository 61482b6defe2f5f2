//! The changes: who writes them, in which order, and when. The apiserver takes them as from any controller.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use quilla_tests::cluster::Cluster;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::{Endpoint, Life, NAME, now};

/// Changes a second.
pub(super) const RATE: usize = 100;
/// Changes that are written at once; each is of another endpoint.
const TOGETHER: usize = 5;
/// Writes between two changes of the Service's type.
const TYPE_EVERY: usize = 50;
const TYPES: [&str; 3] = ["NodePort", "LoadBalancer", "ClusterIP"];

/// What an endpoint can be turned into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Ready,
    NotReady,
    /// Told to end, and still serving.
    Terminating,
    /// Told to end, and no longer serving.
    Ended,
    Gone,
}

/// One change, as it was begun.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) at: u64,
    /// The endpoint's place in the list.
    pub(super) endpoint: usize,
    pub(super) step: Step,
}

impl Step {
    /// What follows it in a life. Who leaves has time to finish its connections first.
    fn next(self, life: Life) -> Self {
        match (life, self) {
            (Life::Steady, _) | (Life::Flapping, Self::NotReady) => Self::Ready,
            (Life::Flapping, _) => Self::NotReady,
            (Life::Leaving, Self::Ready) => Self::Terminating,
            (Life::Leaving, Self::Terminating) => Self::Ended,
            (Life::Leaving, Self::Ended) => Self::Gone,
            (Life::Leaving, _) => Self::Ready,
        }
    }

    /// A slice's endpoints.
    pub(super) fn endpoints(self, endpoint: &Endpoint) -> Value {
        let serving = matches!(self, Self::Ready | Self::Terminating);
        let terminating = matches!(self, Self::Terminating | Self::Ended);
        let conditions =
            json!({"ready": self == Self::Ready, "serving": serving, "terminating": terminating});
        match self {
            Self::Gone => json!([]),
            _ => {
                json!([{"addresses": [endpoint.address], "nodeName": endpoint.node, "conditions": conditions}])
            }
        }
    }
}

/// Changes endpoints in turn, and the Service's type, for so long.
pub(super) fn churn(cluster: &Cluster, endpoints: &[Endpoint], seconds: u64) -> Result<Vec<Change>> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).context("read the kubeconfig")?;
    cluster.fabric().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("start a runtime")?.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            Writer::new(Client::try_from(config)?, endpoints).run(seconds).await
        })
    })?
}

struct Writer<'e> {
    slices: Api<EndpointSlice>,
    services: Api<Service>,
    endpoints: &'e [Endpoint],
    /// Those that change, by their places, with their present step.
    moving: Vec<(usize, Step)>,
    changes: Vec<Change>,
}

impl<'e> Writer<'e> {
    fn new(client: Client, endpoints: &'e [Endpoint]) -> Self {
        let moving = endpoints.iter().enumerate().filter_map(|(place, endpoint)| match endpoint.life {
            Life::Steady => None,
            Life::Flapping => Some((place, Step::Ready)),
            Life::Leaving => Some((place, Step::Gone)),
        });
        Self {
            slices: Api::default_namespaced(client.clone()),
            services: Api::default_namespaced(client),
            endpoints,
            moving: moving.collect(),
            changes: Vec::new(),
        }
    }

    async fn run(mut self, seconds: u64) -> Result<Vec<Change>> {
        let rounds = usize::try_from(seconds)? * RATE / TOGETHER;
        let mut tick = interval(Duration::from_secs(1) * u32::try_from(TOGETHER)? / u32::try_from(RATE)?);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for round in 0..rounds {
            tick.tick().await;
            self.change(round * TOGETHER).await?;
            if (round * TOGETHER).is_multiple_of(TYPE_EVERY) {
                self.change_type(TYPES[round * TOGETHER / TYPE_EVERY % TYPES.len()]).await?;
            }
        }
        Ok(self.changes)
    }

    /// Several endpoints at once.
    async fn change(&mut self, from: usize) -> Result<()> {
        let mut writes = Vec::new();
        for turn in from..from + TOGETHER {
            let place = turn % self.moving.len();
            let (endpoint, step) = &mut self.moving[place];
            let described = &self.endpoints[*endpoint];
            *step = step.next(described.life);
            self.changes.push(Change { at: now(), endpoint: *endpoint, step: *step });
            let time = Timestamp::now().to_string();
            let patch = Patch::Merge(json!({
                "metadata": {"annotations": {"endpoints.kubernetes.io/last-change-trigger-time": time}},
                "endpoints": step.endpoints(described),
            }));
            let (slices, name) = (self.slices.clone(), described.slice());
            writes.push(async move { slices.patch(&name, &PatchParams::default(), &patch).await });
        }
        try_join_all(writes).await.context("change endpoints")?;
        Ok(())
    }

    async fn change_type(&self, kind: &str) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"type": kind}}));
        let changed = self.services.patch(NAME, &PatchParams::default(), &patch).await;
        changed.with_context(|| format!("change the type to {kind}"))?;
        Ok(())
    }
}
