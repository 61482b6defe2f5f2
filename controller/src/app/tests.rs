//! The whole controller with its apiserver, over real HTTP: what a user of the cluster can rely on.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use clap::Parser;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{App, connect_to};
use crate::config::Config;
use crate::endpoint::SERVICE_LABEL;
use crate::error::is_code;

const DEADLINE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A controller of one test.
struct Cluster {
    folder: TempDir,
    app: App,
    client: Client,
}

impl Cluster {
    async fn start(more: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("folder"), more).await
    }

    async fn start_in(folder: TempDir, more: &[&str]) -> Self {
        let app = App::start(config(folder.path(), more)).await.expect("starts");
        let kubeconfig = Kubeconfig::read_from(folder.path().join("admin.kubeconfig")).expect("kubeconfig");
        let client = connect_to(kubeconfig).await.expect("client");
        Self { folder, app, client }
    }

    async fn stop(self) -> TempDir {
        self.app.shutdown().await;
        self.folder
    }

    fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    async fn add_node(&self, name: &str, zone: &str) {
        let node = json!({
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        create(&self.all::<Node>(), node).await;
    }

    /// A Pod as its kubelet would report it, with one address of each family that ends in `number`.
    async fn add_pod(&self, number: u8, ready: bool) {
        let name = format!("p{number}");
        let spec = json!({"containers": [{"name": "c", "image": "none", "ports": [{"name": "http", "containerPort": 8080}]}]});
        create(
            &self.api::<Pod>(),
            json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": spec}),
        )
        .await;
        self.report(number, ready).await;
    }

    async fn report(&self, number: u8, ready: bool) {
        let status = json!({"status": {
            "phase": "Running", "podIP": format!("10.244.9.{number}"),
            "podIPs": [{"ip": format!("10.244.9.{number}")}, {"ip": format!("fd00::{number}")}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        }});
        let pods = self.api::<Pod>();
        let patched =
            pods.patch_status(&format!("p{number}"), &PatchParams::default(), &Patch::Merge(status)).await;
        patched.expect("status");
    }

    /// The addresses of a Service's endpoints, with what is asked of each.
    async fn endpoints<T: Ord>(
        &self,
        service: &str,
        of: impl Fn(&k8s_openapi::api::discovery::v1::Endpoint) -> T,
    ) -> Vec<(String, T)> {
        let labelled = ListParams::default().labels(&format!("{SERVICE_LABEL}={service}"));
        let slices = self.api::<EndpointSlice>().list(&labelled).await.expect("list");
        let endpoints = slices.items.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let mut found: Vec<_> =
            endpoints.map(|endpoint| (endpoint.addresses[0].clone(), of(endpoint))).collect();
        found.sort();
        found
    }
}

fn config(folder: &Path, more: &[&str]) -> Config {
    let folder = folder.to_str().expect("utf-8");
    let fixed = [
        "quilla-controller",
        "--data-dir",
        folder,
        "--listen",
        "127.0.0.1:0",
        "--health-listen",
        "127.0.0.1:0",
    ];
    Config::parse_from(fixed.iter().chain(more))
}

async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Serialize + DeserializeOwned + Clone + Debug,
{
    let object = serde_json::from_value(object).expect("well-typed");
    api.create(&PostParams::default(), &object).await.expect("created")
}

async fn eventually<T: PartialEq + Debug>(what: &str, expected: T, mut look: impl AsyncFnMut() -> T) {
    let mut last = None;
    let reached = tokio::time::timeout(DEADLINE, async {
        loop {
            let found = look().await;
            if found == expected {
                return;
            }
            last = Some(found);
            tokio::time::sleep(POLL).await;
        }
    });
    assert!(reached.await.is_ok(), "{what}: expected {expected:?}, last seen {last:?}");
}

fn pod_cidrs(node: &Node) -> Vec<String> {
    node.spec.as_ref().and_then(|spec| spec.pod_cidrs.clone()).unwrap_or_default()
}

fn owned(pairs: &[(&str, Option<bool>)]) -> Vec<(String, Option<bool>)> {
    pairs.iter().map(|(address, ready)| ((*address).to_owned(), *ready)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_service_become_endpoints_and_leave_again() {
    let cluster = Cluster::start(&[]).await;
    cluster.add_node("n1", "z1").await;
    let service = json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}],
        "ipFamilyPolicy": "RequireDualStack", "trafficDistribution": "PreferSameZone"}});
    let service = create(&cluster.api::<Service>(), service).await;
    assert_eq!(service.spec.expect("spec").cluster_ips.expect("addresses").len(), 2);
    cluster.add_pod(1, true).await;
    cluster.add_pod(2, false).await;

    let ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint.conditions.as_ref().and_then(|all| all.ready)
    };
    let (yes, no) = (Some(true), Some(false));
    let expected = owned(&[("10.244.9.1", yes), ("10.244.9.2", no), ("fd00::1", yes), ("fd00::2", no)]);
    eventually("S6 endpoints", expected, async || cluster.endpoints("web", ready).await).await;
    let zone = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        let zones = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.clone()).unwrap_or_default();
        zones.into_iter().map(|zone| zone.name).collect::<Vec<_>>()
    };
    // The scheduler put the Pod on n1, which is in z1; an endpoint that is not ready has no hint.
    let (near, none) = (vec!["z1".to_owned()], Vec::new());
    let hints = [("10.244.9.1", &near), ("10.244.9.2", &none), ("fd00::1", &near), ("fd00::2", &none)];
    let hints: Vec<_> = hints.map(|(address, zones)| (address.to_owned(), zones.clone())).into();
    eventually("S15 hints", hints, async || cluster.endpoints("web", zone).await).await;

    cluster.report(2, true).await;
    cluster.api::<Pod>().delete("p1", &DeleteParams::default().grace_period(0)).await.expect("deleted");
    let expected = owned(&[("10.244.9.2", yes), ("fd00::2", yes)]);
    eventually("the pod is gone", expected, async || cluster.endpoints("web", ready).await).await;
    let relabel = Patch::Merge(json!({"metadata": {"labels": {"app": "other"}}}));
    cluster.api::<Pod>().patch("p2", &PatchParams::default(), &relabel).await.expect("relabelled");
    eventually("no longer selected", vec![], async || cluster.endpoints("web", ready).await).await;
    let relabel = Patch::Merge(json!({"metadata": {"labels": {"app": "web"}}}));
    cluster.api::<Pod>().patch("p2", &PatchParams::default(), &relabel).await.expect("relabelled");
    eventually("selected again", 2, async || cluster.endpoints("web", ready).await.len()).await;
    cluster.api::<Service>().delete("web", &DeleteParams::default()).await.expect("deleted");
    eventually("the service is gone", vec![], async || cluster.endpoints("web", ready).await).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_remembers_every_allocation() {
    let cluster = Cluster::start(&[]).await;
    let asked = |name: &str| json!({"metadata": {"name": name}, "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 53}]}});
    eventually("the cluster's own service", Some("10.96.0.1".to_owned()), async || {
        cluster.api::<Service>().get_opt("kubernetes").await.expect("get")?.spec?.cluster_ip
    })
    .await;
    create(&cluster.api::<Service>(), asked("dns")).await;
    let folder = cluster.stop().await;
    let cluster = Cluster::start_in(folder, &[]).await;
    let services = cluster.api::<Service>();
    let again = serde_json::from_value(asked("other")).expect("well-typed");
    let refused = services.create(&PostParams::default(), &again).await.expect_err("taken");
    assert!(is_code(&refused, 422), "{refused}");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    services.delete("dns", &DeleteParams::default()).await.expect("deleted");
    services.create(&dry, &again).await.expect("S51: free at once, and a dry run takes nothing");
    services.create(&PostParams::default(), &again).await.expect("free");
    cluster.stop().await;
}

/// As fast as the apiserver takes it, from several clients at once; what is left is one Service's share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_flaps_its_type_leaks_nothing() {
    let cluster = Cluster::start(&["--service-node-port-range", "30000-30003"]).await;
    cluster.add_node("n1", "z1").await;
    let services = cluster.api::<Service>();
    let web =
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let created = create(&services, web).await;
    cluster.add_pod(1, true).await;
    let flap = async |offset: usize| {
        for turn in 0..100 {
            let kind = ["NodePort", "LoadBalancer", "ClusterIP"][(turn + offset) % 3];
            let local = (kind == "LoadBalancer").then_some("Local");
            let change = json!({"spec": {"type": kind, "externalTrafficPolicy": local}});
            let changed = services.patch("web", &PatchParams::default(), &Patch::Merge(change)).await;
            // Merge patches without a version never conflict, and there are ports for each of the types.
            changed.expect("the type may change");
        }
    };
    tokio::join!(flap(0), flap(1), flap(2));
    let ready = async || cluster.endpoints("web", |_| ()).await.len();
    eventually("one slice with one endpoint", 1, ready).await;
    let stored = services.get("web").await.expect("stored").spec.expect("spec");
    assert_eq!(stored.cluster_ip, created.spec.expect("spec").cluster_ip);
    services.delete("web", &DeleteParams::default()).await.expect("deleted");
    let ports: Vec<_> =
        (0..4).map(|number| json!({"name": format!("p{number}"), "port": 80 + number})).collect();
    let all = json!({"metadata": {"name": "all"}, "spec": {"type": "NodePort", "ports": ports}});
    create(&services, all).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_of_services_added_at_run_time_survive_a_restart() {
    let cluster = Cluster::start(&[]).await;
    create(
        &cluster.all::<ServiceCIDR>(),
        json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/28"]}}),
    )
    .await;
    let asked =
        json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.97.0.9", "ports": [{"port": 80}]}});
    create(&cluster.api::<Service>(), asked).await;
    let folder = cluster.stop().await;
    let cluster = Cluster::start_in(folder, &[]).await;
    let cidrs = cluster.all::<ServiceCIDR>();
    let refused = cidrs.delete("more", &DeleteParams::default()).await.expect_err("in use");
    assert!(is_code(&refused, 409) && refused.to_string().contains("10.97.0.9"), "{refused}");
    cluster.api::<Service>().delete("web", &DeleteParams::default()).await.expect("deleted");
    cidrs.delete("more", &DeleteParams::default()).await.expect("free now");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_get_pod_cidrs_while_they_last() {
    let ranges = ["--cluster-cidr", "10.244.0.0/23", "--cluster-cidr", "fd00:244::/60"];
    let cluster = Cluster::start(&ranges).await;
    let nodes = cluster.all::<Node>();
    let preset = json!({"metadata": {"name": "n0"}, "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24"]}});
    create(&nodes, preset).await;
    cluster.add_node("n1", "z").await;
    let cidrs = async |name: &str| pod_cidrs(&nodes.get(name).await.expect("get"));
    let expected: Vec<String> = vec!["10.244.1.0/24".into(), "fd00:244::/64".into()];
    eventually("n1 has one of each family", expected, async || cidrs("n1").await).await;

    cluster.add_node("n2", "z").await;
    let told = ListParams::default().fields("involvedObject.name=n2");
    let reason = async || {
        let events = cluster.all::<Event>().list(&told).await.expect("list");
        events.items.first().and_then(|event| event.reason.clone())
    };
    eventually("an event tells", Some("CIDRNotAvailable".to_owned()), reason).await;
    nodes.delete("n1", &DeleteParams::default()).await.expect("deleted");
    eventually("what n1 had is n2's", Some("10.244.1.0/24".to_owned()), async || {
        cidrs("n2").await.into_iter().next()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_and_metrics_are_served() {
    let mut cluster = Cluster::start(&[]).await;
    let address = cluster.app.health_address();
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: health\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    };
    eventually("ready", true, async || get("/readyz").await.starts_with("HTTP/1.1 200")).await;
    assert!(get("/healthz").await.ends_with("ok"));
    assert!(get("/metrics").await.contains("quilla_controller_queue_length{reconciler=\"node_cidr\"}"));
    // A task that ends while nobody asked it to is the end of the process.
    cluster.app.tasks.abort_all();
    let failure = tokio::time::timeout(DEADLINE, cluster.app.failed()).await.expect("is told");
    assert!(matches!(failure, crate::error::Error::TaskEnded { .. }), "{failure}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_apiserver_gets_pod_cidrs_and_nothing_else() {
    let folder = tempfile::tempdir().expect("folder");
    let config_of_server = quilla_apiserver::Config {
        data_dir: folder.path().to_owned(),
        tokens: vec![("secret".to_owned(), "admin".to_owned())],
        ..quilla_apiserver::Config::default()
    };
    let admit_all = std::sync::Arc::new(quilla_apiserver::AdmitAll);
    let server = quilla_apiserver::Server::start(config_of_server, admit_all).await.expect("starts");
    let path = folder.path().join("kubeconfig");
    let kubeconfig = server.kubeconfig("secret", &format!("https://{}", server.local_addr()));
    std::fs::write(&path, kubeconfig).expect("written");
    let more = ["--kubeconfig", path.to_str().expect("utf-8")];
    let app = App::start(config(folder.path(), &more)).await.expect("starts");
    assert!(app.apiserver().is_none());

    let client = connect_to(Kubeconfig::read_from(&path).expect("kubeconfig")).await.expect("client");
    let nodes: Api<Node> = Api::all(client.clone());
    create(&nodes, json!({"metadata": {"name": "n1"}})).await;
    eventually("both families", 2, async || pod_cidrs(&nodes.get("n1").await.expect("get")).len()).await;
    let others: Api<ServiceCIDR> = Api::all(client);
    assert!(others.list(&ListParams::default()).await.expect("list").items.is_empty());
    app.shutdown().await;
    server.shutdown().await;
}
