//! The changes: who writes them, in which order, and when. The apiserver takes them as from any controller.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
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

use super::{CHANGING, Endpoint, Life, now};

/// Changes a second.
const RATE: usize = 100;
/// Changes that are written at once; each is of another endpoint.
const TOGETHER: usize = 5;
/// Writes between two changes of the Service's type.
const TYPE_EVERY: usize = 50;
const TYPES: [&str; 3] = ["LoadBalancer", "ClusterIP", "NodePort"];
/// Rounds of writes between two changes of the Pods that rest: two seconds.
const REST_EVERY: usize = 40;

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

/// All that was changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) endpoints: Vec<Change>,
    /// Changes of the Service's type.
    pub(super) types: usize,
}

impl Changes {
    /// Fails if the cluster was changed more slowly than the test is about.
    pub(super) fn ensure_made(&self, seconds: u64) -> Result<()> {
        let asked = usize::try_from(seconds)? * RATE;
        let (endpoints, types) = (self.endpoints.len(), self.types);
        ensure!(10 * endpoints >= 9 * asked, "only {endpoints} changes were made of {asked} asked for");
        ensure!(10 * types >= 9 * asked / TYPE_EVERY, "only {types} changes of type were made");
        Ok(())
    }
}

impl Step {
    /// What follows it in a life. Who leaves has time to finish its connections first.
    fn next(self, life: Life) -> Self {
        match (life, self) {
            (Life::Steady, _) | (Life::Flapping | Life::Resting, Self::NotReady) => Self::Ready,
            (Life::Flapping | Life::Resting, _) => Self::NotReady,
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
pub(super) fn churn(cluster: &Cluster, endpoints: &[Endpoint], seconds: u64) -> Result<Changes> {
    with_client(cluster, async |client| Writer::new(client, endpoints).run(seconds).await)
}

/// Changes the Service's type so many times, 100 times a second if the apiserver takes it.
pub(super) fn flap(cluster: &Cluster, times: usize) -> Result<()> {
    with_client(cluster, async |client| {
        let mut writer = Writer::new(client, &[]);
        let mut tick = interval(Duration::from_secs(1) / u32::try_from(RATE)?);
        for number in 0..times {
            tick.tick().await;
            writer.change_type(TYPES[number % TYPES.len()]).await?;
        }
        Ok(())
    })
}

fn with_client<T: Send>(cluster: &Cluster, work: impl AsyncFnOnce(Client) -> Result<T> + Send) -> Result<T> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).context("read the kubeconfig")?;
    cluster.fabric().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("start a runtime")?.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            work(Client::try_from(config)?).await
        })
    })?
}

struct Writer<'e> {
    slices: Api<EndpointSlice>,
    services: Api<Service>,
    endpoints: &'e [Endpoint],
    /// Those that change in turn, by their places, with their present step.
    moving: Vec<(usize, Step)>,
    /// Those of the Pods that rest, likewise, one list for each Pod.
    resting: Vec<Vec<(usize, Step)>>,
    changes: Changes,
}

impl<'e> Writer<'e> {
    fn new(client: Client, endpoints: &'e [Endpoint]) -> Self {
        let (mut moving, mut resting) = (Vec::new(), BTreeMap::<&str, Vec<_>>::new());
        for (place, endpoint) in endpoints.iter().enumerate() {
            match endpoint.life {
                Life::Steady => {}
                Life::Resting => resting.entry(&endpoint.pod).or_default().push((place, Step::Ready)),
                Life::Flapping => moving.push((place, Step::Ready)),
                Life::Leaving => moving.push((place, Step::Gone)),
            }
        }
        Self {
            slices: Api::default_namespaced(client.clone()),
            services: Api::default_namespaced(client),
            endpoints,
            moving,
            resting: resting.into_values().collect(),
            changes: Changes::default(),
        }
    }

    async fn run(mut self, seconds: u64) -> Result<Changes> {
        let mut tick = interval(Duration::from_secs(1) * u32::try_from(TOGETHER)? / u32::try_from(RATE)?);
        // A write that took long is made up for.
        tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let end = Instant::now() + Duration::from_secs(seconds);
        for round in 0.. {
            tick.tick().await;
            if Instant::now() >= end {
                break;
            }
            let from = round * TOGETHER;
            let count = self.moving.len();
            let turn = (from..from + TOGETHER).map(|turn| turn % count).collect::<Vec<_>>();
            let turn =
                turn.into_iter().map(|place| advance(&mut self.moving[place], self.endpoints)).collect();
            self.write(turn).await?;
            if round.is_multiple_of(REST_EVERY) {
                // Out and in again, then the next one.
                let pod = round / REST_EVERY / 2 % self.resting.len();
                let turn = self.resting[pod].iter_mut().map(|one| advance(one, self.endpoints)).collect();
                self.write(turn).await?;
            }
            if from.is_multiple_of(TYPE_EVERY) {
                self.change_type(TYPES[from / TYPE_EVERY % TYPES.len()]).await?;
            }
        }
        Ok(self.changes)
    }

    /// Several endpoints at once.
    async fn write(&mut self, turn: Vec<(usize, Step)>) -> Result<()> {
        let mut writes = Vec::new();
        for (endpoint, step) in turn {
            let described = &self.endpoints[endpoint];
            self.changes.endpoints.push(Change { at: now(), endpoint, step });
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

    async fn change_type(&mut self, kind: &str) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"type": kind}}));
        let changed = self.services.patch(CHANGING, &PatchParams::default(), &patch).await;
        changed.with_context(|| format!("change the type to {kind}"))?;
        self.changes.types += 1;
        Ok(())
    }
}

/// An endpoint's next step.
fn advance((place, step): &mut (usize, Step), endpoints: &[Endpoint]) -> (usize, Step) {
    *step = step.next(endpoints[*place].life);
    (*place, *step)
}
